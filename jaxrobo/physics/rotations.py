"""Rotations: unit quaternions, rotation vectors, matrices, roll-pitch-yaw and 6D.

Quaternions are wxyz (scalar first), of unit length, and rotate vectors from the rotated frame to
the reference frame, so `quat_rotate(quat_multiply(a, b), v)` is
`quat_rotate(a, quat_rotate(b, v))`. `q` and `-q` are the same rotation. Angles are in radians.

Every function acts on the last axis (matrices: the last two) and broadcasts over the leading ones.
All raise ValueError on a last axis of the wrong length.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_SMALL = 1e-4
"""Squared angle below which a series replaces sin(x)/x and the like. The first term left out is of
the order of its cube."""

_TINY = 1e-20
"""Squared length below which a vector has no direction."""


def quat_multiply(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """The Hamilton product: the rotation `b` followed by `a`, both about the reference axes.

    Args:
      a: quaternion. [..., 4]
      b: quaternion. [..., 4]

    Returns:
      The product. [..., 4]
    """
    aw, ax, ay, az = _components(_array(a, 4))
    bw, bx, by, bz = _components(_array(b, 4))
    return jnp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def quat_conjugate(quat: ArrayLike) -> jax.Array:
    """The conjugate, which is the inverse rotation of a unit quaternion. [..., 4] -> [..., 4]."""
    quat = _array(quat, 4)
    return jnp.concatenate([quat[..., :1], -quat[..., 1:]], axis=-1)


def quat_rotate(quat: ArrayLike, vector: ArrayLike) -> jax.Array:
    """Rotates a vector: with t = 2 u x v, v + w t + u x t, where q = (w, u).

    Args:
      quat: unit quaternion. [..., 4]
      vector: vector in the rotated frame. [..., 3]

    Returns:
      The vector in the reference frame. [..., 3]
    """
    quat, vector = _array(quat, 4), _array(vector, 3)
    w, u = quat[..., :1], quat[..., 1:]
    t = 2.0 * _cross(u, vector)
    return vector + w * t + _cross(u, t)


def quat_normalise(quat: ArrayLike) -> jax.Array:
    """Scales a quaternion to unit length; zero becomes the identity. [..., 4] -> [..., 4]."""
    quat = _array(quat, 4)
    null = jnp.sum(quat**2, axis=-1, keepdims=True) < _TINY
    return _unit(jnp.where(null, _identity_like(quat), quat))


def quat_standardise(quat: ArrayLike) -> jax.Array:
    """Of `q` and `-q`, the one whose scalar part isn't negative. [..., 4] -> [..., 4]."""
    quat = _array(quat, 4)
    return jnp.where(quat[..., :1] < 0, -quat, quat)


