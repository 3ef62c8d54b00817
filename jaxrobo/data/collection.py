"""Collects episodes: any policy in any environment, many simulations at once."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.data.trajectories import Trajectories, concatenate, describe, named, take
from jaxrobo.env import Env, PhysicsEnv, State, Wrapper
from jaxrobo.policy import Params, Policy, watched
from jaxrobo.rollout import RolloutState, rollout, split_key, start

PATIENCE = 512
"""Gives up once batches in a row, of so many episodes in all, had none to keep."""

_SEGMENT = 64
"""Control steps between looks at whether all episodes are over."""


class NoSuccess(RuntimeError):
    """The policy fails all the time."""


def collect(
    env: Env,
    policy: Policy,
    params: Params,
    episodes: int,
    *,
    split: str = "train",
    seed: int = 0,
    batch: int = 256,
    failures: bool = False,
    poses: bool = False,
) -> Trajectories:
    """The first successful episodes of a split, each from its start to its own end.

    A task that is judged by a rate ends with its success, even where the environment goes on.
    Episode i starts from `episode_key(split, seed, i)`; which are kept, and in which order, depends
    on the seed and not on the batch. A task that is judged by a count knows no failures. An episode
    whose numbers diverged is never kept.

    Args:
      env: an environment with a time limit, without automatic resets.
      policy: what acts; its actions are kept as the environment takes them, clipped to [-1, 1].
      params: its parameters.
      episodes: how many to keep.
      split: "train", "validation" or "test".
      seed: which draw of the split.
      batch: simulations side by side; all their steps are in memory at once.
      failures: whether to keep failed episodes as well.
      poses: whether to keep what a film needs.

    Raises:
      NoSuccess: once batches in a row, of `PATIENCE` episodes in all, had none to keep.
      ValueError: on an unknown split, no time limit, `episodes` or `batch` below 1, or `poses` of
        an environment without a MuJoCo model.
    """
    options = {"split": split, "seed": seed, "batch": batch, "failures": failures, "poses": poses}
    return concatenate(list(stream(env, policy, params, episodes, **options)))


def stream(
    env: Env,
    policy: Policy,
    params: Params,
    episodes: int,
    *,
    first: int = 0,
    split: str = "train",
    seed: int = 0,
    batch: int = 256,
    failures: bool = False,
    poses: bool = False,
) -> Iterator[Trajectories]:
    """`collect`, a part at a time: what each batch adds.

    Args:
      env: see `collect`.
      policy: see `collect`.
      params: see `collect`.
      episodes: how many to keep, over all parts.
      first: the number of the first episode: where an earlier call ended, the last kept plus one.
      split: see `collect`.
      seed: see `collect`.
      batch: see `collect`.
      failures: see `collect`.
      poses: see `collect`.

    Yields:
      One or more episodes.

    Raises:
      See `collect`.
    """
    _check_options(env, episodes, batch, poses)
    key, metadata = split_key(split, seed), describe(env, split, seed, failures)
    batch = min(batch, episodes)
    env = _EndAtSuccess(env) if env.metric.kind == "rate" else env
    begin, advance = _programs(env, policy, batch, poses)
    found = failed = 0
    while found < episodes:
        numbers = np.arange(first, first + batch)
        part, good = _run(begin, advance, params, key, numbers, env.metric.name)
        keep = good & (part.success | failures | (env.metric.kind == "count"))
        kept = np.flatnonzero(keep)[: episodes - found]
        first, found = first + batch, found + len(kept)
        failed = 0 if len(kept) else failed + batch
        if failed >= PATIENCE:
            raise NoSuccess(f"{failed} episodes in a row failed, up to number {first - 1}")
        if len(kept):
            yield take(part.replace(metadata=metadata), kept)


class _EndAtSuccess(Wrapper):
    """Terminates an episode in the step that makes it a success."""

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        state = self.env.step(state, action)
        success = state.metrics[self.metric.name] > 0
        terminated = state.terminated | success
        truncated = state.truncated & ~success
        done = (terminated | truncated).astype(state.done.dtype)
        return state.replace(done=done, terminated=terminated, truncated=truncated)


def _check_options(env: Env, episodes: int, batch: int, poses: bool) -> None:
    for name, value in (("episodes", episodes), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if env.time_limit is None:
        raise ValueError("an episode needs an end: wrap the environment in TimeLimit")
    if poses and not isinstance(env.unwrapped, PhysicsEnv):
        raise ValueError(f"{type(env.unwrapped).__name__} has no poses: it has no MuJoCo model")


def _programs(env: Env, policy: Policy, batch: int, poses: bool) -> tuple[Callable, Callable]:
    """What starts a batch of episodes, and what goes on with it for a segment."""
    policy = watched(policy, _look if poses else lambda state: {})
    steps = math.ceil(min(_SEGMENT, env.time_limit) / policy.period) * policy.period

    def begin(key: jax.Array, first: jax.Array) -> RolloutState:
        one = lambda episode: start(env, policy, jax.random.fold_in(key, episode))
        return jax.vmap(one)(first + jnp.arange(batch, dtype=jnp.int32))

    def advance(params: Params, state: RolloutState) -> tuple[RolloutState, dict[str, Any]]:
        run = lambda s: rollout(env, policy, params, s, steps, auto_reset=False)
        state, t = jax.vmap(run)(state)
        rows = {
            "obs": named(t.obs),
            "action": jnp.clip(t.action, -1.0, 1.0),
            "reward": t.reward,
            "terminated": t.terminated,
            "truncated": t.truncated,
            "poses": t.aux["seen"],
        }
        return state, {"rows": rows, "live": t.live, "over": jnp.all(state.env.done > 0)}

    return jax.jit(begin), jax.jit(advance)


def _run(
    begin: Callable,
    advance: Callable,
    params: Params,
    key: jax.Array,
    numbers: np.ndarray,
    metric: str,
) -> tuple[Trajectories, np.ndarray]:
    """Runs a batch of episodes to the end, and says which of them stayed finite, bool [batch]."""
    state, segments = begin(key, np.int32(numbers[0])), []
    while not segments or not segments[-1]["over"]:
        state, segment = advance(params, state)
        segments.append(jax.device_get(segment))
    live = np.concatenate([s["live"] for s in segments], axis=1)
    rows = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[live], *(s["rows"] for s in segments))
    end = jax.device_get({"obs": named(state.env.obs), "sums": state.episode})
    model = jax.device_get(state.env.data.model) if rows["poses"] else {}
    trajectories = Trajectories(
        **rows,
        episode_ends=np.cumsum(live.sum(axis=1)),
        success=end["sums"][metric] > 0,
        episode=numbers,
        final_obs=end["obs"],
        model=model,
    )
    return trajectories, end["sums"].get("diverged", np.zeros(len(numbers))) == 0


def _look(state: State) -> dict[str, jax.Array]:
    return {k: getattr(state.data, k) for k in ("qpos", "mocap_pos", "mocap_quat")}
