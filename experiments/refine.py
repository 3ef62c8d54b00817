"""From demonstrations to a refined policy: collects, clones, refines, and compares.

    python -m experiments.refine --env PegHole --randomness low --run-dir runs/peg
    python -m experiments.refine --env PegHole --randomness low --run-dir runs/peg --resume

Writes into the folder of the run:

    demonstrations.zarr   of the scripted expert, unless --demos names others
    clone/, refined/      the runs of both policies (`experiments.train` makes the same)
    result.json           success of expert, clone and refined policy on the same test episodes
    video.mp4             clone (left) and refined policy (right) from the same starts

Every field of the task's `Config` is a flag; `--env NAME --help` lists them.
"""

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import rich
from rich.table import Table

import envs
from experiments import cli
from experiments.collect import Collection, collect
from experiments.common import (
    algorithm,
    cell,
    draw_learning_curve,
    load,
    make_trainer,
    scheduled,
    source_entry,
)
from experiments.presets import check_preset, preset, refinement
from jaxrobo import data, rundir, training
from jaxrobo.env import Env, PhysicsEnv
from jaxrobo.evaluation import Estimate, evaluate
from jaxrobo.metrics import JSONL
from jaxrobo.rollout import check_seed, episode_key

_COMMAND = "python -m experiments.refine"

_STAGES = ("clone", "refined")
"""The stages that train."""

_FILMED = 2
"""Starts in the video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
    """Options of a refinement.

    Attributes:
      env: the task.
      engine: native (MuJoCo C on CPU threads), mjx (on the device); auto takes mjx where JAX has an
        accelerator.
      demos: demonstrations to clone, a file of `experiments.collect`; the expert's if None.
      episodes: how many demonstrations the expert gives.
      clone: into what they are cloned: an MLP (bc), which a CPU trains in minutes, or a diffusion
        policy.
      preset: cpu; long, which is cpu with more demonstrations and steps; or paper: networks,
        simulations and epochs of arXiv 2407.16677.
      steps: control steps of the refinement, over which its learning rate falls; those of the
        preset if None.
      seed: of the demonstrations and of both trainings.
      run_dir: where everything is written; runs/<env>-refine-<seed> if None.
      resume: go on with the run in that folder, at the stage and step where it stopped.
      test_episodes: on which all three are compared.
    """

    env: str = "PegHole"
    engine: Literal["auto", "native", "mjx"] = "auto"
    demos: Path | None = None
    episodes: int = 50
    clone: Literal["bc", "diffusion_bc"] = "bc"
    preset: Literal["cpu", "long", "paper"] = "cpu"
    steps: int | None = None
    seed: int = 0
    run_dir: Path | None = None
    resume: bool = False
    test_episodes: int = 256

    def __post_init__(self) -> None:
        for name in ("episodes", "test_episodes", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_seed(self.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options, task, demonstrated = parse(argv)
    with cli.failing(ValueError):
        env, run_dir = _begin(options, task, demonstrated)
    with (
        cli.failing(training.RunError, data.DataError, data.NoSuccess),
        rundir.claimed(run_dir),
    ):
        finished = _refine(env, options, task, demonstrated, run_dir)
    if not finished:
        again = argv if options.resume else [*argv, "--resume"]
        cli.stopped(f"{_COMMAND} {shlex.join(again)}")


def _begin(options: Refinement, task: Any, demonstrated: Any) -> tuple[Env, Path]:
    """The environment, and the run's folder, new or to go on with.

    Raises:
      ValueError: if an option is wrong, the folder is taken or the demonstrations can't be used.
    """
    run_dir = options.run_dir or Path("runs", f"{options.env}-refine-{options.seed}")
    env = envs.make(options.env, options.engine, **dataclasses.asdict(task))
    _check(env, options)
    config = {"refinement": _lasting(options, run_dir), "task": task, "engine": env.engine}
    if options.demos is None:
        config["demonstrated"] = demonstrated
    rundir.check(run_dir, config, options.resume)
    rundir.write_json(run_dir / rundir.CONFIG, config)
    return env, run_dir


def _refine(env: Env, options: Refinement, task: Any, demonstrated: Any, run_dir: Path) -> bool:
    """Runs what is left of the stages; False if one was interrupted.

    Raises:
      RunError: if a stage's folder isn't of this run.
      NoSuccess: if the expert fails all the time.
    """
    results = {"expert": _demonstrate(env, options, demonstrated, run_dir)}
    sources = {"clone": options.demos or run_dir / _DEMOS, "refined": run_dir / "clone"}
    for stage, source in sources.items():
        result = _train(stage, source, options, task, run_dir)
        if result is None:
            return False
        results[stage] = result
    _conclude(env, options, run_dir, results)
    return True


def _check(env: Env, options: Refinement) -> None:
    """Raises ValueError if there is no expert or preset, or the demonstrations can't be used."""
    if not hasattr(env, "expert"):
        raise ValueError(f"{options.env} has no scripted expert")
    env.expert()
    for algo in (_algorithm(options, stage) for stage in _STAGES):
        check_preset(options.env, algo, options.preset)
    if options.demos is not None:
        data.check_env(data.read(options.demos), env)


