"""What do several seeds in one program cost, against as many runs one after another?

Times whole iterations of PPO on DofbotReacher with its preset, after an iteration that compiles.
"""

import dataclasses
import time
from pathlib import Path

import jax
import tyro

from benchmarks.common import report
from experiments import train
from experiments.common import make_trainer
from jaxrobo.learning.trainer import Trainer, over_seeds
from jaxrobo.rollout import split_key


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      seeds: how many.
      iterations: timed, after one that warms up.
      repeats: times each is run; the fastest counts.
      out: where to write JSON.
    """

    seeds: int = 8
    iterations: int = 10
    repeats: int = 3
    out: Path | None = None


def main(options: Options) -> None:
    run, task, config = train.parse(["--env", "DofbotReacher"])
    trainer = make_trainer(run.env, run.engine, task, run.algo, config)
    keys = [split_key("train", seed) for seed in range(options.seeds)]

    together = over_seeds(trainer)
    batched, compile_batched = _seconds(together, jax.numpy.stack(keys), options)
    one, compile_one = _seconds(trainer, keys[0], options)
    steps = trainer.steps_per_iteration * options.iterations * options.seeds
    rows = [
        {
            "seeds": options.seeds,
            "one program, s": batched,
            "one after another, s": one * options.seeds,
            "ratio": batched / (one * options.seeds),
            "steps/s of all, one program": steps / batched,
            "compile, one program, s": compile_batched,
            "compile, one seed, s": compile_one,
        }
    ]
    report(f"{options.iterations} iterations of PPO on DofbotReacher", rows, options.out)


def _seconds(trainer: Trainer, keys: jax.Array, options: Options) -> tuple[float, float]:
    """Seconds of the fastest repeat, and of compilation."""
    begin = time.perf_counter()
    state = trainer.init(keys, ())
    collect = jax.jit(trainer.collect, donate_argnums=0)
    update = jax.jit(trainer.update, donate_argnums=0)

    def iterate(state):
        state, batch = collect(state, ())
        return update(state, batch, ())[0]

    state = jax.block_until_ready(iterate(state))
    compilation = time.perf_counter() - begin
    times = []
    for _ in range(options.repeats):
        begin = time.perf_counter()
        for _ in range(options.iterations):
            state = iterate(state)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - begin)
    return min(times), compilation


if __name__ == "__main__":
    main(tyro.cli(Options))
