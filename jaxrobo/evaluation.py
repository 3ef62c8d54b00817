"""Evaluation: how well a policy does over whole, repeatable episodes, with intervals."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxrobo import host
from jaxrobo.env import Env, HostEnv, Metric
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import run_episode, split_key

LEVEL = 0.95
"""Confidence of every interval."""

Runner = Callable[[Params, jax.Array, jax.Array], dict[str, jax.Array]]


class Estimate(NamedTuple):
    """A mean over episodes and its 95 % interval, which is NaN if there's a single episode."""

    mean: float
    low: float
    high: float


Evaluator = Callable[[Params, str, int], dict[str, Estimate]]


def evaluate(
    env: Env,
    policy: Policy,
    params: Params,
    split: str = "validation",
    seed: int = 0,
    episodes: int = 256,
    batch: int = 256,
) -> dict[str, Estimate]:
    """Runs a policy for some episodes, each to its own end.

    Every call compiles anew; for parameters one after another there's `evaluator`.

    Episode i starts from `episode_key(split, seed, i)` (`jaxrobo.rollout`), whatever the batch; of
    a `HostEnv`, episodes are seeded `num_envs` at a time.

    Args:
      env: an environment with a time limit, without automatic resets.
      policy: what acts.
      params: its parameters.
      split: "validation" (to choose by), "test" (for final tables only) or "train".
      seed: which draw of the split.
      episodes: how many.
      batch: simulations side by side; a `HostEnv` uses all that it has.

    Returns:
      An estimate of each sum of `run_episode`: the task's metric first, then the others by their
      names, then what `summarise` adds.

    Raises:
      ValueError: on an unknown split, no time limit, or `episodes` or `batch` below 1.
    """
    return evaluator(env, policy, episodes, batch)(params, split, seed)


def evaluator(env: Env, policy: Policy, episodes: int = 256, batch: int = 256) -> Evaluator:
    """`evaluate` for parameters one after another: `(params, split, seed)` -> estimates.

    Compiles at its first call.

    Raises:
      ValueError: see `evaluate`; on an unknown split when it's called.
    """
    batch = batch_size(env, even_batch(episodes, batch))
    run = episode_runner(env, policy, batch)
    run = run if isinstance(env, HostEnv) else jax.jit(run)

    def estimates(params: Params, split: str, seed: int) -> dict[str, Estimate]:
        return summarise(env.metric, run_episodes(run, batch, params, split, seed, episodes))

    return estimates


def batch_size(env: Env, batch: int) -> int:
    """How many episodes run side by side if `batch` may: those of a `HostEnv` are given."""
    return env.num_envs if isinstance(env, HostEnv) else batch