def quat_distance(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """The angle of the rotation between two orientations.

    It is 2 atan2(|u|, |w|) of the relative quaternion (w, u), as precise at small angles as at
    large ones; arccos of a dot product loses everything below 5e-4 rad in single precision. The
    gradient is finite everywhere, and zero where the orientations are equal.

    Args:
      a: unit quaternion. [..., 4]
      b: unit quaternion. [..., 4]

    Returns:
      Angle in [0, pi]. [...]
    """
    relative = quat_multiply(quat_conjugate(a), b)
    return 2.0 * jnp.arctan2(_norm(relative[..., 1:]), jnp.abs(relative[..., 0]))


def quat_to_matrix(quat: ArrayLike) -> jax.Array:
    """The matrix of a quaternion; its columns are the rotated axes. [..., 4] -> [..., 3, 3]."""
    w, x, y, z = _components(_array(quat, 4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quat(matrix: ArrayLike) -> jax.Array:
    """The unit quaternion of a rotation matrix, with a scalar part that isn't negative.

    4 q q^T is linear in the matrix. Of its four rows, each a multiple of q, the one of the largest
    diagonal entry is scaled to unit length: that entry is at least 1, so precision and gradient
    hold at every angle (S. W. Shepperd, "Quaternion from Rotation Matrix", 1978).

    Args:
      matrix: rotation matrix. [..., 3, 3]

    Returns:
      Unit quaternion. [..., 4]
    """
    m = _matrix(matrix)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (_components(row) for row in jnp.unstack(m, axis=-2))
    rows = [
        [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx],
        [xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz],
        [yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz],
    ]
    outer = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    return quat_standardise(_unit(row))


def rotvec_to_quat(rotvec: ArrayLike) -> jax.Array:
    """The exponential map: rotation by |v| about v. Smooth everywhere, zero included.

    Args:
      rotvec: rotation vector, rad. [..., 3]

    Returns:
      Unit quaternion (cos(|v|/2), sin(|v|/2) v/|v|). [..., 4]
    """
    rotvec = _array(rotvec, 3)
    squared = jnp.sum(rotvec**2, axis=-1, keepdims=True)
    small = squared < _SMALL
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    cos = jnp.where(small, 1 - squared / 8 + squared**2 / 384, jnp.cos(angle / 2))
    sinc = jnp.where(small, 0.5 - squared / 48 + squared**2 / 3840, jnp.sin(angle / 2) / angle)
    return jnp.concatenate([cos, sinc * rotvec], axis=-1)


def quat_to_rotvec(quat: ArrayLike) -> jax.Array:
    """The logarithm: the shortest rotation vector. Finite, with its gradient, from zero to pi.

    Args:
      quat: quaternion; its length doesn't matter. [..., 4]

    Returns:
      Rotation vector of length in [0, pi], rad. [..., 3]
    """
    quat = quat_standardise(quat)
    w, u = quat[..., :1], quat[..., 1:]
    squared = jnp.sum(u**2, axis=-1, keepdims=True)
    small = squared < _SMALL * w**2
    norm = jnp.sqrt(jnp.where(small, 1.0, squared))
    safe_w = jnp.where(small, w, 1.0)
    tan2 = jnp.where(small, squared, 0.0) / safe_w**2
    series = (2 - 2 * tan2 / 3 + 2 * tan2**2 / 5) / safe_w
    return u * jnp.where(small, series, 2 * jnp.arctan2(norm, w) / norm)


def axis_angle_to_quat(axis: ArrayLike, angle: ArrayLike) -> jax.Array:
    """Rotation about an axis.

    Args:
      axis: unit vector. [..., 3]
      angle: rad. [...]

    Returns:
      Unit quaternion. [..., 4]
    """
    axis, half = _array(axis, 3), 0.5 * jnp.asarray(angle)[..., None]
    shape = jnp.broadcast_shapes(axis.shape[:-1], half.shape[:-1])
    w = jnp.broadcast_to(jnp.cos(half), (*shape, 1))
    return jnp.concatenate([w, jnp.sin(half) * axis], axis=-1)


def rpy_to_quat(rpy: ArrayLike) -> jax.Array:
    """Roll, pitch and yaw as URDF defines them: about the fixed x, then y, then z axis.

    The matrix is Rz(yaw) Ry(pitch) Rx(roll).

    Args:
      rpy: roll, pitch, yaw, rad. [..., 3]

    Returns:
      Unit quaternion. [..., 4]
    """
    roll, pitch, yaw = _components(_array(rpy, 3))
    x = axis_angle_to_quat((1.0, 0.0, 0.0), roll)
    y = axis_angle_to_quat((0.0, 1.0, 0.0), pitch)
    z = axis_angle_to_quat((0.0, 0.0, 1.0), yaw)
    return quat_multiply(z, quat_multiply(y, x))


def matrix_to_sixd(matrix: ArrayLike) -> jax.Array:
    """The 6D representation by rows: the first two ROWS of the matrix, one after the other.

    Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", CVPR 2019, keep
    two columns; PyTorch3D, and the data sets made with it, keep two rows.

    Args:
      matrix: rotation matrix. [..., 3, 3]

    Returns:
      Rows 0 and 1. [..., 6]
    """
    m = _matrix(matrix)
    return m[..., :2, :].reshape(*m.shape[:-2], 6)


def sixd_to_matrix(sixd: ArrayLike) -> jax.Array:
    """The rotation matrix nearest to its first row, by Gram-Schmidt (Zhou et al. 2019, eq. 15).

    Finite for every finite input, but not a rotation if the two rows are parallel or zero.

    Args:
      sixd: two rows of any length and angle. [..., 6]

    Returns:
      Rotation matrix with these as its first two rows, made orthonormal. [..., 3, 3]
    """
    sixd = _array(sixd, 6)
    first, second = _unit(sixd[..., :3]), sixd[..., 3:]
    second = _unit(second - jnp.sum(first * second, axis=-1, keepdims=True) * first)
    return jnp.stack([first, second, _cross(first, second)], axis=-2)


def wxyz_to_xyzw(quat: ArrayLike) -> jax.Array:
    """Moves the scalar part to the end, for a format that has it there. [..., 4] -> [..., 4]."""
    return jnp.roll(_array(quat, 4), -1, axis=-1)


def xyzw_to_wxyz(quat: ArrayLike) -> jax.Array:
    """Moves the scalar part to the front, where this library has it. [..., 4] -> [..., 4]."""
    return jnp.roll(_array(quat, 4), 1, axis=-1)


def random_quat(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws orientations uniformly over all rotations (a normalised 4D Gaussian). [*shape, 4]."""
    return quat_normalise(jax.random.normal(key, (*shape, 4)))


def _array(value: ArrayLike, size: int) -> jax.Array:
    """`value` as a floating-point array whose last axis has length `size`."""
    array = jnp.asarray(value)
    array = array.astype(jnp.result_type(array, float))
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"expected a last axis of length {size}, got shape {array.shape}")
    return array


def _matrix(value: ArrayLike) -> jax.Array:
    matrix = _array(value, 3)
    if matrix.shape[-2:] != (3, 3):
        raise ValueError(f"expected a matrix of shape [..., 3, 3], got {matrix.shape}")
    return matrix


def _components(array: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.unstack(array, axis=-1))


def _cross(a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.cross`, in a form that XLA fuses better."""
    (ax, ay, az), (bx, by, bz) = _components(a), _components(b)
    return jnp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def _unit(vector: jax.Array) -> jax.Array:
    """Scales to unit length; leaves a vector without direction as it is, with a finite gradient."""
    squared = jnp.sum(vector**2, axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.where(squared < _TINY, 1.0, squared))


def _norm(vector: jax.Array) -> jax.Array:
    """Euclidean length, with a zero gradient at zero."""
    squared = jnp.sum(vector**2, axis=-1)
    null = squared < _TINY
    return jnp.where(null, 0.0, jnp.sqrt(jnp.where(null, 1.0, squared)))


def _identity_like(quat: jax.Array) -> jax.Array:
    identity = jnp.array([1.0, 0.0, 0.0, 0.0], quat.dtype)
    return jnp.broadcast_to(identity, quat.shape)
