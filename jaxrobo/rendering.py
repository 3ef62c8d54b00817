"""Films of a policy: record a trajectory, render its frames, write a video.

Works without a display, and needs neither the engine nor the device that ran the physics.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrobo._files import replacing
from jaxrobo._opengl import RendererUnavailable, canvas, choose_backend
from jaxrobo._video import real_time, write_video
from jaxrobo.env import Env, State
from jaxrobo.physics.native import BOUNDS
from jaxrobo.policy import Params, Policy, watched
from jaxrobo.rollout import rollout, start

__all__ = [
    "MAX_TILES",
    "RendererUnavailable",
    "Trajectory",
    "film",
    "record",
    "record_video",
    "render",
    "side_by_side",
    "write_video",
]

MAX_TILES = 9
"""Episodes that fit into one picture."""

_SIZES = {1: (640, 480), 2: (400, 300), 3: (320, 240)}
"""Width and height of a tile, pixels, by the number of columns."""

_SHADOW_MAP = 1024
_MAX_FPS = 30


@struct.dataclass
class Trajectory:
    """What `n` episodes looked like: before each of T - 1 control steps, and after the last.

    Attributes:
      qpos: joint positions, in MuJoCo's order. [n, T, nq]
      mocap_pos: positions of the mocap bodies, m. [n, T, nmocap, 3]
      mocap_quat: orientations of the mocap bodies, wxyz. [n, T, nmocap, 4]
      model: model fields of each episode's own, `[n, ...]`.
      live: False once the episode is over; its pose stays. [n, T]
    """

    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    model: dict[str, np.ndarray]
    live: np.ndarray

    def save(self, path: Path) -> None:
        """Writes an `.npz`; a file that's there is replaced at once or not at all."""
        fields = {k: getattr(self, k) for k in _POSES} | {
            f"model/{k}": v for k, v in self.model.items()
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **fields)

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """Reads what `save` wrote.

        Raises:
          ValueError: if the file isn't a trajectory.
        """
        with np.load(path) as file:
            missing = {*_POSES} - {*file.files}
            if missing:
                raise ValueError(f"{path} isn't a trajectory: it has no {min(missing)!r}")
            model = {k.removeprefix("model/"): file[k] for k in file.files if k not in _POSES}
            return cls(**{k: file[k] for k in _POSES}, model=model)


_POSES = ("qpos", "mocap_pos", "mocap_quat", "live")


def record_video(
    env: Env,
    policy: Policy,
    params: Params,
    path: Path,
    keys: jax.Array,
    fps: int | None = None,
    max_steps: int | None = None,
) -> None:
    """Films episodes side by side, in real time, until the last of them ends.

    Args:
      env: an environment on a MuJoCo model, without automatic resets.
      policy: what acts.
      params: its parameters.
      path: where to write, an `.mp4`; a file that's there is replaced.
      keys: where the episodes start (`rollout.episode_key`), up to `MAX_TILES`; a key or `[n]`.
      fps: frames a second, approximately: every k-th control step is a frame. At most 30 if None.
      max_steps: control steps to film; the time limit if None.

    Raises:
      RendererUnavailable: if this machine can't draw.
      ValueError: on no or too many keys, or as `record` does.
    """
    if not 1 <= keys.size <= MAX_TILES:
        raise ValueError(f"1 to {MAX_TILES} episodes fit into a video, got {keys.size}")
    choose_backend()  # before the work, where it's clear already that nothing can draw
    film(env, record(env, policy, params, keys, max_steps), path, fps)


def film(env: Env, trajectory: Trajectory, path: Path, fps: int | None = None) -> None:
    """Writes a video of recorded episodes side by side, in real time.

    Args:
      env: where they were recorded.
      trajectory: up to `MAX_TILES` episodes.
      path: see `record_video`.
      fps: see `record_video`.

    Raises:
      RendererUnavailable: if this machine can't draw.
    """
    stride, rate = real_time(env.dt * env.steps_per_action, fps or _MAX_FPS)
    tile = _SIZES[_columns(len(trajectory.qpos))]
    write_video(path, render(env.visual_model, trajectory, None, *tile, stride=stride), rate)


def record(
    env: Env, policy: Policy, params: Params, keys: jax.Array, steps: int | None = None
) -> Trajectory:
    """Runs one episode from each key, as `rollout.run_episode` does, and keeps what can be seen.

    Args:
      env: an environment on a MuJoCo model, without automatic resets.
      policy: what acts.
      params: its parameters.
      keys: where the episodes start, a key or `[n]`.
      steps: control steps at most; the time limit if None.

    Raises:
      ValueError: if the environment has no MuJoCo model, or neither it nor `steps` sets an end.
    """
    if not hasattr(env.unwrapped, "visual_model"):
        raise ValueError(f"{type(env.unwrapped).__name__} can't be filmed: it has no MuJoCo model")
    steps = env.time_limit if steps is None else steps
    if steps is None:
        raise ValueError("a film needs an end: give steps, or wrap the environment in TimeLimit")
    policy = watched(policy, look)
    whole = math.ceil(steps / policy.period) * policy.period

    def run(params: Params, key: jax.Array) -> Trajectory:
        end, transitions = rollout(
            env, policy, params, start(env, policy, key), whole, auto_reset=False
        )
        last = jax.tree.map(lambda x: x[None], look(end.env))
        seen = jax.tree.map(lambda *x: jnp.concatenate(x), transitions.aux["seen"], last)
        return seen.replace(model=jax.tree.map(lambda x: x[0], seen.model))

    run = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    trajectory = jax.device_get(run(params, keys.reshape(-1)))
    length = min(steps, int(trajectory.live.sum(axis=1).max()))
    return _over_time(trajectory, slice(length + 1))