def even_batch(episodes: int, batch: int) -> int:
    """The smallest batch that needs no more rounds than `batch` does: of 300 by 256, 150.

    A last batch that is only half needed takes as long as the others.

    Raises:
      ValueError: if either is below 1.
    """
    for name, value in (("episodes", episodes), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return math.ceil(episodes / math.ceil(episodes / batch))


def episode_runner(env: Env, policy: Policy, batch: int) -> Runner:
    """A function that runs `batch` episodes side by side; pure, unless it's a `HostEnv`.

    Returns:
      `(params, key, first []) -> sums [batch]`: `run_episode` of the episodes `first`, `first + 1`,
      ..., each from `fold_in(key, episode)`.

    Raises:
      ValueError: if `batch` isn't positive, or the environment has no time limit or doesn't count
        what it's judged by.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if isinstance(env, HostEnv):
        return lambda params, key, first: host.run_episodes(
            env, policy, params, jax.random.fold_in(key, first)
        )
    if env.time_limit is None:
        raise ValueError("an episode needs an end: wrap the environment in TimeLimit")
    counted = jax.eval_shape(env.reset, jax.random.key(0)).metrics
    _check_metric(env.metric, ["length", "reward", *counted])

    def run(params: Params, key: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
        one = lambda episode: run_episode(env, policy, params, jax.random.fold_in(key, episode))
        return jax.vmap(one)(first + jnp.arange(batch, dtype=jnp.int32))

    return run


def run_episodes(
    run: Runner, batch: int, params: Params, split: str, seed: int, episodes: int
) -> dict[str, np.ndarray]:
    """Sums of the first `episodes` of a split, `[..., episodes]`, `batch` at a time.

    Args:
      run: compiled or jitted from `episode_runner`; or from its `vmap` over `params`, which adds a
        leading axis to the sums.
      batch: how many episodes `run` runs.
      params: see `run`.
      split: see `evaluate`.
      seed: see `evaluate`.
      episodes: see `evaluate`.
    """
    key = split_key(split, seed)
    parts = [
        jax.device_get(run(params, key, np.int32(first))) for first in range(0, episodes, batch)
    ]
    return {k: np.concatenate([p[k] for p in parts], axis=-1)[..., :episodes] for k in parts[0]}


def summarise(metric: Metric, sums: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Means and intervals of episodes' sums `[episodes]`, the task's metric first.

    A task's success rate has a Wilson interval, everything else Student's. Beside a rate stands
    `length_of_success`, the mean length of the episodes that succeeded; beside a count that has
    `length_per_<its name>` in `Metric.beside`, as `length_per_goal`, that is the control steps of
    all episodes by the goals of all. There's neither if nothing was achieved.

    Raises:
      ValueError: if the task's metric isn't there, or is called a rate but has sums other than 0
      and 1.
    """
    _check_metric(metric, sums)
    names = [metric.name, *(k for k in sums if k != metric.name)]
    estimates = {
        k: _estimate(k, sums[k], metric.kind if k == metric.name else "count") for k in names
    }
    achieved = np.asarray(sums[metric.name])
    if "length" not in sums or not (achieved > 0).any():
        return estimates
    lengths = np.asarray(sums["length"])
    if metric.kind == "rate":
        won = _estimate("length_of_success", lengths[achieved > 0], "count")
        return estimates | {"length_of_success": won}
    name = f"length_per_{metric.name.removesuffix('s')}"
    if name not in metric.beside:
        return estimates
    ratio = float(lengths.sum() / achieved.sum()), *ratio_interval(lengths, achieved)
    return estimates | {name: Estimate(*ratio)}


def _check_metric(metric: Metric, names: Iterable[str]) -> None:
    if metric.name not in names:
        raise ValueError(f"the metric {metric.name!r} isn't among {', '.join(names)}")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927).

    With p = successes / trials, n = trials and z the normal quantile:
    `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`.
    """
    z = float(special.ndtri(0.5 + LEVEL / 2))
    p, shrink = successes / trials, z**2 / trials
    centre = (p + shrink / 2) / (1 + shrink)
    half = z * math.sqrt(p * (1 - p) / trials + shrink / (4 * trials)) / (1 + shrink)
    return max(0.0, centre - half), min(1.0, centre + half)


def student_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of a mean, `mean -+ t s / sqrt(n)`, n - 1 degrees of freedom; NaN if n is 1."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    return float(mean - half), float(mean + half)


def mean_of_seeds(means: Sequence[float], kind: Literal["rate", "count"]) -> Estimate:
    """The mean of several trainings' means, and Student's interval of it.

    That of rates (`Metric.kind`) ends at 0 and 1.
    """
    low, high = student_interval(np.asarray(means))
    if kind == "rate":
        low, high = np.clip((low, high), 0.0, 1.0).tolist()
    return Estimate(float(np.mean(means)), low, high)


def ratio_interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The interval of a ratio of sums, `r = sum(x) / sum(y)`, by linearisation; NaN if n is 1.

    That of the mean of `r + (x - r y) / mean(y)` (Cochran, Sampling Techniques, section 2.11).
    """
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    ratio = above.sum() / below.sum()
    return student_interval(ratio + (above - ratio * below) / below.mean())


def _estimate(name: str, values: np.ndarray, kind: Literal["rate", "count"]) -> Estimate:
    values = np.asarray(values, np.float64)
    if kind == "count":
        return Estimate(float(values.mean()), *student_interval(values))
    if np.any(others := (values != 0) & (values != 1)):
        raise ValueError(f"{name} is a rate, but an episode's sum is {values[others][0]}")
    return Estimate(float(values.mean()), *wilson_interval(int(values.sum()), len(values)))
