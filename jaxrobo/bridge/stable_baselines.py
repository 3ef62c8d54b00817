"""Our environments as a `VecEnv` of stable-baselines3."""

import time
from typing import Any

import jax
import numpy as np

from jaxrobo.bridge._batch import Batch, HostObservation, Step
from jaxrobo.bridge._camera import Camera, metadata
from jaxrobo.env import Env

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        f"jaxrobo.bridge.stable_baselines needs stable-baselines3 ({error}): "
        "pip install 'jaxrobo[benchmarks]'"
    ) from error

from jaxrobo.bridge._spaces import action_space, observation_space


class StableBaselinesVecEnv(VecEnv):
    """`num_envs` simulations of an environment, stepped by one jitted program.

    Does what `DummyVecEnv` of as many `GymnasiumEnv`, each in a `Monitor`, would, with the same
    episodes from the same seeds, but for the infos. They are empty until the step that ends an
    episode, which has "terminal_observation", "TimeLimit.truncated", "is_success" where success is
    what the environment is judged by, and "episode" as `Monitor` reports it (`r`, `l`, `t`), with
    the sums of the environment's metrics.

    Attributes:
      env: the simulations, a `jaxrobo.env.Vectorised`.
    """

    def __init__(self, env: Env, num_envs: int, render_mode: str | None = None) -> None:
        """Prepares the simulations.

        Args:
          env: one simulation, without automatic resets.
          num_envs: how many.
          render_mode: "rgb_array" for pictures of 640 x 480; None for none.

        Raises:
          ValueError: if `num_envs` isn't positive, on an unknown render mode, or if an environment
            without a MuJoCo model is to be drawn.
          RendererUnavailable: if this machine can't draw.
        """
        self._camera = Camera(env, render_mode)
        self._batch = Batch(env, num_envs, "same_step", seed=np.random.SeedSequence().entropy)
        self.env = self._batch.env
        self.render_mode = render_mode  # what the constructor asks `get_attr` for
        super().__init__(num_envs, observation_space(env.observation_spec), action_space(env))
        self.metadata = metadata(env)
        self._begin = time.perf_counter()
        self._actions: np.ndarray | None = None
        self._sums: dict[str, np.ndarray] = {}

    def reset(self) -> HostObservation:
        """Starts all episodes; `seed` before it fixes them.

        Raises:
          ValueError: on any of `set_options`.
        """
        given = {name for options in self._options for name in options}
        self._reset_options()
        if given:
            raise ValueError(f"a reset takes no options, got {', '.join(map(repr, given))}")
        obs = self._batch.reset(self._seeds, np.ones(self.num_envs, bool))
        self._reset_seeds()
        names = ("r", "l", *self._batch.state.metrics)
        self._sums = {name: np.zeros(self.num_envs) for name in names}
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions, `[num_envs, action_size]`, for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[HostObservation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Advances all simulations by one control step.

        Returns:
          Observations, rewards, dones (`[num_envs, ...]`, numpy arrays) and a dict for each
          simulation.

        Raises:
          RuntimeError: before the first `reset`.
          ValueError: on actions of a wrong shape.
        """
        step = self._batch.step(self._actions)
        for name, value in {"r": step.reward, "l": 1, **step.metrics}.items():
            self._sums[name] += value
        done = step.terminated | step.truncated
        infos = self._infos(step, done)
        for total in self._sums.values():
            total[done] = 0
        return step.obs, step.reward, done, infos

    def _infos(self, step: Step, done: np.ndarray) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        seconds = round(time.perf_counter() - self._begin, 6)
        metric = self.env.metric
        judged = metric.kind == "rate" and metric.name in self._sums
        for i in np.flatnonzero(done):
            sums = {k: float(total[i]) for k, total in self._sums.items()}
            infos[i] = {
                "terminal_observation": jax.tree.map(lambda x, i=i: x[i], step.final_obs),
                "TimeLimit.truncated": bool(step.truncated[i]),
                "episode": sums | {"l": int(sums["l"]), "t": seconds},
            }
            if judged:
                infos[i]["is_success"] = sums[metric.name] > 0
        return infos

    def get_images(self) -> tuple[np.ndarray, ...]:
        """A picture of each simulation, `[480, 640, 3]`, uint8.

        Raises:
          RuntimeError: before the first `reset`, or without a render mode.
        """
        return self._camera.take(self._batch.state)

    def close(self) -> None:
        """Frees what draws."""
        self._camera.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, which all simulations share."""
        owner = self if attr_name in ("render_mode", "metadata") else self.env
        value = getattr(owner, attr_name)
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
