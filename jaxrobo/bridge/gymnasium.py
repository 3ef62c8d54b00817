"""Our environments as gymnasium's `Env` and `VectorEnv`, for learners outside JAX.

What is observed, rewarded and measured becomes numpy arrays: each step waits for the simulations
and, where they run on an accelerator, copies that to the host.
"""

from typing import Any

import jax
import numpy as np

try:
    import gymnasium
except ImportError as error:
    raise ImportError(
        f"jaxrobo.bridge.gymnasium needs gymnasium ({error}): pip install 'jaxrobo[gymnasium]'"
    ) from error

from jaxrobo.bridge._batch import (
    Episodes,
    HostObservation,
    compiled,
    of_spec,
    seed_keys,
    to_numpy,
)
from jaxrobo.bridge._camera import Camera, metadata
from jaxrobo.bridge._gymnasium_vector import GymnasiumVectorEnv
from jaxrobo.bridge._spaces import action_space, observation_space
from jaxrobo.env import Env, State

__all__ = ["GymnasiumEnv", "GymnasiumVectorEnv", "action_space", "observation_space"]


class GymnasiumEnv(gymnasium.Env):
    """One simulation.

    The info of a step has its metrics, that of a reset is empty. A seed stands for an episode and
    all that follow it: `jax.random.key(seed % 2**32)` is split at every reset.

    Attributes:
      env: the simulation, a `jaxrobo.env.Env`.
    """

    def __init__(self, env: Env, render_mode: str | None = None) -> None:
        """Prepares the simulation.

        Args:
          env: an environment without automatic resets.
          render_mode: "rgb_array" for pictures of 640 x 480; None for none.

        Raises:
          ValueError: on an unknown render mode, or if an environment without a MuJoCo model is to
            be drawn.
          RendererUnavailable: if this machine can't draw.
        """
        self.env = env
        self.metadata = metadata(env)
        self.render_mode = render_mode
        self.observation_space = observation_space(env.observation_spec)
        self.action_space = action_space(env)
        self._camera = Camera(env, render_mode)
        episodes = Episodes(env)
        self._reset, self._step = compiled(episodes.reset), compiled(episodes.step)
        self._state: State | None = None
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[HostObservation, dict[str, Any]]:
        """Starts an episode.

        Args:
          seed: fixes it and those that follow; None goes on with the episodes of the last seed, at
            first with those of `np_random_seed`.
          options: must be None or empty.

        Returns:
          The observation, numpy arrays, and an empty dict.

        Raises:
          ValueError: on any option.
          gymnasium.error.Error: on a seed that isn't an int, or is negative.
        """
        if options:
            raise ValueError(f"a reset takes no options, got {', '.join(map(repr, options))}")
        super().reset(seed=seed)
        if seed is None and self._state is not None:
            key = self._state.info["reset_key"]
        else:
            key = seed_keys([self.np_random_seed])[0]
        self._state, self._over = self._reset(key), False
        return of_spec(self.env.observation_spec, to_numpy(self._state.obs)), {}

    def step(self, action: np.ndarray) -> tuple[HostObservation, float, bool, bool, dict[str, Any]]:
        """Advances by one control step.

        Args:
          action: in [-1, 1], `[action_size]`.

        Returns:
          Observation (numpy arrays of the caller's own), reward, terminated, truncated, and the
          metrics.

        Raises:
          RuntimeError: before the first `reset`, or after the end of an episode.
          ValueError: on an action of a wrong shape.
        """
        if self._state is None:
            raise RuntimeError("call reset before step")
        if self._over:
            raise RuntimeError("the episode is over: call reset")
        action, expected = np.asarray(action, np.float32), self.action_space.shape
        if action.shape != expected:
            raise ValueError(f"an action has shape {action.shape}, expected {expected}")
        self._state = state = self._step(self._state, action)
        obs, reward, terminated, truncated, metrics = to_numpy(
            (state.obs, state.reward, state.terminated, state.truncated, state.metrics)
        )
        obs = of_spec(self.env.observation_spec, obs)
        self._over = bool(terminated | truncated)
        info = {name: value[()] for name, value in metrics.items()}
        return obs, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray:
        """A picture of where the simulation is, `[480, 640, 3]`, uint8.

        Raises:
          RuntimeError: before the first `reset`, or without a render mode.
        """
        return self._camera.take(jax.tree.map(lambda x: x[None], self._state))[0]

    def close(self) -> None:
        """Frees what draws."""
        self._camera.close()
