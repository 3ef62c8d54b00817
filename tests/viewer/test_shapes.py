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
    return shapes.parts(model)


def test_what_can_be_seen_is_drawn(model, looks):
    body = lambda name: model.body(name).id
    forms = {(p.body, p.opaque): [piece.form for piece in p.pieces] for p in looks}
    assert forms == {
        (0, False): [shapes.BOX],
        (0, True): ["wedge"],
        (body("arm"), True): [shapes.CAPSULE, shapes.SPHERE, shapes.CYLINDER],
        (body("crate"), True): ["box"],
    }
    box, (capsule, ellipsoid, _) = looks[0].pieces[0], looks[2].pieces
    np.testing.assert_allclose(box.size, [1, 2, 3])
    np.testing.assert_allclose(capsule.size, [0.1, 0.1, 0.5])
    np.testing.assert_allclose(capsule.pos, [0.5, 0, 0])
    np.testing.assert_allclose(ellipsoid.size, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(box.rgba, [1, 0, 0, 0.5])
    np.testing.assert_allclose(capsule.rgba, [0, 0, 1, 1])  # of the material
    assert shapes.floor(model) == -0.5


def test_poses_follow_the_bodies(model, looks):
    """The arm, turned by 90 degrees about y, hangs at (0, 0, 1)."""
    data = make_physics(model, "native").init(qpos=jnp.array([np.pi / 2]))
    pos, quat = shapes.poses(looks, data)
    np.testing.assert_allclose(pos, [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(jnp.abs(quat[2]), [np.sqrt(0.5), 0, np.sqrt(0.5), 0], atol=1e-6)


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
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    assert shapes.parts(model) == []
    pos, _ = shapes.poses([], make_physics(model, "native").init())
    assert pos.shape == (0, 3)


def test_grid_is_centred_and_keeps_simulations_apart():
    """A rod of half length 1 along x is wider than the extent that its model claims, 0.5."""
    rod = "<geom type='capsule' fromto='-0.9 0 0 0.9 0 0' size='0.1'/>"
    text = f"<mujoco><statistic extent='0.5'/><worldbody>{rod}</worldbody></mujoco>"
    places = shapes.grid(mujoco.MjModel.from_xml_string(text), 4)
    np.testing.assert_allclose(places, [[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]])
    text = text.replace("0.5", "3")
    places = shapes.grid(mujoco.MjModel.from_xml_string(text), 1)
    np.testing.assert_array_equal(places, [[0, 0, 0]])
