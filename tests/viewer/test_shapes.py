import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics
from jaxrobo.viewer import shapes

XML = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
    <mesh name="box" vertex="0 0 0  2 0 0  0 2 0  0 0 2"/>
    <hfield name="hills" nrow="2" ncol="2" size="1 1 1 1" elevation="0 1 1 0"/>
    <hfield name="dunes" nrow="2" ncol="2" size="1 1 1 1" elevation="0 1 1 0"/>
    <hfield name="slope" nrow="2" ncol="2" size="1 1 1 1" elevation="0 1 1 0"/>
    <material name="blue" rgba="0 0 1 1"/>
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1" pos="0 0 -0.5" material="blue"/>
    <geom type="box" size="1 2 3" rgba="1 0 0 0.5"/>
    <geom type="sphere" size="0.1" group="3"/>
    <geom type="sphere" size="0.1" rgba="0 0 0 0"/>
    <geom type="mesh" mesh="wedge"/>
    <geom type="hfield" hfield="slope"/>
    <body name="arm" pos="0 0 1">
      <joint type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0  1 0 0" size="0.1" material="blue"/>
      <geom type="ellipsoid" size="0.1 0.2 0.3"/>
      <site name="tip" type="cylinder" size="0.1 0.4" pos="1 0 0"/>
    </body>
    <body name="crate"><geom type="mesh" mesh="box"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(XML)


@pytest.fixture(scope="module")
def looks(model):
    return shapes.pieces(model)


def test_what_can_be_seen_is_drawn(model, looks):
    capsule = (shapes.CYLINDER, shapes.SPHERE, shapes.SPHERE)
    expected = (shapes.BOX, "wedge", *capsule, shapes.SPHERE, "box", shapes.CYLINDER)
    assert looks.form == expected
    np.testing.assert_allclose(looks.size[0], [1, 2, 3])
    np.testing.assert_allclose(looks.size[2], [0.1, 0.1, 0.5])
    np.testing.assert_allclose(looks.size[5], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(looks.rgba[0], [1, 0, 0, 0.5])
    np.testing.assert_allclose(looks.rgba[2], [0, 0, 1, 1])  # of the material
    assert shapes.floor(model) == -0.5


def test_poses_follow_the_bodies(model, looks):
    """The arm, turned by 90 degrees about y, points down from (0, 0, 1)."""
    data = make_physics(model, "native").init(qpos=jnp.array([np.pi / 2]))
    pos, quat = shapes.poses(looks, data)
    np.testing.assert_allclose(pos[2], [0, 0, 0.5], atol=1e-6)
    ends = sorted(np.asarray(pos[3:5]).tolist(), key=lambda p: p[2])
    np.testing.assert_allclose(ends, [[0, 0, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(pos[7], [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(jnp.abs(quat[7]), [np.sqrt(0.5), 0, np.sqrt(0.5), 0], atol=1e-6)


def test_a_mesh_is_where_mujoco_draws_it(model, looks):
    """MuJoCo recentres a mesh and turns it to its principal axes; both are undone by the pose."""
    vertices, faces = shapes.mesh(model, "wedge")
    data = make_physics(model, "native").init()
    pos, quat = shapes.poses(looks, data)
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, np.asarray(quat[1], np.float64))
    placed = vertices @ turn.reshape(3, 3).T + np.asarray(pos[1])
    corners = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(sorted(np.round(placed, 5).tolist()), corners, atol=1e-5)
    assert faces.shape == (4, 3)


@pytest.mark.parametrize(
    ("planes", "height"),
    [
        ("<geom type='plane' size='1 1 1' pos='0 0 -0.2'/>", -0.2),
        ("<geom type='plane' size='1 1 1' pos='0 0 -0.2' rgba='0 0 0 0' material='grey'/>", 0.0),
        ("<geom type='plane' size='1 1 1' pos='0 0 -0.2' group='3' material='grey'/>", 0.0),
        ("<geom type='plane' size='1 1 1' pos='0 0 -0.2' euler='90 0 0' material='grey'/>", 0.0),
        ("<body pos='0 0 1'><geom type='plane' size='1 1 1' pos='0 0 -0.2'/></body>", 0.8),
    ],
)
def test_the_floor_is_a_level_plane_that_can_be_seen(planes, height):
    material = "<asset><material name='grey' rgba='.3 .3 .3 1'/></asset>"
    text = f"<mujoco>{material}<worldbody>{planes}</worldbody></mujoco>"
    assert shapes.floor(mujoco.MjModel.from_xml_string(text)) == pytest.approx(height)


def test_nothing_to_see():
    looks = shapes.pieces(mujoco.MjModel.from_xml_string("<mujoco/>"))
    assert looks.form == ()
    assert looks.pos.shape == (0, 3)


def test_grid_is_centred_and_keeps_simulations_apart():
    """A rod of half length 1 along x is wider than the extent that its model claims, 0.5."""
    rod = "<geom type='capsule' fromto='-0.9 0 0 0.9 0 0' size='0.1'/>"
    text = f"<mujoco><statistic extent='0.5'/><worldbody>{rod}</worldbody></mujoco>"
    places = shapes.grid(mujoco.MjModel.from_xml_string(text), 4)
    np.testing.assert_allclose(places, [[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]])
    text = text.replace("0.5", "3")
    places = shapes.grid(mujoco.MjModel.from_xml_string(text), 1)
    np.testing.assert_array_equal(places, [[0, 0, 0]])
