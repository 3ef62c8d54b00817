"""Our environments as a `VecEnv` of stable-baselines3."""

import time
from typing import Any

import jax
import numpy as np

from jaxrobo.bridge.gymnasium import action_space, observation_space, to_numpy
from jaxrobo.env import Env, Observation, State, vectorise

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        f"jaxrobo.bridge.stable_baselines needs stable-baselines3 ({error}): "
        "pip install 'jaxrobo[benchmarks]'"
    ) from error


class StableBaselinesVecEnv(VecEnv):
    """`num_envs` simulations of an environment, stepped by one jitted program.

    In the step that ends an episode, its info has "terminal_observation", "TimeLimit.truncated",
    and "episode" as `Monitor` reports it (`r`, `l`, `t`), with the sums of the environment's
    metrics; the observation is the first of the next episode.

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
        super().__init__(num_envs, observation_space(env.observation_spec), action_space(env))
        self._reset, self._step = jax.jit(self.env.reset), jax.jit(self.env.step)
        self._rng = np.random.default_rng()
        self._begin = time.perf_counter()
        self._state: State | None = None
        self._actions: np.ndarray | None = None
        self._sums: dict[str, np.ndarray] = {}

    def reset(self) -> Observation:
        """Starts all episodes; the first of the seeds that `seed` set, if any, fixes them."""
        if self._seeds[0] is not None:
            self._rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._state = state = self._reset(jax.random.key(int(self._rng.integers(2**31))))
        self._sums = {k: np.zeros(self.num_envs) for k in ("r", "l", *state.metrics)}
        return to_numpy(state.obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions, `[num_envs, action_size]`, for `step_wait`."""
        self._actions = np.asarray(actions, np.float32)

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Advances all simulations by one control step.

        Returns:
          Observations, rewards, dones (`[num_envs, ...]`, numpy arrays) and a dict for each
          simulation.

        Raises:
          RuntimeError: before the first `reset`.
        """
        if self._state is None:
            raise RuntimeError("call reset before step")
        self._state = state = self._step(self._state, self._actions)
        rewards = to_numpy(state.reward)
        for name, value in {"r": rewards, "l": 1, **to_numpy(state.metrics)}.items():
            self._sums[name] += value
        done = to_numpy(state.done) > 0
        infos = self._infos(state, done)
        for total in self._sums.values():
            total[done] = 0
        return to_numpy(state.obs), rewards, done, infos

    def _infos(self, state: State, done: np.ndarray) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if not done.any():
            return infos
        final_obs, truncated = to_numpy((state.info["final_obs"], state.truncated))
        seconds = round(time.perf_counter() - self._begin, 6)
        for i in np.flatnonzero(done):
            sums = {k: float(total[i]) for k, total in self._sums.items()}
            infos[i] = {
                "terminal_observation": jax.tree.map(lambda x, i=i: x[i], final_obs),
                "TimeLimit.truncated": bool(truncated[i]),
                "episode": sums | {"l": int(sums["l"]), "t": seconds},
            }
        return infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, which all simulations share."""
        value = None if attr_name == "render_mode" else getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raises NotImplementedError: the simulations are one program."""
        raise NotImplementedError(f"can't set {attr_name!r}: the simulations are one program")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Raises NotImplementedError: the simulations are one program."""
        raise NotImplementedError(f"can't call {method_name!r}: the simulations are one program")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """True for `Monitor`, whose statistics are reported here; False for any other."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
