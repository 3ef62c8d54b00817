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
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import episode_key, rollout, start


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
    difference = solved["mjx"].astype(float) - solved["native"]
    half = 1.96 * difference.std(ddof=1) / math.sqrt(options.episodes)
    mean = difference.mean()
    row = {
        "native": float(solved["native"].mean()),
        "mjx": float(solved["mjx"].mean()),
        "difference": f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]",
        "only native": np.flatnonzero(difference < 0).tolist(),
        "only mjx": np.flatnonzero(difference > 0).tolist(),
    }
    who = options.run_dir or "PegHole's expert"
    report(f"{who}, {options.episodes} test episodes on each engine", [row], options.out)


def _load(run_dir: Path | None, engine: str) -> tuple[Env, Policy, Params]:
    if run_dir is not None:
        return load(run_dir, engine=engine)
    env = envs.make("PegHole", engine=engine, terminate_on_success=True)
    return env, env.expert(), ()


def _outcomes(env: Env, policy: Policy, params: Params, episodes: int) -> np.ndarray:
    """Which episodes succeed. A program of a few steps at a time, to compile less on MJX."""
    keys = jax.vmap(lambda i: episode_key("test", 0, i))(np.arange(episodes))
    states = jax.jit(jax.vmap(lambda key: start(env, policy, key)))(keys)

    def block(state: Any, params: Params) -> Any:
        return rollout(env, policy, params, state, policy.period, auto_reset=False)[0]

    advance = jax.jit(jax.vmap(block, (0, None)))
    while not np.all(states.env.done):
        states = advance(states, params)
    return np.asarray(states.episode["success"]) > 0


if __name__ == "__main__":
    main(tyro.cli(Options))
