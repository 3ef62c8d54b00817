"""How well does PegHole's expert do, and how fast?

Success on the test split with its interval, the starts that it doesn't solve, steps a second and
where they go, and how long a number of successful demonstrations takes.
`benchmarks.engines` compares it on both engines.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import tyro

import envs
from benchmarks.common import report
from jaxrobo.evaluation import episode_runner, even_batch, run_episodes, wilson_interval
from jaxrobo.physics import Physics
from jaxrobo.rollout import rollout, start


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      randomness: which starts.
      episodes: test episodes of each.
      batch: simulations side by side.
      out: where to write JSON.
    """

    randomness: tuple[str, ...] = ("low", "med", "high", "wide")
    episodes: int = 512
    batch: int = 256
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the tables."""
    rows = [_success(name, options) for name in options.randomness]
    report(f"PegHole's expert on {options.episodes} test episodes", rows, options.out)
    out = options.out and options.out.with_stem(f"{options.out.stem}-speed")
    report(f"PegHole, {options.batch} simulations under the expert", [_speed(options.batch)], out)


def _outcomes(engine: str, randomness: str, episodes: int, batch: int) -> tuple[dict, float]:
    """Sums of each episode, and seconds without compilation."""
    options = {"randomness": randomness, "terminate_on_success": True}
    env = envs.make("PegHole", engine=engine, **options)
    run = jax.jit(episode_runner(env, env.expert(), batch))
    run = run.lower((), jax.random.key(0), np.int32(0)).compile()
    begin = time.perf_counter()
    sums = run_episodes(run, batch, (), "test", 0, episodes)
    return sums, time.perf_counter() - begin


def _success(randomness: str, options: Options) -> dict:
    batch = even_batch(options.episodes, options.batch)
    sums, seconds = _outcomes("native", randomness, options.episodes, batch)
    solved = sums["success"] > 0
    low, high = wilson_interval(int(solved.sum()), len(solved))
    return {
        "randomness": randomness,
        "success": float(solved.mean()),
        "95 % interval": f"[{low:.3f}, {high:.3f}]",
        "mean steps": float(sums["length"][solved].mean()),
        "unsolved starts": np.flatnonzero(~solved).tolist(),
        "s": seconds,
        "s for 1,000 successes": 1000 * seconds / max(solved.sum(), 1),
    }


def _speed(n: int) -> dict:
    """Control steps a second of an episode's first 50, and the engine's share of the time."""
    env = envs.make("PegHole", engine="native")
    watch = _Watch(env.unwrapped.physics)
    policy, steps = env.expert(), 50
    keys = jax.random.split(jax.random.key(0), n)
    states = jax.jit(jax.vmap(lambda key: start(env, policy, key)))(keys)
    run = jax.jit(jax.vmap(lambda s: rollout(env, policy, (), s, steps)[0]))
    jax.block_until_ready(run(states))
    times = []
    for _ in range(4):  # the first is slow
        watch.seconds, begin = 0.0, time.perf_counter()
        jax.block_until_ready(run(states))
        times.append((time.perf_counter() - begin, watch.seconds))
    seconds, physics = min(times)
    return {
        "control steps/s": n * steps / seconds,
        "physics steps/s": n * steps * env.unwrapped.substeps / seconds,
        "share of the engine": physics / seconds,
    }


class _Watch:
    """Adds up the time within the engine's host functions."""

    def __init__(self, physics: Physics) -> None:
        self.seconds = 0.0
        make = physics._host_step

        def timed(*args):
            step = make(*args)

            def call(*arrays):
                begin = time.perf_counter()
                try:
                    return step(*arrays)
                finally:
                    self.seconds += time.perf_counter() - begin

            return call

        physics._host_step = timed


if __name__ == "__main__":
    main(tyro.cli(Options))
