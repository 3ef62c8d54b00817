"""Draws the parts of all simulations with viser, each of them in all simulations at once.

A browser without a GPU takes its time by the number of parts, and of their vertices.
"""

from typing import Any

import mujoco
import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb

from jaxrobo.viewer import shapes
from jaxrobo.viewer.player import Player
from jaxrobo.viewer.session import Frame

_ERRORS = (1 / 4000, 1 / 2000, 1 / 1000, 1 / 500, 1 / 250)
"""How far a side may be inside what is round, as shares of the model's extent; the least that keeps
to `_MAX_VERTICES`, or else the largest."""

_SIDES = (4, 32)
"""The fewest and the most."""

_MAX_VERTICES = 20_000
"""In all simulations."""


def make_batches(server: Any, player: Player, frame: Frame, places: np.ndarray) -> list["Batch"]:
    """Adds everything that can be seen to the scene of a viser server.

    Args:
      server: the server.
      player: whose simulations.
      frame: where they are now.
      places: where each simulation stands, m. [n, 3]

    Returns:
      A batch for every part.
    """
    model, looks = player.env.visual_model, player.looks
    for error in _ERRORS:
        meshes = [part_mesh(model, part, error * model.stat.extent) for part in looks]
        if player.num_envs * sum(len(mesh.vertices) for mesh in meshes) <= _MAX_VERTICES:
            break
    return [Batch(server, player, i, mesh, frame, places) for i, mesh in enumerate(meshes)]


def part_mesh(model: mujoco.MjModel, part: shapes.Part, error: float) -> trimesh.Trimesh:
    """A coloured mesh of a part in its body's frame, m.

    Sides of what is round are off it by at most the error, m, but have their limits (`_SIDES`).
    """
    meshes = []
    for piece in part.pieces:
        mesh = _piece_mesh(model, piece, error)
        mesh.apply_transform(trimesh.transformations.quaternion_matrix(piece.quat))
        mesh.apply_translation(piece.pos)
        mesh.visual.vertex_colors = np.append(_linear(piece.rgba[:3]), piece.rgba[3])
        meshes.append(mesh)
    return trimesh.util.concatenate(meshes)


class Batch:
    """A part in all simulations.

    Attributes:
      handle: what viser moves: `n` instances.
    """

    def __init__(
        self,
        server: Any,
        player: Player,
        index: int,
        mesh: trimesh.Trimesh,
        frame: Frame,
        places: np.ndarray,
    ) -> None:
        """Adds it to the scene.

        Args:
          server: the server.
          player: whose simulations.
          index: which part of the looks.
          mesh: what it looks like.
          frame: where it is now.
          places: where each simulation stands, m. [n, 3]
        """
        part, self._index = player.looks[index], index
        body = player.env.visual_model.body(part.body).name.replace("/", " ")
        self._pos, self._quat = pos, quat = self._poses(frame, places)
        self.handle = server.scene.add_batched_glb(
            f"/simulations/{index} {body}",
            _gltf(mesh, part.opaque),
            quat,
            pos,
            lod="off",
            cast_shadow=False,
            receive_shadow=False,
        )

    def move(self, frame: Frame, places: np.ndarray) -> None:
        """Puts it where it is now; what stays where it was isn't sent.

        Args:
          frame: where that is, in the simulations' own coordinates.
          places: where each simulation stands, m. [n, 3]
        """
        pos, quat = self._poses(frame, places)
        if not np.array_equal(pos, self._pos) or not np.array_equal(quat, self._quat):
            self.handle.batched_positions, self.handle.batched_wxyzs = pos, quat
            self._pos, self._quat = pos, quat

    def _poses(self, frame: Frame, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[n, 3]`, m, and orientations `[n, 4]`, wxyz."""
        pos = frame.pos[:, self._index] + places
        return pos.astype(np.float32), frame.quat[:, self._index].astype(np.float32)


def _piece_mesh(model: mujoco.MjModel, piece: shapes.Piece, error: float) -> trimesh.Trimesh:
    radius, _, half = piece.size
    n = _sides(piece.size[:2].max(), error)
    match piece.form:
        case shapes.BOX:
            return trimesh.creation.box(2 * piece.size)
        case shapes.CYLINDER:
            angle = 2 * np.pi * np.arange(n) / n
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            rims = [np.stack([x, y, np.full(n, z)], axis=1) for z in (-half, half)]
            return trimesh.convex.convex_hull(np.concatenate(rims))
        case shapes.CAPSULE:
            unit = trimesh.creation.capsule(2 * half / radius, 1.0, count=[n // 2, n])
            return unit.apply_scale(radius)  # as trimesh leaves out faces below 1e-8 m^2
        case shapes.SPHERE:
            angle = np.linspace(-np.pi / 2, np.pi / 2, (n + 1) // 2 + 1)
            profile = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            return trimesh.creation.revolve(profile, sections=n).apply_scale(piece.size)
    return trimesh.Trimesh(*shapes.mesh(model, piece.form))


def _sides(radius: float, error: float) -> int:
    """How many sides within a circle are off it by at most the error, both m."""
    enough = np.pi / np.arccos(1 - min(error / radius, 1.0))
    return int(np.clip(np.ceil(enough), *_SIDES))


def _gltf(mesh: trimesh.Trimesh, opaque: bool) -> bytes:
    """As binary glTF, whose materials are of metal unless they say otherwise."""

    def paint(tree: dict) -> None:
        surface = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        mode = "OPAQUE" if opaque else "BLEND"
        tree["materials"] = [{"pbrMetallicRoughness": surface, "alphaMode": mode}]
        tree["meshes"][0]["primitives"][0]["material"] = 0

    return export_glb(trimesh.Scene(mesh), include_normals=False, tree_postprocessor=paint)


def _linear(srgb: np.ndarray) -> np.ndarray:
    """Light, as glTF wants it, of colours as screens take them (IEC 61966-2-1), both 0 to 1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