def _algorithm(options: Refinement, stage: str) -> str:
    return {"clone": options.clone, "refined": "residual_ppo"}[stage]


def parse(argv: Sequence[str]) -> tuple[Refinement, Any, Any]:
    """Options of the refinement, the task's `Config`, and that in which demonstrations are given.

    They differ as the preset says, except in what flags say. Exits with 2 on a wrong flag.
    """
    name, chosen = cli.peek(argv, "--env", "--preset")
    name, chosen = name or Refinement.env, chosen or Refinement.preset
    with cli.failing(ValueError):
        config_class = envs.config_class(name)
        options = cli.merge(refinement=Refinement, task=config_class)
        names = {f.name for f in dataclasses.fields(config_class)}
        known = {k: v for k, v in preset(name, "residual_ppo", chosen).items() if k in names}
        kept, changes = cli.distribute(refinement(name, chosen), Refinement, config_class)
        default = options(Refinement(env=name, **kept), config_class(**known))
    parsed = cli.parse(options, argv, _COMMAND, __doc__, default)
    given = cli.given(argv, *changes)
    changes = {k: v for k, v in changes.items() if k not in given}
    return parsed.refinement, parsed.task, dataclasses.replace(parsed.task, **changes)


_DEMOS = "demonstrations.zarr"


def _lasting(options: Refinement, run_dir: Path) -> dict[str, Any]:
    """What must not change when a run goes on; of the engine, what it stands for is compared."""
    free = {"run_dir", "resume", "test_episodes", "engine"}
    kept = {k: v for k, v in rundir.plain(options).items() if k not in free}
    if options.demos is not None:
        kept["demos"] = os.path.relpath(options.demos.resolve(), run_dir.resolve())
        del kept["episodes"]  # there are as many as there are
    return kept


def _demonstrate(env: Env, options: Refinement, demonstrated: Any, run_dir: Path) -> dict[str, Any]:
    """Collects demonstrations unless there are some, and tests the expert."""
    path = run_dir / "expert.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get("episodes") == options.test_episodes:
        return result
    began = time.perf_counter()
    if options.demos is None and not result:
        print("stage 1 of 3: demonstrations", flush=True)
        out, count = run_dir / _DEMOS, options.episodes
        options_ = Collection(env=options.env, out=out, episodes=count, seed=options.seed)
        demo_env = envs.make(options.env, options.engine, **dataclasses.asdict(demonstrated))
        collect(demo_env, demo_env.expert(), options_)
        result = {"wall_seconds": time.perf_counter() - began}
        rundir.write_json(path, result)
    seconds = result.get("wall_seconds", 0.0)
    episodes = options.test_episodes
    estimates = evaluate(env, env.expert(), (), "test", episodes=episodes)
    result = {"episodes": episodes, "estimates": estimates, "wall_seconds": seconds}
    rundir.write_json(path, result)
    return rundir.plain(result)


