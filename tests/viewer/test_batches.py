import json
import struct
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from jaxrobo.viewer import shapes

batches = pytest.importorskip("jaxrobo.viewer.batches", reason="viser isn't installed")

XML = """
<mujoco>
  <asset><mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/></asset>
  <worldbody>
    <geom type="box" size="1 2 3" pos="1 0 0" rgba="1 0 0 0.5"/>
    <geom type="mesh" mesh="wedge" rgba="0 1 0 1"/>
    <body name="arm" pos="0 0 1">
      <joint type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0  1 0 0" size="0.1" rgba="0 0 1 1"/>
      <geom type="box" size="0.2 0.2 0.2" pos="0 0 5" rgba="0.5 0.5 0.5 1"/>
    </body>
    <body pos="0 0 5">
      <geom type="cylinder" size="1 2" rgba="0 1 1 1"/>
      <geom type="ellipsoid" size="1 2 3" pos="0 0 9" rgba="0 1 1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


class Scene:
    """Keeps what it's told to show."""

    def __init__(self):
        self.shown = []

    def add_batched_glb(self, name, glb, wxyzs, positions, **_):
        self.shown.append(SimpleNamespace(batched_wxyzs=wxyzs, batched_positions=positions))
        self.shown[-1].name, self.shown[-1].tree = name, _tree(glb)
        return self.shown[-1]


def _tree(glb):
    """The JSON of binary glTF, section 4 of its specification."""
    assert glb[:4] == b"glTF"
    (length,) = struct.unpack("<I", glb[12:16])
    return json.loads(glb[20 : 20 + length])


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(XML)


def _make(model, num_envs):
    """Simulations in which part k is at (k, k, k), 10 m apart."""
    looks = shapes.parts(model)
    player = SimpleNamespace(looks=looks, num_envs=num_envs)
    player.env = SimpleNamespace(visual_model=model)
    k = len(looks)
    pos = np.broadcast_to(np.arange(float(k))[:, None], (num_envs, k, 3))
    frame = SimpleNamespace(pos=pos, quat=np.tile([1.0, 0, 0, 0], (num_envs, k, 1)))
    places = np.stack([10.0 * np.arange(num_envs), *np.zeros((2, num_envs))], axis=1)
    scene = Scene()
    return batches.make_batches(SimpleNamespace(scene=scene), player, frame, places), scene.shown


def _mesh(model, body, opaque=True, error=1e-9):
    (part,) = (p for p in shapes.parts(model) if (p.body, p.opaque) == (body, opaque))
    return batches.part_mesh(model, part, error)


def test_every_part_is_a_batch_of_all_simulations(model):
    made, shown = _make(model, 2)
    assert [handle.name for handle in shown] == [
        "/simulations/0 world",
        "/simulations/1 world",
        "/simulations/2 arm",
        "/simulations/3 ",
    ]
    np.testing.assert_array_equal(shown[2].batched_positions, [[2, 2, 2], [12, 2, 2]])
    frame = SimpleNamespace(pos=np.ones((2, 4, 3)), quat=np.tile([0.0, 1, 0, 0], (2, 4, 1)))
    made[2].move(frame, np.zeros((2, 3)))
    np.testing.assert_array_equal(shown[2].batched_positions, np.ones((2, 3)))
    np.testing.assert_array_equal(shown[2].batched_wxyzs, [[0, 1, 0, 0]] * 2)


def test_what_stays_is_not_sent_again(model):
    made, shown = _make(model, 2)
    frame = SimpleNamespace(pos=np.zeros((2, 4, 3)), quat=np.tile([1.0, 0, 0, 0], (2, 4, 1)))
    turned = SimpleNamespace(pos=frame.pos, quat=np.tile([0.0, 1, 0, 0], (2, 4, 1)))
    for now, sent in ((frame, True), (frame, False), (turned, True), (turned, False)):
        shown[2].batched_wxyzs = None
        made[2].move(now, np.zeros((2, 3)))
        assert (shown[2].batched_wxyzs is not None) == sent


def test_light_goes_through_what_it_should(model):
    """And nothing is of metal, as what doesn't say so is in glTF."""
    materials = [handle.tree["materials"][0] for handle in _make(model, 1)[1]]
    assert [m["alphaMode"] for m in materials] == ["BLEND", "OPAQUE", "OPAQUE", "OPAQUE"]
    assert {m["pbrMetallicRoughness"]["metallicFactor"] for m in materials} == {0.0}
    for handle in _make(model, 1)[1]:
        (primitive,) = handle.tree["meshes"][0]["primitives"]
        assert primitive["material"] == 0
        assert set(primitive["attributes"]) == {"POSITION", "COLOR_0"}  # flat without normals


