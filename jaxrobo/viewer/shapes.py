"""What a MuJoCo model looks like: boxes, cylinders, capsules, spheres and meshes, fixed to bodies.

What is fixed to one body is a part or two, so a frame is a few poses whatever the model.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import mujoco
import numpy as np

from jaxrobo.physics import PhysicsState

BOX, CYLINDER, CAPSULE, SPHERE = "(box)", "(cylinder)", "(capsule)", "(sphere)"
"""Forms along z; any other name is that of a mesh of the model."""

_VISIBLE_GROUPS = 3
"""Groups below this are what MuJoCo's own viewer shows at first."""

_LEVEL = 1 - 1e-6
"""The least cosine between a horizontal plane's normal and the world's z."""

_TYPES = mujoco.mjtGeom


class Piece(NamedTuple):
    """What a geom or site looks like.

    Attributes:
      form: what it is.
      size: half of it in each direction, m, of a capsule without its ends; 1 for a mesh. [3]
      pos: where it is in the body's frame, m. [3]
      quat: how it's turned in the body's frame, wxyz. [4]
      rgba: its colour, 0 to 1. [4]
    """

    form: str
    size: np.ndarray
    pos: np.ndarray
    quat: np.ndarray
    rgba: np.ndarray


class Part(NamedTuple):
    """All opaque pieces of a body, or all its others.

    Attributes:
      body: which body.
      opaque: whether light doesn't go through.
      pieces: what it's made of.
    """

    body: int
    opaque: bool
    pieces: list[Piece]


def parts(model: mujoco.MjModel) -> list[Part]:
    """The parts of all geoms and sites that can be seen, but planes and height fields."""
    found: dict[tuple[int, bool], list[Piece]] = {}
    for body, piece in _pieces(model):
        found.setdefault((body, bool(piece.rgba[3] == 1)), []).append(piece)
    return [Part(*key, pieces) for key, pieces in found.items()]


def mesh(model: mujoco.MjModel, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[v, 3]` in m and faces `[f, 3]` of a mesh of the model."""
    m = model.mesh(name)
    vertices = model.mesh_vert[m.vertadr[0] : m.vertadr[0] + m.vertnum[0]]
    return vertices, model.mesh_face[m.faceadr[0] : m.faceadr[0] + m.facenum[0]]


def poses(looks: list[Part], data: PhysicsState) -> tuple[jax.Array, jax.Array]:
    """Positions `[..., k, 3]` in m and orientations `[..., k, 4]`, wxyz, of `k` parts."""
    body = np.array([part.body for part in looks], int)
    return data.xpos[..., body, :], data.xquat[..., body, :]


def spacing(model: mujoco.MjModel) -> float:
    """How far apart simulations stand, m.

    It's as much as the model says it's large (`stat.extent`), and as its geoms are wide.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    solid = model.geom_type != _TYPES.mjGEOM_PLANE
    centre, radius = data.geom_xpos[solid, :2], model.geom_rbound[solid, None]
    width = np.ptp(np.concatenate([centre - radius, centre + radius, [[0.0, 0.0]]]), axis=0).max()
    return max(width, model.stat.extent)


def grid(model: mujoco.MjModel, num_envs: int) -> np.ndarray:
    """Where the simulations stand, `[n, 3]` in m: side by side in a square around the origin."""
    columns = math.ceil(math.sqrt(num_envs))
    row, column = np.divmod(np.arange(num_envs), columns)
    places = np.stack([column, row, np.zeros(num_envs)], axis=1)
    return spacing(model) * (places - [(columns - 1) / 2, (columns - 1) / 2, 0])


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


def _pieces(model: mujoco.MjModel) -> Iterator[tuple[int, Piece]]:
    """All that can be seen, with its body."""
    for i in _visible_geoms(model):
        kind, dataid = model.geom_type[i], model.geom_dataid[i]
        mesh = model.mesh(dataid).name if kind == _TYPES.mjGEOM_MESH else ""
        form, size = _form(kind, model.geom_size[i], mesh)
        place = model.geom_pos[i], model.geom_quat[i], _colour(model, i).clip(0, 1)
        if form:
            yield int(model.geom_bodyid[i]), Piece(form, size, *place)
    for i in range(model.nsite):
        if model.site_group[i] < _VISIBLE_GROUPS and (rgba := model.site_rgba[i])[3] > 0:
            form, size = _form(model.site_type[i], model.site_size[i])
            piece = Piece(form, size, model.site_pos[i], model.site_quat[i], rgba.clip(0, 1))
            yield int(model.site_bodyid[i]), piece


def _form(kind: int, size: np.ndarray, mesh: str = "") -> tuple[str, np.ndarray]:
    """The form of a geom or site, empty if it isn't drawn, and half its size, m."""
    r, half = size[:2]
    match _TYPES(kind):
        case _TYPES.mjGEOM_BOX:
            return BOX, size
        case _TYPES.mjGEOM_SPHERE:
            return SPHERE, np.array([r, r, r])
        case _TYPES.mjGEOM_ELLIPSOID:
            return SPHERE, size
        case _TYPES.mjGEOM_CYLINDER:
            return CYLINDER, np.array([r, r, half])
        case _TYPES.mjGEOM_CAPSULE:
            return CAPSULE, np.array([r, r, half])
        case _TYPES.mjGEOM_MESH:
            return mesh, np.ones(3)
    return "", size


def _colour(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """A geom's own colour, or its material's while its own is MuJoCo's default."""
    own, material = model.geom_rgba[geom], model.geom_matid[geom]
    if material >= 0 and np.array_equal(own, np.float32([0.5, 0.5, 0.5, 1.0])):
        return model.mat_rgba[material]
    return own
