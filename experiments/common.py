"""What the experiments share: environments and trainers by name, and trained policies by folder."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import rich
from rich.markup import escape
from rich.table import Table

import envs
from jaxrobo import data, rundir, training
from jaxrobo.checkpoint import RunError, stored_fingerprint
from jaxrobo.env import Env, Metric
from jaxrobo.evaluation import Estimate
from jaxrobo.learning import bc, diffusion_bc, ppo, residual_ppo
from jaxrobo.learning.trainer import Trainer
from jaxrobo.policy import Params, Policy


class Algorithm(NamedTuple):
    """How an algorithm is made.

    Attributes:
      make: `(env, config) -> Trainer`, with what it learns from in between if it needs something.
      config_class: of its options.
      source: what else it needs: demonstrations, or the run of a base policy.
    """

    make: Callable[..., Trainer]
    config_class: type
    source: Literal["demos", "base"] | None = None


ALGORITHMS = {
    "ppo": Algorithm(ppo.make, ppo.Config),
    "bc": Algorithm(bc.make, bc.Config, "demos"),
    "diffusion_bc": Algorithm(diffusion_bc.make, diffusion_bc.Config, "demos"),
    "residual_ppo": Algorithm(residual_ppo.make, residual_ppo.Config, "base"),
}

EXPERT = "expert"
"""Instead of a run's folder: the task's scripted expert as the base policy."""

_EXPERT_EPISODES = 64
"""Episodes of the expert that say what range its actions have."""


def algorithm(name: str) -> Algorithm:
    """An algorithm by name. Raises ValueError if it's unknown."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; valid: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def make_trainer(
    env: str, engine: str, task: Any, algo: str, config: Any, source: str | Path | None = None
) -> Trainer:
    """A trainer in an environment.

    Args:
      env: name of the environment.
      engine: see `envs.make`.
      task: the environment's `Config`.
      algo: name of the algorithm.
      config: the algorithm's `Config`.
      source: the file of the demonstrations, or the folder of the base policy's run or `EXPERT`, if
        the algorithm needs one.

    Raises:
      ValueError: on an unknown name, a bad value, or a source that is missing, damaged or doesn't
        fit the task.
    """
    made = envs.make(env, engine, **_fields(task))
    make, _, needs = algorithm(algo)
    if (source is None) != (needs is None):
        what = f"needs --{needs}" if needs else "takes neither --demos nor --base"
        raise ValueError(f"{algo} {what}")
    if needs == "demos":
        return make(made, data.read(Path(source)), config)
    if needs == "base" and str(source) == EXPERT:
        return make(made, _expert_base(made, envs.make(env, "native", **_fields(task))), config)
    if needs == "base":
        return make(made, _base(made, engine, source), config)
    return make(made, config)


def scheduled(config: Any, steps: int) -> Any:
    """An algorithm's `Config` whose schedule knows its end: that of the run, unless it says when.

    Raises:
      ValueError: if it ends before the run does.
    """
    schedule = getattr(config, "schedule", "cosine")  # clones have but one
    if not hasattr(config, "decay_steps") or not schedule.endswith("cosine"):
        return config
    if config.decay_steps is None:
        return dataclasses.replace(config, decay_steps=steps)
    if config.decay_steps < steps:
        raise ValueError(
            f"with --decay-steps {config.decay_steps} nothing is learnt from there on, of {steps:,}"
            " steps: raise it in a new run, or lower --steps"
        )
    return config


def source_entry(algo: str, source: str | Path | None, run_dir: Path) -> dict[str, str]:
    """What `config.json` says of the source: its path from the run's folder, and what is there.

    What is there is said of policies only, by a fingerprint.
    """
    needs = algorithm(algo).source
    if needs is None or str(source) == EXPERT:
        return {needs: EXPERT} if needs else {}
    # Links are followed: the system would follow them before it goes up by "..".
    entry = {needs: os.path.relpath(Path(source).resolve(), run_dir.resolve())}
    if needs == "base":
        entry["base_fingerprint"] = stored_fingerprint(Path(source) / rundir.BEST)
    return entry