def test_forms_are_where_they_should_be(model):
    np.testing.assert_allclose(_mesh(model, 0, opaque=False).bounds, [[0, -2, -3], [2, 2, 3]])
    cans = _mesh(model, 2)
    np.testing.assert_allclose(cans.bounds, [[-1, -2, -2], [1, 2, 12]], atol=1e-6)
    capsule = _mesh(model, 1).split(only_watertight=True)
    bounds = sorted(part.bounds.tolist() for part in capsule)
    np.testing.assert_allclose(bounds[0], [[-0.2, -0.2, 4.8], [0.2, 0.2, 5.2]])
    np.testing.assert_allclose(bounds[1], [[-0.1, -0.1, -0.1], [1.1, 0.1, 0.1]], atol=1e-6)


def test_a_mesh_is_where_it_was_made(model):
    """MuJoCo recentres a mesh and turns it to its principal axes; both are undone."""
    mesh = _mesh(model, 0)
    corners = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(sorted(mesh.vertices.round(5).tolist()), corners, atol=1e-5)


@pytest.mark.parametrize(("error", "least"), [(1e-9, 0.97), (1e9, 0.318)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_forms_are_closed_and_face_outwards(error, least, scale):
    """Their volumes, with most sides within 3 % of the round ones'.

    With four, an ellipsoid is an octahedron: 1 / pi.
    """
    pi, a = np.pi, scale
    volumes = {
        f'<geom type="capsule" size="{0.1 * a} {0.5 * a}"/>': 0.01 * pi + 4 / 3 * pi * 0.1**3,
        f'<geom type="cylinder" size="{0.1 * a} {0.5 * a}"/>': 0.01 * pi,
        f'<geom type="ellipsoid" size="{a} {2 * a} {3 * a}"/>': 8 * pi,
        f'<geom type="box" size="{a} {2 * a} {3 * a}"/>': 48.0,
    }
    for geom, volume in volumes.items():
        model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{geom}</worldbody></mujoco>")
        mesh = _mesh(model, 0, error=error)
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        fraction = mesh.volume / scale**3 / volume
        assert least < fraction < 1 + 1e-6


@pytest.mark.parametrize(("radius", "error"), [(0.01, 1e-3), (0.1, 1e-3), (5.0, 0.1)])
def test_a_circle_has_as_few_sides_as_keep_to_the_error(radius, error):
    n = batches._sides(radius, error)
    off = [radius * (1 - np.cos(np.pi / k)) for k in (n, n - 1)]
    assert off[0] <= error < off[1]
    assert batches._sides(radius, 2 * radius) == 4
    assert batches._sides(radius, 1e-9) == 32


def test_colours_are_light(model):
    """Half of what a screen takes is 0.214 of its light, IEC 61966-2-1."""
    colours = np.unique(_mesh(model, 1).visual.vertex_colors, axis=0)
    np.testing.assert_array_equal(colours, [[0, 0, 255, 255], [55, 55, 55, 255]])
    colours = np.unique(_mesh(model, 0, opaque=False).visual.vertex_colors, axis=0)
    np.testing.assert_array_equal(colours, [[255, 0, 0, 128]])


def test_many_simulations_have_fewer_sides(model):
    def vertices(num_envs):
        trees = (handle.tree for handle in _make(model, num_envs)[1])
        return num_envs * sum(tree["accessors"][1]["count"] for tree in trees)

    assert vertices(1) > vertices(100) / 100
    assert vertices(100) <= batches._MAX_VERTICES
    assert vertices(1000) / 1000 < vertices(100) / 100
    assert vertices(1000) == vertices(2000) / 2


def test_colours_beyond_the_screen_are_its_brightest():
    """MuJoCo takes any; what lets no light through stays opaque."""
    geom = '<geom type="box" size="1 1 1" rgba="2 -1 0 1.5"/>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{geom}</worldbody></mujoco>")
    colours = np.unique(_mesh(model, 0).visual.vertex_colors, axis=0)
    np.testing.assert_array_equal(colours, [[255, 0, 0, 255]])
