"""Simulations on the host: numpy arrays in and out, and episodes that follow from seeds."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.env import AutoReset, Env, Spec, State, Vectorised, reset_done

HostObservation = np.ndarray | dict[str, np.ndarray]


class Step(NamedTuple):
    """What a step of a `Batch` led to; numpy arrays of the caller's own.

    Attributes:
      obs: what is acted on next, `[num_envs, ...]`.
      reward: `[num_envs]`, float.
      terminated: the task itself ended, bool `[num_envs]`.
      truncated: the episode was cut short, bool `[num_envs]`.
      metrics: `[num_envs]` each, float; they mean nothing where not `live`.
      live: False where the step did nothing but begin an episode, bool `[num_envs]`.
      final_obs: the last observations of the episodes that ended, where `obs` are the first of the
        next, `[num_envs, ...]`; None if there are no such.
    """

    obs: HostObservation
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    metrics: dict[str, np.ndarray]
    live: np.ndarray
    final_obs: HostObservation | None


class Batch:
    """`num_envs` simulations, stepped by one jitted program.

    Attributes:
      env: the simulations.
      state: where they are; None before the first reset.
      over: where the last step ended an episode that no other has followed yet, bool `[num_envs]`.
    """

    def __init__(
        self,
        env: Env,
        num_envs: int,
        autoreset: Literal["same_step", "next_step", "disabled"],
        seed: int,
    ) -> None:
        """Prepares the simulations.

        Args:
          env: one simulation, without automatic resets.
          num_envs: how many.
          autoreset: when a simulation whose episode ends starts the next: in the step that ends
            it, in the one after (which does nothing else there), or only by `reset`.
          seed: simulation i begins with the episodes of `seed + i`, until it's given another.

        Raises:
          ValueError: if `num_envs` isn't positive.
        """
        self.env = Vectorised(_EPISODES[autoreset](env), num_envs)
        self.state: State | None = None
        self.over = np.zeros(num_envs, bool)
        self._autoreset = autoreset
        self._keys = seed_keys(range(seed, seed + num_envs))
        self._begin = compiled(jax.vmap(self.env.env.reset))
        self._restart = compiled(jax.vmap(self._begin_if))
        self._step = compiled(self.env.step)

    def reset(self, seeds: Sequence[int | None], mask: np.ndarray) -> HostObservation:
        """Starts an episode where `mask` is true, bool `[num_envs]`; returns all observations.

        A simulation without a seed goes on with its own episodes.

        Raises:
          RuntimeError: if the first reset is not one of all simulations.
        """
        if self.state is None and not mask.all():
            raise RuntimeError("reset all simulations before some of them")
        keys = self._keys if self.state is None else self.state.info["reset_key"]
        given = np.array([seed is not None for seed in seeds])
        if given.any():
            keys = jnp.where(given, seed_keys(seed or 0 for seed in seeds), keys)
        whole = mask.all()
        self.state = self._begin(keys) if whole else self._restart(self.state, keys, mask)
        self.over = self.over & ~mask
        return of_spec(self.env.observation_spec, to_numpy(self.state.obs))

    def step(self, actions: np.ndarray) -> Step:
        """Advances all simulations by one control step.

        Args:
          actions: in [-1, 1], `[num_envs, action_size]`.

        Raises:
          RuntimeError: before the first reset, or if an episode is over that nobody follows up.
          ValueError: on actions of a wrong shape.
        """
        if self.state is None:
            raise RuntimeError("call reset before step")
        if self._autoreset == "disabled" and self.over.any():
            over = np.flatnonzero(self.over).tolist()
            raise RuntimeError(f"the episodes of simulations {over} are over: reset them")
        state = self._step(self.state, np.asarray(actions, np.float32))
        obs, reward, terminated, truncated, metrics = to_numpy(
            (state.obs, state.reward, state.terminated, state.truncated, state.metrics)
        )
        spec = self.env.observation_spec
        live, done, final_obs = ~self.over, terminated | truncated, None
        if self._autoreset != "same_step":
            self.over = done
        elif done.any():
            final_obs = of_spec(spec, to_numpy(state.info["final_obs"]))
        self.state = state
        return Step(of_spec(spec, obs), reward, terminated, truncated, metrics, live, final_obs)

    def _begin_if(self, state: State, key: jax.Array, chosen: jax.Array) -> State:
        """One simulation, at the start of an episode if it's chosen."""
        new = self.env.env.reset(key)
        return jax.tree.map(lambda n, o: jnp.where(chosen, n, o), new, state)


class Episodes(AutoReset):
    """Episodes that follow from one key, of which none starts by itself.

    The key of the next is `info["reset_key"]`, as `AutoReset` has it.
    """

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        return self.env.step(state, action)


class _NextStep(AutoReset):
    """Starts the next episode in the step after the one that ends one, which pays nothing."""

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        over, last_key = state.done > 0, state.info["reset_key"]
        next_key, key = jax.random.split(last_key)
        new = self.env.step(state, action)  # stands still where it's over
        begun = reset_done(self.env, new.replace(done=state.done), key, state.info["reset_model"])
        unless_over = lambda x: jnp.where(over, jnp.zeros_like(x), x)
        return begun.replace(
            reward=unless_over(new.reward),
            done=unless_over(new.done),
            terminated=unless_over(new.terminated),
            truncated=unless_over(new.truncated),
            info={**begun.info, "reset_key": jnp.where(over, next_key, last_key)},
        )


_EPISODES = {"same_step": AutoReset, "next_step": _NextStep, "disabled": Episodes}


def compiled(function: Callable[..., State]) -> Callable[..., State]:
    """`jax.jit`, whose states have no weak types: else a second step would compile once more."""
    own_type = lambda x: x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    strong = lambda x: jax.lax.convert_element_type(x, own_type(x))
    return jax.jit(lambda *args: jax.tree.map(strong, function(*args)))


def seed_keys(seeds: Iterable[int]) -> jax.Array:
    """For each seed the key that its episodes follow from: `jax.random.key` of it, modulo 2^32."""
    return jax.vmap(jax.random.key)(np.array([seed % 2**32 for seed in seeds], np.uint32))


def of_spec(spec: Spec | dict[str, Spec], observation: HostObservation) -> HostObservation:
    """An observation in the types that are specified: of 32 bits where JAX calculates with 64."""
    if isinstance(spec, dict):
        return {name: of_spec(spec[name], x) for name, x in observation.items()}
    return observation.astype(spec.dtype, copy=False)


def to_numpy(tree: Any) -> Any:
    """A tree of numpy arrays that may be written to, and that the next step doesn't touch."""
    return jax.tree.map(np.array, jax.device_get(tree))
