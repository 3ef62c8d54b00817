"""Does a policy do as well on the other engine? The same test episodes on both, paired.

Takes the policy of a run, or PegHole's expert. On a CPU, MJX takes minutes.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import envs
from benchmarks.common import report
from experiments.common import load
from jaxrobo.env import Env
from jaxrobo.evaluation import wilson_interval
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import episode_key, rollout, start

SLOTS = 32  # episodes that run at a time


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      run_dir: the run of a policy whose task is judged by success; PegHole's expert if None.
      episodes: test episodes on each engine.
      out: where to write JSON.
    """

    run_dir: Path | None = None
    episodes: int = 128
    out: Path | None = None


def main(options: Options) -> None:
    """Prints success on both engines, and the interval of the difference."""
    solved = {
        engine: _outcomes(*_load(options.run_dir, engine), options.episodes)
        for engine in ("native", "mjx")
    }
    native, mjx = solved["native"].astype(bool), solved["mjx"].astype(bool)
    low, high = _paired_interval(mjx, native)
    row = {
        "native": float(native.mean()),
        "mjx": float(mjx.mean()),
        "difference": f"{mjx.mean() - native.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
        "only native": np.flatnonzero(native & ~mjx).tolist(),
        "only mjx": np.flatnonzero(mjx & ~native).tolist(),
    }
    who = options.run_dir or "PegHole's expert"
    report(f"{who}, {options.episodes} test episodes on each engine", [row], options.out)


def _paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The interval of the difference of two rates of the same episodes, also if none differs.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10: from Wilson's intervals of both, and their correlation.
    """
    n = len(first)
    rates = np.array([first.mean(), second.mean()])
    bounds = np.array([wilson_interval(int(x.sum()), n) for x in (first, second)])
    down, up = rates - bounds[:, 0], bounds[:, 1] - rates
    both, neither = (first & second).sum(), (~first & ~second).sum()
    together = both * neither - (first & ~second).sum() * (second & ~first).sum()
    if together > 0:
        together = max(together - n / 2, 0.0)
    spread = math.sqrt(math.prod(float(x.sum() * (~x).sum()) for x in (first, second)))
    phi = together / spread if spread else 0.0
    below = math.sqrt(down[0] ** 2 - 2 * phi * down[0] * up[1] + up[1] ** 2)
    above = math.sqrt(up[0] ** 2 - 2 * phi * up[0] * down[1] + down[1] ** 2)
    difference = float(rates[0] - rates[1])
    return difference - below, difference + above


def _load(run_dir: Path | None, engine: str) -> tuple[Env, Policy, Params]:
    if run_dir is not None:
        return load(run_dir, engine=engine)
    env = envs.make("PegHole", engine=engine, terminate_on_success=True)
    return env, env.expert(), ()


def _outcomes(env: Env, policy: Policy, params: Params, episodes: int) -> np.ndarray:
    """Which episodes succeed.

    A program of a few steps at a time, to compile less on MJX, and of a few episodes at a time:
    one that ends makes room for the next, or all would wait for those that fail.
    """
    width = min(SLOTS, episodes)
    keys = jax.vmap(lambda i: episode_key("test", 0, i))(np.arange(episodes))
    starts = jax.jit(jax.vmap(lambda key: start(env, policy, key)))(keys)

    def block(state: Any, params: Params) -> Any:
        return rollout(env, policy, params, state, policy.period, auto_reset=False)[0]

    advance = jax.jit(jax.vmap(block, (0, None)))
    solved = np.zeros(episodes, bool)
    shown, following = np.arange(width), width
    states = jax.tree.map(lambda leaf: leaf[shown], starts)
    while True:
        done = np.asarray(states.env.done) > 0
        solved[shown[done]] = np.asarray(states.episode["success"])[done] > 0
        free = np.flatnonzero(done)[: episodes - following]
        if done.all() and not free.size:
            return solved
        if free.size:
            shown[free] = np.arange(following, following + free.size)
            following += free.size
            states = _replace(states, starts, free, shown[free])
        states = advance(states, params)


def _replace(states: Any, starts: Any, rows: np.ndarray, episodes: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new[episodes]), states, starts)


if __name__ == "__main__":
    main(tyro.cli(Options))
