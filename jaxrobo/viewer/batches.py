"""Draws the pieces of all simulations with viser, all of one form at once."""

from typing import Any

import numpy as np
import trimesh

from jaxrobo.viewer import shapes
from jaxrobo.viewer.player import Player
from jaxrobo.viewer.session import NOBODY, Frame

_TAKEN = (255, 190, 40)
"""What the simulation that is taken over is tinted with."""


def make_batches(server: Any, player: Player, frame: Frame, places: np.ndarray) -> list["Batch"]:
    """Adds everything that can be seen to the scene of a viser server.

    Args:
      server: the server.
      player: whose simulations.
      frame: where they are now.
      places: where each simulation stands, m. [n, 3]
    """
    kinds = sorted({*_kinds(player.looks)})
    return [Batch(server, player, form, opaque, frame, places) for form, opaque in kinds]


class Batch:
    """All pieces of one form in all simulations: simulation by simulation, those of one together.

    Attributes:
      rows: which pieces of the looks they are.
      handle: what viser moves.
    """

    def __init__(
        self,
        server: Any,
        player: Player,
        form: str,
        opaque: bool,
        frame: Frame,
        places: np.ndarray,
    ) -> None:
        looks, n = player.looks, player.num_envs
        self.rows = np.array([i for i, k in enumerate(_kinds(looks)) if k == (form, opaque)])
        self._colours = (255 * looks.rgba[self.rows, :3]).astype(np.uint8)
        self._num_envs = n
        vertices, faces = _mesh(player.env.visual_model, form)
        pos, quat = self._poses(frame, places)
        self.handle = server.scene.add_batched_meshes_simple(
            f"/simulations/{form}{'' if opaque else ' (transparent)'}",
            vertices,
            faces,
            quat,
            pos,
            batched_scales=np.tile(looks.size[self.rows], (n, 1)).astype(np.float32),
            batched_colors=np.tile(self._colours, (n, 1)),
            opacity=None if opaque else float(looks.rgba[self.rows, 3].min()),
            lod="off",
            flat_shading=form != shapes.SPHERE,
            cast_shadow=False,
            receive_shadow=False,
        )

    def move(self, frame: Frame, places: np.ndarray) -> None:
        """Puts them where they are now."""
        self.handle.batched_positions, self.handle.batched_wxyzs = self._poses(frame, places)

    def paint(self, taken: int) -> None:
        """Gives them their colours; the simulation that is taken over has one of its own."""
        colours = np.tile(self._colours, (self._num_envs, 1, 1))
        if taken != NOBODY:
            colours[taken] = (0.4 * colours[taken] + 0.6 * np.array(_TAKEN)).astype(np.uint8)
        self.handle.batched_colors = colours.reshape(-1, 3)

    def _poses(self, frame: Frame, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pos = frame.pos[:, self.rows] + places[:, None]
        return pos.reshape(-1, 3).astype(np.float32), frame.quat[:, self.rows].reshape(-1, 4)


def _kinds(looks: shapes.Pieces) -> list[tuple[str, bool]]:
    """What goes into one batch: the form, and whether it's opaque."""
    return [(form, bool(a >= 1)) for form, a in zip(looks.form, looks.rgba[:, 3], strict=True)]


def _mesh(model: Any, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a form."""
    match form:
        case shapes.BOX:
            made = trimesh.creation.box((2.0, 2.0, 2.0))
        case shapes.CYLINDER:
            made = trimesh.creation.cylinder(1.0, 2.0, sections=20)
        case shapes.SPHERE:
            made = trimesh.creation.icosphere(subdivisions=2)
        case _:
            return shapes.mesh(model, form)
    return made.vertices, made.faces
