"""The assembled test, with the poses that are tabled for every task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.assembly.goals import COS_TOLERANCE, GOALS, POS_TOLERANCE, assembled, error
from jaxrobo.physics.rotations import (
    axis_angle_to_quat,
    matrix_to_quat,
    quat_multiply,
    quat_rotate,
    random_quat,
    rotvec_to_quat,
)

CASES = [(task, i) for task, pairs in GOALS.items() for i in range(len(pairs))]
LIMIT = np.arccos(COS_TOLERANCE)


def place(pair, k, offset=(0, 0, 0), turn=None):
    """Poses of both parts, the first anywhere, the second `offset` (in its frame) off goal `k`."""
    pos_a, quat_a = jnp.array([0.4, -0.1, 0.2]), random_quat(jax.random.key(k + 1))
    rot = np.eye(3) if pair.rot is None else pair.rot[k]
    quat_b = quat_multiply(quat_a, matrix_to_quat(rot))
    if turn is not None:
        quat_b = quat_multiply(quat_b, turn)
    return pos_a, quat_a, pos_a + quat_rotate(quat_a, pair.pos[k] + jnp.array(offset)), quat_b


@pytest.mark.parametrize(("task", "i"), CASES)
def test_every_tabled_pose_counts_within_its_tolerance(task, i):
    pair = GOALS[task][i]
    for k in range(len(pair.pos)):
        assert assembled(pair, *place(pair, k))
        for axis in range(3):
            off = np.eye(3)[axis] * POS_TOLERANCE
            assert assembled(pair, *place(pair, k, 0.98 * off))
            assert assembled(pair, *place(pair, k, -0.98 * off))
            assert not assembled(pair, *place(pair, k, 1.02 * off))
            about = np.eye(3)[axis]
            within, beyond = (axis_angle_to_quat(about, s * LIMIT) for s in (0.98, 1.02))
            assert assembled(pair, *place(pair, k, turn=within))
            assert bool(assembled(pair, *place(pair, k, turn=beyond))) == (pair.rot is None)


def test_the_tables_are_those_of_the_original():
    assert len(GOALS["one_leg"]) == 1
    assert len(GOALS["square_table"]) == 4
    assert len(GOALS["one_leg"][0].pos) == 4
    np.testing.assert_allclose(np.abs(GOALS["one_leg"][0].pos), [[0.05625, 0.046875, 0.05625]] * 4)
    top_leg = GOALS["round_table"][0].rot[0]
    np.testing.assert_allclose(
        top_leg, [[-0.9962, 0, -0.0872], [-0.0872, 0, 0.9962], [0, 1, 0]], atol=5e-5
    )
    assert GOALS["lamp"][1].rot is None


def test_a_peg_the_wrong_way_round_is_not_assembled():
    pair = GOALS["factory_peg_hole"][0]
    half = axis_angle_to_quat(jnp.array([0.0, 0, 1]), np.pi)
    assert not assembled(pair, *place(pair, 0, turn=half))


@pytest.mark.parametrize("task", ["factory_peg_hole", "one_leg", "round_table", "lamp"])
def test_the_error_is_the_way_of_the_first_part_to_the_second(task):
    """Moved and turned by it, the first part makes the pair; the second stays."""
    for pair in GOALS[task]:
        for k in range(len(pair.pos)):
            about = jnp.array([0.6, 0.0, 0.8])
            turn = axis_angle_to_quat(about, 0.3)
            pos_a, quat_a, pos_b, quat_b = place(pair, k, (0.003, -0.004, 0.012), turn)
            way = error(pair, pos_a, quat_a, pos_b, quat_b)
            np.testing.assert_allclose(np.linalg.norm(way[:3]), 0.013, rtol=1e-4)
            if pair.rot is None:
                np.testing.assert_array_equal(way[3:], 0)
                continue
            np.testing.assert_allclose(np.linalg.norm(way[3:]), 0.3, rtol=1e-4)
            turned = quat_multiply(rotvec_to_quat(way[3:]), quat_a)
            reached = pos_b - quat_rotate(turned, jnp.asarray(pair.pos[k]))
            still = error(pair, reached, turned, pos_b, quat_b)
            np.testing.assert_allclose(still, 0, atol=1e-5)


def test_the_error_is_that_of_the_nearest_goal():
    pair = GOALS["one_leg"][0]
    for k in range(4):
        np.testing.assert_allclose(error(pair, *place(pair, k)), 0, atol=1e-6)