def side_by_side(*trajectories: Trajectory) -> Trajectory:
    """The first episode of each, then the second of each, ...; all must have as many.

    Of two trajectories of two episodes, `render` draws each in a column of its own.
    """
    longest = max(t.qpos.shape[1] for t in trajectories)

    def pad(t: Trajectory) -> Trajectory:
        rows = np.minimum(np.arange(longest), t.qpos.shape[1] - 1)
        return _over_time(t, rows)

    interleave = lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:])
    return jax.tree.map(interleave, *map(pad, trajectories))


def render(
    mj_model: mujoco.MjModel,
    trajectory: Trajectory,
    camera: str | None = None,
    width: int = 640,
    height: int = 480,
    stride: int = 1,
) -> Iterator[np.ndarray]:
    """Draws a trajectory, frame by frame, its episodes as tiles of a grid.

    Args:
      mj_model: the model that moved.
      trajectory: how it moved.
      camera: the name of a camera of the model. If None the model's first; if it has none, MuJoCo's
        default view.
      width: of a tile, pixels.
      height: of a tile, pixels.
      stride: draws every `stride`-th row of the trajectory.

    Yields:
      Frames, `[rows * height, columns * width, 3]`, uint8.

    Raises:
      RendererUnavailable: if this machine can't draw.
      ValueError: on an unknown camera.
    """
    trajectory = _over_time(trajectory, slice(None, None, stride))
    episodes, frames = trajectory.qpos.shape[:2]
    columns = _columns(episodes)
    rows = math.ceil(episodes / columns)
    models = [own_model(mj_model, trajectory.model, i) for i in range(episodes)]
    view = viewpoint(mj_model, camera)
    data = mujoco.MjData(models[0])
    with canvas(models[0], columns * width, rows * height) as picture:
        for t in range(frames):
            for i, model in enumerate(models):
                data.qpos[:] = trajectory.qpos[i, t]
                data.mocap_pos[:] = trajectory.mocap_pos[i, t]
                data.mocap_quat[:] = trajectory.mocap_quat[i, t]
                row, column = divmod(i, columns)
                corner = column * width, (rows - 1 - row) * height  # OpenGL counts from the bottom
                picture.draw(model, data, view, mujoco.MjrRect(*corner, width, height))
            yield picture.read()


def look(state: State) -> Trajectory:
    """What can be seen of one state: a `Trajectory` without its leading axes."""
    data = state.data
    return Trajectory(data.qpos, data.mocap_pos, data.mocap_quat, data.model, state.done == 0)


def _over_time(trajectory: Trajectory, rows: slice | np.ndarray) -> Trajectory:
    """Selects rows of the time axis."""
    names = [f.name for f in dataclasses.fields(trajectory) if f.name != "model"]
    return trajectory.replace(**{name: getattr(trajectory, name)[:, rows] for name in names})


def _columns(episodes: int) -> int:
    return math.ceil(math.sqrt(episodes))


def own_model(
    mj_model: mujoco.MjModel, fields: dict[str, np.ndarray], episode: int
) -> mujoco.MjModel:
    """A copy with an episode's own fields, that computes nothing but poses and is cheap to draw."""
    model = copy.copy(mj_model)
    for name, values in fields.items():
        if name.startswith("opt.") or name in BOUNDS:
            continue
        field, own = getattr(model, name), values[episode]
        if field.shape != own.shape:
            raise ValueError(
                f"{name!r} varies between episodes, but has shape {field.shape} in the model for "
                f"pictures, not {own.shape}: what varies can't be shown"
            )
        field[:] = own
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)
    # MuJoCo's defaults (4 samples, 4096) take several times as long in software.
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = _SHADOW_MAP
    return model


def viewpoint(mj_model: mujoco.MjModel, name: str | None) -> mujoco.MjvCamera:
    """The camera of that name; the model's first if None, or MuJoCo's own if it has none.

    Raises:
      ValueError: if there's no such camera.
    """
    names = [mj_model.camera(i).name for i in range(mj_model.ncam)]
    if name is not None and name not in names:
        raise ValueError(f"unknown camera {name!r}; the model has {names}")
    camera = mujoco.MjvCamera()
    if not names:
        mujoco.mjv_defaultFreeCamera(mj_model, camera)
        return camera
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = 0 if name is None else names.index(name)
    return camera