def _train(
    stage: str, source: Path, options: Refinement, task: Any, run_dir: Path
) -> dict[str, Any] | None:
    """Runs a stage that trains, or what is left of it; None if it's interrupted."""
    folder, algo = run_dir / stage, _algorithm(options, stage)
    config_class = algorithm(algo).config_class
    values = preset(options.env, algo, options.preset)
    _, run, config = cli.distribute(values, type(task), _Budget, config_class)
    if stage == "refined" and options.steps is not None:
        run["steps"] = options.steps
    if (folder / rundir.RESULT).exists():
        result = json.loads((folder / rundir.RESULT).read_text())
        if result["episodes"] == options.test_episodes:
            return result
    print(f"stage {_STAGES.index(stage) + 2} of 3: {stage}", flush=True)
    config = scheduled(config_class(**config), run["steps"])
    trainer = make_trainer(options.env, options.engine, task, algo, config, source)
    names = {"env": options.env, "algo": algo, "engine": trainer.env.engine, "task": task}
    result = training.run(
        trainer,
        folder,
        **run,
        seed=options.seed,
        test_episodes=options.test_episodes,
        config=names | source_entry(algo, source, folder),
        resume=(folder / rundir.CONFIG).exists(),
    )
    if result.interrupted:
        return None
    draw_learning_curve({"seed": folder / JSONL}, folder, trainer.env.metric)
    return json.loads((folder / rundir.RESULT).read_text())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Budget:
    """The options of `training.run` that a preset may set."""

    steps: int
    evaluate_every: int
    evaluation_episodes: int = 128
    patience: int | None = None


def _conclude(
    env: Env, options: Refinement, run_dir: Path, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Prints the table, and writes the results and the film."""
    metric = env.metric.name
    rates = {stage: r["estimates"][metric]["mean"] for stage, r in results.items()}
    failing = 1 - rates["clone"]
    removed = (rates["refined"] - rates["clone"]) / failing if failing else None
    rundir.write_json(
        run_dir / rundir.RESULT,
        {
            "env": options.env,
            "seed": options.seed,
            "preset": options.preset,
            "episodes": options.test_episodes,
            "share_of_failures_removed": removed,
            **results,
        },
    )
    _show(f"{options.env}: {options.test_episodes} test episodes", metric, results)
    path = run_dir / "video.mp4"
    _film(env, options, run_dir, path)
    print(run_dir)


def _show(title: str, metric: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("", *results, title=title)
    for name, label in ((metric, metric), ("length_of_success", f"steps to {metric}")):
        found = [r["estimates"].get(name) for r in results.values()]
        table.add_row(label, *(cell(None if e is None else _estimate(e)) for e in found))
    seconds = [r["wall_seconds"] + r.get("compile_seconds", 0.0) for r in results.values()]
    table.add_row("wall time, s", *(f"{s:.0f}" for s in seconds))
    rich.print(table)


def _estimate(stored: Mapping[str, float | None]) -> Estimate:
    """JSON has null for NaN: one episode has a mean, but no interval."""
    return Estimate(**{k: math.nan if v is None else v for k, v in stored.items()})


def _film(env: Env, options: Refinement, run_dir: Path, path: Path) -> None:
    from jaxrobo.rendering import RendererUnavailable, film, record, side_by_side

    if not isinstance(env.unwrapped, PhysicsEnv):
        print(f"no video: {options.env} has no MuJoCo model")
        return
    keys = jax.vmap(lambda i: episode_key("test", 0, i))(jnp.arange(_FILMED))
    runs = [load(run_dir / stage, engine=options.engine) for stage in _STAGES]
    both = side_by_side(*(record(env, policy, params, keys) for _, policy, params in runs))
    try:
        film(env, both, path)
    except RendererUnavailable as error:
        print(f"no video: {error}")


if __name__ == "__main__":
    cli.start(main)