def _expert_base(env: Env, native: Env) -> residual_ppo.Base:
    """The scripted expert, to correct.

    The units are fitted on the native engine, whatever `env` runs on: they must be the same again
    when what was learned in them is loaded for the other one. Raises ValueError if there's none.
    """
    if not hasattr(env, "expert"):
        raise ValueError(f"{type(env.unwrapped).__name__} has no scripted expert")
    count = _EXPERT_EPISODES
    episodes = data.collect(native, native.expert(), (), count, batch=count)
    return residual_ppo.Base(env.expert(), (), data.fit(episodes))


def _base(env: Env, engine: str, source: str | Path) -> residual_ppo.Base:
    """The policy to correct, which must act as `env` is acted in.

    Raises:
      ValueError: if there's no such run, or it's of other settings.
    """
    trainer = restore_trainer(Path(source), engine)
    if algorithm(rundir.read_config(Path(source))["algo"]).source != "demos":
        raise RunError(f"{source} is not the run of a cloned policy")
    try:
        about, here = data.describe(trainer.env), data.describe(env)
        data.check_settings(about, here, ("action", "dt"))
    except data.DataError as error:
        raise RunError(f"the base policy of {source} doesn't fit: {error}") from error
    policy, params = training.restore_policy(source, trainer)
    return residual_ppo.Base(policy, params, params["normaliser"])


def stored_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run of `experiments.train`.

    Raises:
      RunError: if there's none in the folder, or it's another experiment's.
    """
    stored = rundir.read_config(run_dir)
    if "refinement" in stored:
        raise RunError(
            f"{run_dir} holds the stages of experiments.refine: "
            f"choose {run_dir / 'refined'} or {run_dir / 'clone'}"
        )
    if "env" not in stored:
        raise RunError(f"{run_dir} holds no run of experiments.train: {rundir.CONFIG} has no env")
    return stored


def restore_trainer(run_dir: Path, engine: str = "auto") -> Trainer:
    """The trainer of a run, made anew from the stored configuration.

    Args:
      run_dir: the run's folder.
      engine: which engine to run on; not necessarily the one that the run used.

    Raises:
      RunError: if there's no run in the folder, or this version doesn't know its task, algorithm or
      options.
    """
    stored = stored_config(run_dir)
    try:
        name, algo = stored["env"], stored["algo"]
        task = _from_json(envs.config_class(name), stored["task"])
        config = _from_json(algorithm(algo).config_class, stored["algorithm"])
        needs = algorithm(algo).source
        if needs == "demos":
            env = envs.make(name, engine, **_fields(task))
            return algorithm(algo).make(env, _blank(env), config)
        source = stored["base"] if needs else None
        if source not in (None, EXPERT):
            source = run_dir.resolve() / source
            if stored_fingerprint(source / rundir.BEST) != stored["base_fingerprint"]:
                raise RunError(f"the base policy in {source} isn't the one that it corrects")
        return make_trainer(name, engine, task, algo, config, source)
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
    for name in dict.fromkeys(name for e in estimates.values() for name in e):
        table.add_row(name, *(cell(e.get(name)) for e in estimates.values()))
    rich.print(table)


def cell(estimate: Estimate | None) -> str:
    """An estimate and its interval, in a table of rich's; a dash for none."""
    if estimate is None:
        return "-"
    return escape(f"{estimate.mean:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]")


def draw_learning_curve(logs: Mapping[str, Path], run_dir: Path, metric: Metric) -> None:
    """Draws `learning_curve.png` from the logs of some seeds, by what to call each."""
    from jaxrobo.plotting import plot_learning_curve  # matplotlib is slow to import

    plot_learning_curve(logs, run_dir / "learning_curve.png", metric.name, metric.beside)


def _blank(env: Env) -> data.Trajectories:
    """Demonstrations of one step: what a trainer needs of them to restore what it has learned."""
    zeros = lambda spec: np.zeros((1, *spec.shape), spec.dtype)
    obs = jax.tree.map(zeros, data.named(env.observation_spec))
    no = np.zeros(1, bool)
    return data.Trajectories(
        obs=obs,
        action=np.zeros((1, env.action_size), np.float32),
        reward=np.zeros(1, np.float32),
        terminated=no,
        truncated=no,
        episode_ends=np.ones(1, np.int64),
        success=no,
        episode=np.zeros(1, np.int64),
        metadata=data.describe(env),
    )


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _from_json(config_class: type, values: dict[str, Any]) -> Any:
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
