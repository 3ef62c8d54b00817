"""How long do programs take to compile, and how large are they?

Traces, lowers and compiles anew, without JAX's persistent cache: one control step of a batch on
each engine, and one iteration of PPO.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import envs
from benchmarks.common import report
from envs.assembly import peg_hole
from jaxrobo.learning import ppo
from jaxrobo.physics import make_physics


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      engines: which.
      sims: simulations side by side.
      out: where to write JSON.
    """

    engines: tuple[str, ...] = ("native", "mjx")
    sims: int = 64
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for engine in options.engines:
        reacher = envs.make("DofbotReacher", engine=engine)
        models = {"DofbotReacher": (reacher.unwrapped.mj_model, 2), "peg": (peg_hole.build(), 50)}
        for name, (model, substeps) in models.items():
            row = _measure(*_step(model, engine, substeps, options.sims))
            rows.append({"program": f"{name}: physics", "engine": engine, **row})
        row = _measure(*_iteration(reacher, options.sims))
        rows.append({"program": "DofbotReacher: PPO", "engine": engine, **row})
    report(f"Compilation, {options.sims} simulations", rows, options.out)


def _step(model: Any, engine: str, substeps: int, n: int) -> tuple[Callable, tuple]:
    physics = make_physics(model, engine)
    states = jax.eval_shape(jax.vmap(lambda _: physics.init()), jnp.arange(n))
    controls = jax.ShapeDtypeStruct((n, model.nu), jnp.float32)
    return jax.vmap(lambda s, u: physics.step(s, {"ctrl": u}, substeps)[0]), (states, controls)


def _iteration(env: Any, n: int) -> tuple[Callable, tuple]:
    trainer = ppo.make(env, ppo.Config(num_envs=n, horizon=16))
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.inputs)
    return trainer.step, (state, trainer.inputs)


def _measure(fn: Callable, args: tuple) -> dict[str, float]:
    begin = time.perf_counter()
    lowered = jax.jit(fn).lower(*args)
    traced = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    lines = lowered.as_text().count("\n")
    return {"trace and lower, s": traced - begin, "compile, s": end - traced, "lines": lines}


if __name__ == "__main__":
    main(tyro.cli(Options))
