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

    Returns:
      A batch for every form and opacity that there is.
    """
    kinds = sorted({*_kinds(player.looks)})
    return [Batch(server, player, form, opacity, frame, places) for form, opacity in kinds]


class Batch:
    """All pieces of one form and opacity in all simulations, those of one simulation together.

    Attributes:
      rows: which `m` pieces of the looks they are. [m]
      handle: what viser moves: `n m` pieces, those of simulation i from `i m` on.
    """

    def __init__(
        self,
        server: Any,
        player: Player,
        form: str,
        opacity: float,
        frame: Frame,
        places: np.ndarray,
    ) -> None:
        """Adds them to the scene.

        Args:
          server: the server.
          player: whose simulations.
          form: see `shapes.Pieces`.
          opacity: 0 to 1.
          frame: where they are now.
          places: where each simulation stands, m. [n, 3]
        """
        looks, n = player.looks, player.num_envs
        self.rows = np.array([i for i, k in enumerate(_kinds(looks)) if k == (form, opacity)])
        self._colours = (255 * looks.rgba[self.rows, :3]).astype(np.uint8)
        self._num_envs = n
        vertices, faces = _mesh(player.env.visual_model, form)
        pos, quat = self._poses(frame, places)
        self.handle = server.scene.add_batched_meshes_simple(
            f"/simulations/{form}{'' if opacity == 1 else f' ({opacity})'}",
            vertices,
            faces,
            quat,
            pos,
            batched_scales=np.tile(looks.size[self.rows], (n, 1)).astype(np.float32),
            batched_colors=np.tile(self._colours, (n, 1)),
            opacity=None if opacity == 1 else opacity,
            lod="off",
            flat_shading=form != shapes.SPHERE,
            cast_shadow=False,
            receive_shadow=False,
        )

    def move(self, frame: Frame, places: np.ndarray) -> None:
        """Puts them where they are now.

        Args:
          frame: where that is, in the simulations' own coordinates.
          places: where each simulation stands, m. [n, 3]
        """
        self.handle.batched_positions, self.handle.batched_wxyzs = self._poses(frame, places)

    def paint(self, taken: int) -> None:
        """Gives them their colours; those of the simulation that is taken over are tinted.

        Args:
          taken: which one that is, or `NOBODY`.
        """
        colours = np.tile(self._colours, (self._num_envs, 1, 1))
        if taken != NOBODY:
            colours[taken] = (0.4 * colours[taken] + 0.6 * np.array(_TAKEN)).astype(np.uint8)
        self.handle.batched_colors = colours.reshape(-1, 3)

    def _poses(self, frame: Frame, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[n m, 3]`, m, and orientations `[n m, 4]`, wxyz."""
        pos = frame.pos[:, self.rows] + places[:, None]
        return pos.reshape(-1, 3).astype(np.float32), frame.quat[:, self.rows].reshape(-1, 4)


def _kinds(looks: shapes.Pieces) -> list[tuple[str, float]]:
    """What goes into one batch, of each piece: the form, and the opacity, 0 to 1."""
    opacity = np.clip(looks.rgba[:, 3], 0, 1).astype(float).tolist()
    return list(zip(looks.form, opacity, strict=True))


def _mesh(model: Any, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[v, 3]`, m, and faces `[f, 3]` of a form."""
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
