"""Rotations: scipy as the independent implementation, precision and gradients at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from jaxrobo.physics import rotations as rot

TOLERANCE = 2e-6  # a few roundings of single precision
BATCH = 16
SPECIAL_ANGLES = [0.0, 1e-7, 1e-4, 9.9e-3, 1.01e-2, 1.0, np.pi - 1e-3, np.pi - 1e-6, np.pi]


def _vectors(size: int, bound: float):
    return arrays(np.float32, (BATCH, size), elements=st.floats(-bound, bound, width=32))


def _keys():
    return st.integers(0, 2**31 - 1).map(jax.random.key)


@jax.jit
def _random_quats(key):
    return rot.random_quat(key, (BATCH,))


def _scipy(quat) -> Rotation:
    return Rotation.from_quat(np.asarray(quat, np.float64), scalar_first=True)


def _angle_between(quat, expected: Rotation) -> float:
    return float(np.max((_scipy(quat).inv() * expected).magnitude()))


def _special_rotvecs(seed: int = 0) -> np.ndarray:
    """Rotation vectors of every special angle about coordinate axes and random ones. [n, 3]"""
    random = np.random.default_rng(seed).normal(size=(5, 3))
    axes = np.concatenate([np.eye(3), -np.eye(3), random])
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return np.concatenate([angle * axes for angle in SPECIAL_ANGLES])


@settings(max_examples=20, deadline=None)
@given(_keys(), _keys(), _vectors(3, 8.0))
def test_product_and_rotation_agree_with_scipy(key_a, key_b, vector):
    a, b = _random_quats(key_a), _random_quats(key_b)
    product = jax.jit(rot.quat_multiply)(a, b)
    assert _angle_between(product, _scipy(a) * _scipy(b)) < TOLERANCE
    rotated = jax.jit(rot.quat_rotate)(a, vector)
    np.testing.assert_allclose(rotated, _scipy(a).apply(vector), atol=2e-5)
    back = jax.jit(rot.quat_rotate)(jax.jit(rot.quat_conjugate)(a), rotated)
    np.testing.assert_allclose(back, vector, atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(_keys())
def test_matrix_agrees_with_scipy_and_comes_back(key):
    quat = _random_quats(key)
    matrix = jax.jit(rot.quat_to_matrix)(quat)
    np.testing.assert_allclose(matrix, _scipy(quat).as_matrix(), atol=TOLERANCE)
    back = jax.jit(rot.matrix_to_quat)(matrix)
    np.testing.assert_allclose(back, rot.quat_standardise(quat), atol=TOLERANCE)


def test_matrix_to_quat_at_every_angle():
    """Half turns, where the trace formula divides by zero, and tiny angles, where it cancels."""
    expected = Rotation.from_rotvec(_special_rotvecs())
    quat = jax.jit(rot.matrix_to_quat)(expected.as_matrix())
    assert _angle_between(quat, expected) < TOLERANCE
    assert np.all(np.asarray(quat)[:, 0] >= 0)


@settings(max_examples=20, deadline=None)
@given(_vectors(3, 6.0))
def test_exponential_agrees_with_scipy(rotvec):
    quat = jax.jit(rot.rotvec_to_quat)(rotvec)
    np.testing.assert_allclose(np.linalg.norm(quat, axis=-1), 1.0, atol=TOLERANCE)
    assert _angle_between(quat, Rotation.from_rotvec(rotvec.astype(np.float64))) < TOLERANCE


def test_logarithm_keeps_relative_precision_at_every_angle():
    rotvec = _special_rotvecs()
    quat = Rotation.from_rotvec(rotvec).as_quat(scalar_first=True)
    result = np.asarray(jax.jit(rot.quat_to_rotvec)(quat), np.float64)
    error = np.linalg.norm(result - rotvec, axis=-1)
    # At exactly pi the sign is free: v and -v are the same rotation.
    half_turn = np.linalg.norm(rotvec, axis=-1) > np.pi - 1e-5
    flipped = np.linalg.norm(result + rotvec, axis=-1)
    error = np.where(half_turn, np.minimum(error, flipped), error)
    assert np.all(error <= 3e-6 * np.linalg.norm(rotvec, axis=-1))


@settings(max_examples=20, deadline=None)
@given(_keys(), st.floats(0.01, 100.0))
def test_logarithm_is_shortest_and_ignores_sign_and_length(key, scale):
    quat = _random_quats(key)
    log = jax.jit(rot.quat_to_rotvec)
    np.testing.assert_allclose(log(quat), _scipy(quat).as_rotvec(), atol=5e-6)
    np.testing.assert_allclose(log(-scale * quat), log(quat), atol=5e-6)


def test_axis_angle_hand_computed():
    quat = jax.jit(rot.axis_angle_to_quat)(np.array([0.0, 0, 1]), np.array([0, np.pi / 2, np.pi]))
    expected = [[1, 0, 0, 0], [np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [0, 0, 0, 1]]
    np.testing.assert_allclose(quat, expected, atol=1e-7)
    rotated = jax.jit(rot.quat_rotate)(quat, np.array([1.0, 0, 0]))
    np.testing.assert_allclose(rotated, [[1, 0, 0], [0, 1, 0], [-1, 0, 0]], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(_vectors(3, 6.0))
def test_rpy_is_about_fixed_axes(rpy):
    expected = Rotation.from_euler("xyz", rpy.astype(np.float64))
    assert _angle_between(jax.jit(rot.rpy_to_quat)(rpy), expected) < TOLERANCE


def test_sixd_is_the_first_two_rows():
    matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(rot.matrix_to_sixd(matrix), [0, -1, 0, 1, 0, 0])


def test_sixd_gram_schmidt_hand_computed():
    matrix = rot.sixd_to_matrix([2.0, 0, 0, 5.0, 3.0, 0])
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(_keys(), _vectors(2, 3.0))
def test_sixd_comes_back_from_rows_of_any_length_and_angle(key, coefficients):
    matrix = _scipy(_random_quats(key)).as_matrix()
    skew = coefficients[:, :1] * matrix[:, 0]
    stretch = (0.1 + np.abs(coefficients[:, 1:])) * matrix[:, 1]
    sixd = np.concatenate([3 * matrix[:, 0], stretch + skew], axis=-1)
    np.testing.assert_allclose(jax.jit(rot.sixd_to_matrix)(sixd), matrix, atol=2e-5)


def test_sixd_of_zeros_is_finite():
    assert np.all(np.isfinite(rot.sixd_to_matrix(jnp.zeros(6))))


def test_distance_is_the_angle_whatever_the_sign():
    a = np.array([0.5, -0.5, 0.5, 0.5])
    half = np.array(SPECIAL_ANGLES)[:, None] / 2
    turn = np.concatenate([np.cos(half), np.sin(half) * np.array([[1.0, -2.0, 2.0]]) / 3], axis=-1)
    b = jax.jit(rot.quat_multiply)(a, turn)
    for other in (b, -b):
        distance = jax.jit(rot.quat_distance)(a, other)
        np.testing.assert_allclose(distance, SPECIAL_ANGLES, atol=3e-7)


def test_scalar_part_moves():
    np.testing.assert_array_equal(rot.wxyz_to_xyzw([1.0, 2, 3, 4]), [2, 3, 4, 1])
    np.testing.assert_array_equal(rot.xyzw_to_wxyz([2.0, 3, 4, 1]), [1, 2, 3, 4])


def test_normalise():
    np.testing.assert_allclose(rot.quat_normalise([0.0, 3, 0, 4]), [0, 0.6, 0, 0.8], atol=1e-7)
    np.testing.assert_array_equal(rot.quat_normalise(jnp.zeros((2, 4))), [[1, 0, 0, 0]] * 2)


def test_random_quat_is_uniform():
    """The angle of a uniform rotation has the cumulative distribution (x - sin x) / pi."""
    quat = jax.jit(lambda key: rot.random_quat(key, (20_000,)))(jax.random.key(0))
    angle = np.sort(_scipy(quat).magnitude())
    empirical = (np.arange(angle.size) + 0.5) / angle.size
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded with probability 1e-3.
    assert np.max(np.abs((angle - np.sin(angle)) / np.pi - empirical)) < 1.95 / np.sqrt(angle.size)
    mean_axis = np.mean(_scipy(quat).apply([0.0, 0, 1]), axis=0)
    assert np.linalg.norm(mean_axis) < 4 / np.sqrt(angle.size)


IDENTITY = np.array([1.0, 0, 0, 0])


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (rot.rotvec_to_quat, np.zeros(3)),
        (rot.rotvec_to_quat, np.array([np.pi, 0, 0])),
        (rot.quat_to_rotvec, IDENTITY),
        (rot.quat_to_rotvec, np.array([0.0, 0.6, 0, 0.8])),
        (rot.quat_normalise, np.zeros(4)),
        (rot.matrix_to_quat, np.eye(3)),
        (rot.matrix_to_quat, np.diag([1.0, -1, -1])),
        (rot.sixd_to_matrix, np.zeros(6)),
        (lambda q: rot.quat_distance(q, IDENTITY), IDENTITY),
        (lambda q: rot.quat_distance(q, IDENTITY), np.array([0.0, 0, 1, 0])),
    ],
)
def test_gradients_are_finite(function, at):
    at = jnp.asarray(at, jnp.float32)
    assert np.all(np.isfinite(jax.jit(jax.jacrev(function))(at)))


def test_derivatives_at_the_identity():
    """exp'(0) = [0; I/2] and log'(1) = [0, 2 I]."""
    half = np.vstack([np.zeros((1, 3)), np.eye(3) / 2])
    exp = jax.jit(jax.jacrev(rot.rotvec_to_quat))(jnp.zeros(3))
    log = jax.jit(jax.jacrev(rot.quat_to_rotvec))(jnp.asarray(IDENTITY, jnp.float32))
    np.testing.assert_allclose(exp, half, atol=1e-7)
    np.testing.assert_allclose(log, 4 * half.T, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rot.quat_multiply(np.ones(3), IDENTITY), "length 4, got shape \\(3,\\)"),
        (lambda: rot.quat_rotate(IDENTITY, np.ones(4)), "length 3, got shape \\(4,\\)"),
        (lambda: rot.matrix_to_quat(np.ones((4, 3))), "got \\(4, 3\\)"),
        (lambda: rot.matrix_to_sixd(np.ones(3)), "got \\(3,\\)"),
        (lambda: rot.sixd_to_matrix(1.0), "length 6, got shape \\(\\)"),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
