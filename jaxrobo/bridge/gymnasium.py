"""Our environments as a `gymnasium.vector.VectorEnv`, for learners outside JAX."""

from typing import Any

import jax
import numpy as np

from jaxrobo.env import Env, Observation, Spec, State, vectorise

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError(
        f"jaxrobo.bridge.gymnasium needs gymnasium ({error}): pip install 'jaxrobo[gymnasium]'"
    ) from error


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` simulations of an environment, stepped by one jitted program.

    A simulation that ends starts anew in the same step (`AutoresetMode.SAME_STEP`): the
    observation is then the first of the new episode, and `infos` has the last of the old one under
    "final_obs" and its metrics under "final_info". All other simulations have their metrics in
    `infos` itself. As gymnasium does, each key has a mask beside it, named with a leading `_`.

    Attributes:
      env: the simulations, a `jaxrobo.env.Vectorised`.
    """

    def __init__(self, env: Env, num_envs: int) -> None:
        """Prepares the simulations.

        Args:
          env: one simulation, without automatic resets.
          num_envs: how many.

        Raises:
          ValueError: if `num_envs` isn't positive.
        """
        self.env = vectorise(env, num_envs)
        self.num_envs = num_envs
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self.single_observation_space = observation_space(env.observation_spec)
        self.single_action_space = action_space(env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._reset, self._step = jax.jit(self.env.reset), jax.jit(self.env.step)
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts all episodes.

        Args:
          seed: fixes every episode from here on; None goes on with the draws of the last seed.
          options: must be None or empty.

        Returns:
          The observations `[num_envs, ...]`, numpy arrays, and an empty dict.

        Raises:
          ValueError: on any option.
        """
        if options:
            raise ValueError(f"a reset takes no options, got {', '.join(map(repr, options))}")
        super().reset(seed=seed)
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._state = self._reset(key)
        return to_numpy(self._state.obs), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances all simulations by one control step.

        Args:
          actions: in [-1, 1], `[num_envs, action_size]`.

        Returns:
          Observations, rewards, terminations, truncations (`[num_envs, ...]`, numpy arrays of the
          caller's own) and infos.

        Raises:
          RuntimeError: before the first `reset`.
          ValueError: on actions of a wrong shape.
        """
        if self._state is None:
            raise RuntimeError("call reset before step")
        self._state = state = self._step(self._state, np.asarray(actions, np.float32))
        terminated, truncated = to_numpy(state.terminated), to_numpy(state.truncated)
        infos = self._infos(state, terminated | truncated)
        return to_numpy(state.obs), to_numpy(state.reward), terminated, truncated, infos

    def _infos(self, state: State, done: np.ndarray) -> dict[str, Any]:
        metrics = to_numpy(state.metrics)
        if not done.any():
            return _masked(metrics, ~done)
        final_obs = to_numpy(state.info["final_obs"])
        each = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done):
            each[i] = jax.tree.map(lambda x, i=i: x[i], final_obs)
        final = {"final_obs": each, "final_info": _masked(metrics, done)}
        final |= {"_final_obs": done, "_final_info": done.copy()}
        return final if done.all() else _masked(metrics, ~done) | final


def observation_space(spec: Spec | dict[str, Spec]) -> spaces.Space:
    """The gymnasium space of one simulation's observations.

    Integers span the values of their dtype, real numbers are unbounded.
    """
    if isinstance(spec, dict):
        return spaces.Dict({k: observation_space(s) for k, s in spec.items()})
    dtype = np.dtype(spec.dtype)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
    return spaces.Box(low, high, spec.shape, dtype.type)


def action_space(env: Env) -> spaces.Box:
    """The gymnasium space of one simulation's actions, [-1, 1]."""
    return spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)


def _masked(metrics: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric where the mask is true, 0 elsewhere, and the mask beside it."""
    values = {k: np.where(mask, v, 0) for k, v in metrics.items()}
    return values | {f"_{k}": mask.copy() for k in metrics}


def to_numpy(tree: Any) -> Any:
    """A tree of numpy arrays that may be written to, and that the next step doesn't touch."""
    return jax.tree.map(np.array, tree)
