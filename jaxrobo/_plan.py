"""What `jaxrobo.training` prepares before its loop: checked options and compiled programs."""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo import rundir
from jaxrobo.checkpoint import RunError
from jaxrobo.env import HostEnv
from jaxrobo.evaluation import (
    Estimate,
    Runner,
    batch_size,
    episode_runner,
    even_batch,
    run_episodes,
    summarise,
)
from jaxrobo.learning.trainer import Trainer, TrainState, over_seeds
from jaxrobo.policy import Params
from jaxrobo.rollout import check_seed, split_key

_EVALUATION_SEED = 0
"""All runs are judged by the same episodes."""

_MAX_BATCH = 256
"""Episodes evaluated side by side."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of `training.run`, checked: raises RunError if one is out of range."""

    trainer: Trainer
    run_dir: Path
    steps: int
    evaluate_every: int
    seed: int
    seeds: int
    evaluation_episodes: int
    test_episodes: int
    patience: int | None = None

    def __post_init__(self) -> None:
        env = self.trainer.env
        if env.time_limit is None:
            name = type(env.unwrapped).__name__
            raise RunError(f"an episode needs an end: {name} has no time limit")
        for name in ("steps", "evaluate_every", "seeds", "evaluation_episodes", "test_episodes"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} must be at least 1, got {getattr(self, name)}")
        try:
            check_seed(self.seed, self.seeds)
        except ValueError as error:
            raise RunError(str(error)) from None
        if self.patience is not None and self.patience < 1:
            raise RunError(f"patience must be at least 1, got {self.patience}")
        if self.seeds > 1 and isinstance(env, HostEnv):
            name = type(env).__name__
            raise RunError(f"seeds must be 1 with {name}, whose simulations are there once")

    @property
    def iterations(self) -> int:
        """The budget in iterations."""
        return math.ceil(self.steps / self.trainer.steps_per_iteration)

    @property
    def interval(self) -> int:
        """Iterations between evaluations."""
        return max(1, round(self.evaluate_every / self.trainer.steps_per_iteration))

    @property
    def batch(self) -> int:
        """Episodes evaluated side by side."""
        return batch_size(self.trainer.env, even_batch(self.evaluation_episodes, _MAX_BATCH))

    @property
    def folders(self) -> list[Path]:
        """Where the logs and the result of each seed are."""
        return [rundir.seed_dir(self.run_dir, self.seed + k, self.seeds) for k in range(self.seeds)]

    def over(self, iteration: int, flat: int) -> bool:
        """Whether the run is complete, after `flat` evaluations in a row that raised no score."""
        return iteration >= self.iterations or (self.patience is not None and flat >= self.patience)

    def steps_after(self, iterations: int) -> int:
        """Iterations in the trainer's counter."""
        return iterations * self.trainer.steps_per_iteration

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The whole configuration: the given one, the algorithm's, these options, and versions."""
        own = [f.name for f in dataclasses.fields(self) if f.name not in ("trainer", "run_dir")]
        return {
            **config,
            "algorithm": self.trainer.config,
            **{name: getattr(self, name) for name in own},
            "versions": rundir.versions(),
        }

    def keys(self) -> jax.Array:
        """What each seed trains from."""
        if self.seeds == 1:
            return split_key("train", self.seed)
        seeds = self.seed + jnp.arange(self.seeds)
        return jax.vmap(lambda seed: split_key("train", seed))(seeds)


class Programs(NamedTuple):
    """Compiled functions of all seeds, and how long their compilation took.

    `collect` is apart from `update` because JAX never caches a program with a host callback on
    disk; the learner's half can be cached.
    """

    init: Callable[[jax.Array, Any], TrainState]
    collect: Callable[[TrainState, Any], tuple[TrainState, Any]]
    update: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Runner
    seconds: float


def compile_programs(plan: Plan) -> Programs:
    """Compiles all that a run calls, ahead of time. `collect` and `update` donate the state.

    With a `HostEnv`, whose shapes nobody knows before it's stepped, all is compiled when it's used.
    """
    started = time.perf_counter()
    if isinstance(plan.trainer.env, HostEnv):
        update = jax.jit(plan.trainer.update, donate_argnums=0)
        return Programs(plan.trainer.init, plan.trainer.collect, update, _runner(plan), 0.0)
    trainer = over_seeds(plan.trainer) if plan.seeds > 1 else plan.trainer
    template = state_template(plan.trainer, plan.seeds)
    runner = _runner(plan)

    init = jax.jit(trainer.init).lower(plan.keys(), trainer.inputs)
    collect = jax.jit(trainer.collect, donate_argnums=0).lower(template, trainer.inputs)
    state, batch = collect.out_info
    update = jax.jit(trainer.update, donate_argnums=0).lower(state, batch, trainer.inputs)
    learned = trainer.learned(template)
    evaluate = jax.jit(runner).lower(
        (learned, trainer.inputs), _split_key("validation"), np.int32(0)
    )

    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = pool.map(lambda lowered: lowered.compile(), (init, collect, update, evaluate))
    return Programs(*programs, seconds=time.perf_counter() - started)


def _runner(plan: Plan) -> Runner:
    """Runs episodes with what is learned and the trainer's inputs: `params` is the pair of them."""
    trainer = plan.trainer
    run = episode_runner(trainer.env, trainer.act(True), plan.batch)

    def run_one(params: tuple[Params, Any], key: jax.Array, first: jax.Array) -> dict:
        return run(trainer.complete(*params), key, first)

    return run_one if plan.seeds == 1 else jax.vmap(run_one, ((0, None), None, None))


def state_template(trainer: Trainer, seeds: int) -> TrainState:
    """Shapes and types of a `TrainState`, with a leading axis if there are several seeds."""
    trainer = over_seeds(trainer) if seeds > 1 else trainer
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    keys = keys if seeds > 1 else jax.ShapeDtypeStruct((), keys.dtype)
    return jax.eval_shape(trainer.init, keys, trainer.inputs)


def estimate(
    plan: Plan, programs: Programs, learned: Params, split: str, episodes: int
) -> list[dict[str, Estimate]]:
    """Evaluates each seed's policy on the same episodes."""
    params = learned, plan.trainer.inputs
    sums = run_episodes(programs.evaluate, plan.batch, params, split, _EVALUATION_SEED, episodes)
    rows = {name: values.reshape(plan.seeds, episodes) for name, values in sums.items()}
    metric = plan.trainer.env.metric
    return [summarise(metric, {k: v[i] for k, v in rows.items()}) for i in range(plan.seeds)]


def _split_key(split: str) -> jax.Array:
    return split_key(split, _EVALUATION_SEED)
