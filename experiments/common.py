"""What the experiments share: environments and trainers by name, and trained policies by folder."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import rich
from rich.markup import escape
from rich.table import Table

import envs
from jaxrobo import rundir, training
from jaxrobo.checkpoint import RunError
from jaxrobo.env import Env
from jaxrobo.evaluation import Estimate
from jaxrobo.learning import ppo
from jaxrobo.learning.trainer import Trainer
from jaxrobo.policy import Params, Policy


class Algorithm(NamedTuple):
    """How an algorithm is made: `make(env, config)`."""

    make: Callable[[Env, Any], Trainer]
    config_class: type


ALGORITHMS = {"ppo": Algorithm(ppo.make, ppo.Config)}


def algorithm(name: str) -> Algorithm:
    """An algorithm by name. Raises ValueError if it's unknown."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; valid: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def make_trainer(env: str, engine: str, task: Any, algo: str, config: Any) -> Trainer:
    """A trainer in an environment.

    Args:
      env: name of the environment.
      engine: see `envs.make`.
      task: the environment's `Config`.
      algo: name of the algorithm.
      config: the algorithm's `Config`.

    Raises:
      ValueError: on an unknown name or a bad value.
    """
    options = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    return algorithm(algo).make(envs.make(env, engine, **options), config)


def restore_trainer(run_dir: Path, engine: str = "auto") -> Trainer:
    """The trainer of a run, made anew from the stored configuration.

    Args:
      run_dir: the run's folder.
      engine: which engine to run on; not necessarily the one that the run used.

    Raises:
      RunError: if there's no run in the folder, or this version doesn't know its task, algorithm or
      options.
    """
    stored = rundir.read_config(run_dir)
    try:
        name, algo = stored["env"], stored["algo"]
        task = _from_json(envs.config_class(name), stored["task"])
        config = _from_json(algorithm(algo).config_class, stored["algorithm"])
        return make_trainer(name, engine, task, algo, config)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run_dir / rundir.CONFIG} can't be used: {error}") from error


def load(
    run_dir: str | Path,
    which: Literal["best", "last"] = "best",
    seed: int | None = None,
    engine: str = "auto",
) -> tuple[Env, Policy, Params]:
    """A trained policy, and the environment that it was trained in.

        env, policy, params = load("runs/DofbotReacher-ppo-0")
        state = start(env, policy, key)                           # jaxrobo.rollout
        state, transitions = rollout(env, policy, params, state, steps=100)

    Args:
      run_dir: the run's folder.
      which: the checkpoint: the best on the validation split, or the last.
      seed: one of the run's seeds; the first if None.
      engine: which engine to run on; not necessarily the one that the run used.

    Raises:
      RunError: if there's no such run or checkpoint, or it's damaged.
    """
    trainer = restore_trainer(Path(run_dir), engine)
    policy, params = training.restore_policy(run_dir, trainer, which, seed)
    return trainer.env, policy, params


def show(title: str, estimates: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Prints estimates, the task's metric on top: a column for each seed."""
    table = Table("", *estimates, title=title)
    first = next(iter(estimates.values()))
    for name in first:
        cells = [
            f"{e[name].mean:.4g} [{e[name].low:.4g}, {e[name].high:.4g}]"
            for e in estimates.values()
        ]
        table.add_row(name, *(escape(cell) for cell in cells))
    rich.print(table)


def _from_json(config_class: type, values: dict[str, Any]) -> Any:
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
