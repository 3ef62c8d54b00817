"""What a MuJoCo model looks like: a list of boxes, cylinders, spheres and meshes, and their poses.

All pieces of one form in all simulations are one batch for whoever draws them, so that a frame is a
few arrays whatever the model.
"""

import math
from typing import NamedTuple

import jax
import mujoco
import numpy as np
from flax import struct

from jaxrobo.physics import PhysicsState
from jaxrobo.physics.rotations import quat_multiply, quat_rotate

BOX, CYLINDER, SPHERE = "(box)", "(cylinder)", "(sphere)"
"""Forms of half size 1, along z; any other name is that of a mesh of the model."""

_VISIBLE_GROUPS = 3
"""Groups below this are what MuJoCo's own viewer shows at first."""

_LEVEL = 1 - 1e-6
"""The least cosine between a horizontal plane's normal and the world's z."""

_TYPES = mujoco.mjtGeom


@struct.dataclass
class Pieces:
    """`k` pieces of the looks of a model.

    Attributes:
      body: the body that each is fixed to. [k]
      pos: where it is in the body's frame, m. [k, 3]
      quat: how it's turned in the body's frame, wxyz. [k, 4]
      size: factors on the form, m; 1 for a mesh. [k, 3]
      rgba: its colour, 0 to 1. [k, 4]
      form: what each is.
    """

    body: np.ndarray
    pos: np.ndarray
    quat: np.ndarray
    size: np.ndarray
    rgba: np.ndarray
    form: tuple[str, ...] = struct.field(pytree_node=False)


class _Piece(NamedTuple):
    body: int
    pos: np.ndarray
    quat: np.ndarray
    size: np.ndarray
    rgba: np.ndarray
    form: str


def pieces(model: mujoco.MjModel) -> Pieces:
    """The pieces of all geoms and sites that can be seen, but planes and height fields.

    A capsule is a cylinder and two spheres.
    """
    found: list[_Piece] = []
    for i in _visible_geoms(model):
        place = model.geom_bodyid[i], model.geom_pos[i], model.geom_quat[i]
        kind = model.geom_type[i]
        mesh = _mesh_name(model, model.geom_dataid[i]) if kind == _TYPES.mjGEOM_MESH else ""
        found += _split(kind, *place, model.geom_size[i], _colour(model, i), mesh)
    for i in range(model.nsite):
        if model.site_group[i] < _VISIBLE_GROUPS and (rgba := model.site_rgba[i])[3] > 0:
            place = model.site_bodyid[i], model.site_pos[i], model.site_quat[i]
            found += _split(model.site_type[i], *place, model.site_size[i], rgba, "")
    column = lambda name, *shape: np.array([getattr(p, name) for p in found]).reshape(-1, *shape)
    return Pieces(
        body=column("body").astype(int),
        pos=column("pos", 3),
        quat=column("quat", 4),
        size=column("size", 3),
        rgba=column("rgba", 4),
        form=tuple(piece.form for piece in found),
    )


def mesh(model: mujoco.MjModel, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[v, 3]` in m and faces `[f, 3]` of a mesh of the model."""
    m = model.mesh(name)
    vertices = model.mesh_vert[m.vertadr[0] : m.vertadr[0] + m.vertnum[0]]
    return vertices, model.mesh_face[m.faceadr[0] : m.faceadr[0] + m.facenum[0]]


def poses(looks: Pieces, data: PhysicsState) -> tuple[jax.Array, jax.Array]:
    """Positions `[k, 3]` in m and orientations `[k, 4]`, wxyz, of the pieces in one simulation."""
    xpos, xquat = data.xpos[looks.body], data.xquat[looks.body]
    return xpos + quat_rotate(xquat, looks.pos), quat_multiply(xquat, looks.quat)


def grid(model: mujoco.MjModel, num_envs: int) -> np.ndarray:
    """Where the simulations stand, `[n, 3]` in m: side by side in a square around the origin.

    They are as far apart as the model says it's large (`stat.extent`), and as its geoms are wide.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    solid = model.geom_type != _TYPES.mjGEOM_PLANE
    centre, radius = data.geom_xpos[solid, :2], model.geom_rbound[solid, None]
    width = np.ptp(np.concatenate([centre - radius, centre + radius, [[0.0, 0.0]]]), axis=0).max()
    columns = math.ceil(math.sqrt(num_envs))
    row, column = np.divmod(np.arange(num_envs), columns)
    places = np.stack([column, row, np.zeros(num_envs)], axis=1)
    return max(width, model.stat.extent) * (places - [(columns - 1) / 2, (columns - 1) / 2, 0])


def floor(model: mujoco.MjModel) -> float:
    """The height of the lowest horizontal plane that can be seen, m; 0 if there's none."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    planes = (i for i in _visible_geoms(model) if model.geom_type[i] == _TYPES.mjGEOM_PLANE)
    level = (i for i in planes if data.geom_xmat[i, 8] > _LEVEL)
    return min((float(data.geom_xpos[i, 2]) for i in level), default=0.0)


def _visible_geoms(model: mujoco.MjModel) -> list[int]:
    in_group = np.flatnonzero(model.geom_group < _VISIBLE_GROUPS)
    return [i for i in in_group.tolist() if _colour(model, i)[3] > 0]


def _split(
    kind: int,
    body: int,
    pos: np.ndarray,
    quat: np.ndarray,
    size: np.ndarray,
    rgba: np.ndarray,
    mesh_name: str,
) -> list[_Piece]:
    """The pieces of a geom or site."""
    r, half = size[:2]
    piece = lambda form, size, pos=pos: _Piece(body, pos, quat, np.asarray(size), rgba, form)
    match _TYPES(kind):
        case _TYPES.mjGEOM_BOX:
            return [piece(BOX, size)]
        case _TYPES.mjGEOM_SPHERE:
            return [piece(SPHERE, [r, r, r])]
        case _TYPES.mjGEOM_ELLIPSOID:
            return [piece(SPHERE, size)]
        case _TYPES.mjGEOM_CYLINDER:
            return [piece(CYLINDER, [r, r, half])]
        case _TYPES.mjGEOM_CAPSULE:
            end = np.zeros(3)
            mujoco.mju_rotVecQuat(end, np.array([0.0, 0.0, half]), quat)
            balls = [piece(SPHERE, [r, r, r], pos + way * end) for way in (-1, 1)]
            return [piece(CYLINDER, [r, r, half]), *balls]
        case _TYPES.mjGEOM_MESH:
            return [piece(mesh_name, np.ones(3))]
    return []


def _colour(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """A geom's own colour, or its material's while its own is MuJoCo's default."""
    own, material = model.geom_rgba[geom], model.geom_matid[geom]
    if material >= 0 and np.array_equal(own, np.float32([0.5, 0.5, 0.5, 1.0])):
        return model.mat_rgba[material]
    return own


def _mesh_name(model: mujoco.MjModel, index: int) -> str:
    return model.mesh(index).name if index >= 0 else ""
