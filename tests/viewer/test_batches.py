from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from jaxrobo.viewer import shapes
from jaxrobo.viewer.session import NOBODY

batches = pytest.importorskip("jaxrobo.viewer.batches", reason="viser isn't installed")

XML = """
<mujoco>
  <worldbody>
    <geom type="box" size="1 1 1" rgba="1 0 0 0.5"/>
    <geom type="sphere" size="1" rgba="0 1 0 1"/>
    <geom type="box" size="2 2 2" rgba="0 0 1 1"/>
    <geom type="box" size="3 3 3" rgba="1 1 1 0.25"/>
    <geom type="box" size="4 4 4" rgba="1 1 0 1"/>
  </worldbody>
</mujoco>
"""


class Scene:
    """Keeps what it's told to show, by name."""

    def __init__(self):
        self.shown = {}

    def add_batched_meshes_simple(self, name, vertices, faces, wxyzs, positions, **options):
        assert name not in self.shown
        self.shown[name] = SimpleNamespace(
            batched_wxyzs=wxyzs, batched_positions=positions, **options
        )
        return self.shown[name]


@pytest.fixture
def made():
    """Two simulations in which piece k is at (k, k, k), 10 m apart; their batches by rows."""
    model = mujoco.MjModel.from_xml_string(XML)
    looks = shapes.pieces(model)
    player = SimpleNamespace(looks=looks, num_envs=2, env=SimpleNamespace(visual_model=model))
    pos = np.broadcast_to(np.arange(5.0)[:, None], (2, 5, 3))
    frame = SimpleNamespace(pos=pos, quat=np.tile([1.0, 0.0, 0.0, 0.0], (2, 5, 1)))
    places = np.array([[0.0, 0, 0], [10, 0, 0]])
    found = batches.make_batches(SimpleNamespace(scene=Scene()), player, frame, places)
    return {tuple(batch.rows): batch for batch in found}


def test_pieces_of_one_form_and_opacity_are_one_batch(made):
    opacity = {rows: batch.handle.opacity for rows, batch in made.items()}
    assert opacity == {(0,): 0.5, (1,): None, (2, 4): None, (3,): 0.25}


def test_a_batch_holds_all_simulations_one_after_the_other(made):
    handle = made[2, 4].handle
    expected = [[2, 2, 2], [4, 4, 4], [12, 2, 2], [14, 4, 4]]
    np.testing.assert_array_equal(handle.batched_positions, expected)
    np.testing.assert_array_equal(handle.batched_scales[:, 0], [2, 4, 2, 4])


def test_the_simulation_that_is_taken_over_is_tinted(made):
    batch = made[2, 4]
    plain = np.array([[0, 0, 255], [255, 255, 0]] * 2)
    np.testing.assert_array_equal(batch.handle.batched_colors, plain)
    batch.paint(1)
    np.testing.assert_array_equal(batch.handle.batched_colors[:2], plain[:2])
    assert (batch.handle.batched_colors[2:] != plain[2:]).any(1).all()
    batch.paint(NOBODY)
    np.testing.assert_array_equal(batch.handle.batched_colors, plain)
