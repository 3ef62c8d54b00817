"""Pictures of simulations while they run."""

import atexit
import contextlib
import weakref
from typing import Any

import jax
import mujoco
import numpy as np

from jaxrobo._opengl import canvas, choose_backend
from jaxrobo.env import Env, State
from jaxrobo.rendering import look, own_model, viewpoint

_SIZE = 640, 480


class Camera:
    """Draws one state after another as `jaxrobo.rendering.render` does, on one canvas.

    The canvas is made for the first picture, which takes several times as long as any other, and
    kept until `close`.
    """

    def __init__(self, env: Env, render_mode: str | None) -> None:
        """Checks that pictures are possible if they're wanted.

        Args:
          env: what is drawn.
          render_mode: "rgb_array", or None for no pictures.

        Raises:
          ValueError: on another mode, or if the environment has no MuJoCo model.
          RendererUnavailable: if this machine can't draw.
        """
        self._model = None
        self._canvas = None
        self._opened = contextlib.ExitStack()
        weakref.finalize(self, self._opened.close).atexit = False  # too late then
        if render_mode is None:
            return
        if render_mode != "rgb_array":
            raise ValueError(f"unknown render mode {render_mode!r}; valid: None, 'rgb_array'")
        if not _has_model(env):
            name = type(env.unwrapped).__name__
            raise ValueError(f"{name} can't be drawn: it has no MuJoCo model")
        choose_backend()
        self._model = env.visual_model
        self._view = viewpoint(self._model, None)

    def take(self, states: State | None) -> tuple[np.ndarray, ...]:
        """A picture of each of `[n]` states: `[480, 640, 3]`, uint8.

        Raises:
          RuntimeError: if no pictures were wanted, or there's no state yet.
          RendererUnavailable: if this machine can't draw.
        """
        if self._model is None:
            raise RuntimeError("render needs render_mode='rgb_array' where the environment is made")
        if states is None:
            raise RuntimeError("call reset before render")
        seen = jax.device_get(jax.vmap(look)(states))
        models = [own_model(self._model, seen.model, i) for i in range(len(seen.qpos))]
        if self._canvas is None:
            self._canvas = self._opened.enter_context(canvas(models[0], *_SIZE))
            atexit.register(self._opened.close)  # before OpenGL, which has registered itself by now
        data = mujoco.MjData(self._model)
        pictures = []
        for i, model in enumerate(models):
            data.qpos[:] = seen.qpos[i]
            data.mocap_pos[:] = seen.mocap_pos[i]
            data.mocap_quat[:] = seen.mocap_quat[i]
            self._canvas.draw(model, data, self._view, mujoco.MjrRect(0, 0, *_SIZE))
            pictures.append(np.ascontiguousarray(self._canvas.read()))
        return tuple(pictures)

    def close(self) -> None:
        """Frees the canvas; the next picture makes another."""
        self._canvas = None
        self._opened.close()


def metadata(env: Env) -> dict[str, Any]:
    """What gymnasium's `metadata` says about pictures; they play in real time."""
    if not _has_model(env):
        return {"render_modes": []}
    return {"render_modes": ["rgb_array"], "render_fps": 1 / (env.dt * env.steps_per_action)}


def _has_model(env: Env) -> bool:
    return hasattr(env.unwrapped, "visual_model")
