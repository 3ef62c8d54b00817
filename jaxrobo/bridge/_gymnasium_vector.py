"""Our environments as gymnasium's `VectorEnv`."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from jaxrobo.bridge._batch import Batch, HostObservation, Step
from jaxrobo.bridge._camera import Camera, metadata
from jaxrobo.bridge._spaces import action_space, observation_space
from jaxrobo.env import Env


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` simulations, stepped by one jitted program.

    Does what `gymnasium.vector.SyncVectorEnv` of as many `GymnasiumEnv` would, with the same
    episodes from the same seeds. Each key of `infos` has a mask beside it, named with a leading
    `_`: metrics are there for the simulations that made a step. With `SAME_STEP`, the metrics of a
    step that ends an episode are in "final_info", and its last observation in "final_obs".

    Attributes:
      env: the simulations, a `jaxrobo.env.Vectorised`.
    """

    def __init__(
        self,
        env: Env,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        """Prepares the simulations.

        Args:
          env: one simulation, without automatic resets.
          num_envs: how many.
          autoreset_mode: of gymnasium, or its value. `SAME_STEP`: the step that ends an episode
            starts the next, and returns its first observation. `NEXT_STEP`: the step after it does,
            and ignores the action. `DISABLED`: `reset` does, with a `reset_mask`.
          render_mode: "rgb_array" for pictures of 640 x 480; None for none.

        Raises:
          ValueError: if `num_envs` isn't positive, on an unknown mode, or if an environment without
            a MuJoCo model is to be drawn.
          RendererUnavailable: if this machine can't draw.
        """
        mode = _autoreset_mode(autoreset_mode)
        self._camera = Camera(env, render_mode)
        self._batch = Batch(env, num_envs, mode.name.lower(), seed=self.np_random_seed)
        self.env = self._batch.env
        self.num_envs = num_envs
        self.metadata = metadata(env) | {"autoreset_mode": mode}
        self.render_mode = render_mode
        self.single_observation_space = observation_space(env.observation_spec)
        self.single_action_space = action_space(env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[HostObservation, dict[str, Any]]:
        """Starts an episode in each simulation.

        Args:
          seed: simulation i begins with the first episode of `seed + i`, or of `seed[i]`. None goes
            on with the episodes of its last seed, at first with those of `np_random_seed + i`.
          options: {"reset_mask": a bool array `[num_envs]`} starts episodes only where it's true.

        Returns:
          The observations of all `[num_envs, ...]`, numpy arrays, and an empty dict.

        Raises:
          ValueError: on another option, a mask of a wrong shape or nowhere true, or another number
            of seeds.
          TypeError: if the mask isn't a numpy array of bool.
          RuntimeError: if the first reset is not one of all simulations.
          gymnasium.error.Error: on a seed that isn't an int, or is negative.
        """
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        if options:
            raise ValueError(f"unknown reset option {next(iter(options))!r}; valid: reset_mask")
        return self._batch.reset(self._seeds(seed), mask), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[HostObservation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances all simulations by one control step.

        Args:
          actions: in [-1, 1], `[num_envs, action_size]`.

        Returns:
          Observations, rewards (float64, as gymnasium has them), terminations, truncations
          (`[num_envs, ...]`, numpy arrays of the caller's own) and infos.

        Raises:
          RuntimeError: before the first `reset`; with `DISABLED`, where an episode is over.
          ValueError: on actions of a wrong shape.
        """
        step = self._batch.step(actions)
        rewards = step.reward.astype(np.float64)
        return step.obs, rewards, step.terminated, step.truncated, _infos(step)

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture of each simulation, as `GymnasiumEnv.render` has it.

        Raises:
          RuntimeError: before the first `reset`, or without a render mode.
        """
        return self._camera.take(self._batch.state)

    def close_extras(self, **kwargs: Any) -> None:
        """Frees what draws."""
        self._camera.close()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            super().reset(seed=seed)
            return [seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"got {len(seed)} seeds for {self.num_envs} simulations")
        for each in seed:
            seeding.np_random(each)  # refuses what isn't a seed
        return list(seed)

    def _mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"reset_mask must be a numpy array of bool, got {kind}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {mask.shape}, expected {(self.num_envs,)}")
        if not mask.any():
            raise ValueError("reset_mask is true nowhere")
        return mask


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        valid = ", ".join(m.value for m in AutoresetMode)
        raise ValueError(f"unknown autoreset mode {mode!r}; valid: {valid}") from None


def _infos(step: Step) -> dict[str, Any]:
    if step.final_obs is None:
        return _masked(step.metrics, step.live) if step.live.any() else {}
    done = step.terminated | step.truncated
    final_obs = np.full(done.shape, None, dtype=object)
    for i in np.flatnonzero(done):
        final_obs[i] = jax.tree.map(lambda x, i=i: x[i], step.final_obs)
    final = {"final_obs": final_obs, "final_info": _masked(step.metrics, done)}
    final |= {"_final_obs": done, "_final_info": done.copy()}
    return final if done.all() else _masked(step.metrics, ~done) | final


def _masked(metrics: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric where the mask is true, 0 elsewhere, and the mask beside it."""
    values = {k: np.where(mask, v, 0) for k, v in metrics.items()}
    return values | {f"_{k}": mask.copy() for k in metrics}
