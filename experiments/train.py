"""Trains a policy, keeps the best, tests it, and draws its learning curve.

    python -m experiments.train --env DofbotReacher --seed 1
    python -m experiments.train --env DofbotReacher --seed 1 --resume

Every field of the task's and of the algorithm's `Config` is a flag; `--env NAME --help` lists them.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import envs
from experiments import cli
from experiments.common import (
    ALGORITHMS,
    algorithm,
    draw_learning_curve,
    make_trainer,
    scheduled,
    show,
    source_entry,
)
from experiments.presets import check_preset, preset
from jaxrobo import data, rundir, training
from jaxrobo.metrics import JSONL

_COMMAND = "python -m experiments.train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Options of a run.

    Attributes:
      env: the task.
      algo: the algorithm.
      engine: native (MuJoCo C on CPU threads), mjx (on the device); auto takes mjx where JAX has an
        accelerator.
      demos: demonstrations to clone, a file of `experiments.collect`.
      base: the policy that a residual policy corrects: the folder of a run, or "expert".
      preset: of `experiments.refine`, whose stage this is: cpu, long, paper; the task's own if
        None.
      run_dir: where everything is written; runs/<env>-<algo>-<seed> if None.
      resume: go on with the run in that folder.
      seed: the first seed.
      seeds: how many are trained at once.
      steps: budget; may be raised on resume, unless the learning rate falls to zero by then.
      evaluate_every: steps between evaluations, after each of which the run is saved.
      evaluation_episodes: episodes of each evaluation.
      test_episodes: episodes of the test at the end.
      patience: evaluations in a row without a better score that end the run; none do if None.
      wandb: log to Weights & Biases as well.
    """

    env: str
    algo: str = "ppo"
    engine: Literal["auto", "native", "mjx"] = "auto"
    demos: Path | None = None
    base: str | None = None
    preset: str | None = None
    run_dir: Path | None = None
    resume: bool = False
    seed: int = 0
    seeds: int = 1
    steps: int = 1_000_000
    evaluate_every: int = 100_000
    evaluation_episodes: int = 128
    test_episodes: int = 256
    patience: int | None = None
    wandb: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    run, task, config = parse(argv)
    run_dir = run.run_dir or Path("runs", f"{run.env}-{run.algo}-{run.seed}")
    with cli.failing(ValueError, data.NoSuccess):
        source = _source(run)
        config = scheduled(config, run.steps)
        trainer = make_trainer(run.env, run.engine, task, run.algo, config, source)
    names = {"env": run.env, "algo": run.algo, "engine": trainer.env.engine, "task": task}
    with cli.failing(training.RunError):
        result = training.run(
            trainer,
            run_dir,
            steps=run.steps,
            evaluate_every=run.evaluate_every,
            seed=run.seed,
            seeds=run.seeds,
            evaluation_episodes=run.evaluation_episodes,
            test_episodes=run.test_episodes,
            patience=run.patience,
            config=names | source_entry(run.algo, source, run_dir),
            resume=run.resume,
            wandb=run.wandb,
        )
    if result.interrupted:
        again = argv if run.resume else [*argv, "--resume"]
        cli.stopped(f"{_COMMAND} {shlex.join(again)}")
    seeds = range(run.seed, run.seed + run.seeds)
    title = f"{run.env}: {run.test_episodes} test episodes, best of {result.steps:,} steps"
    show(title, {f"seed {k}": e for k, e in zip(seeds, result.evaluation, strict=True)})
    logs = {f"seed {k}": rundir.seed_dir(run_dir, k, run.seeds) / JSONL for k in seeds}
    draw_learning_curve(logs, run_dir, trainer.env.metric)
    print(f"{result.wall_seconds:.0f} s, compilation {result.compile_seconds:.0f} s: {run_dir}")


def parse(argv: Sequence[str]) -> tuple[Run, Any, Any]:
    """Options of the run, the task's `Config` and the algorithm's. Exits with 2 on a wrong flag.

    Which flags there are depends on the task and the algorithm, and their defaults on the preset,
    so these are looked for first.
    """
    known = f"tasks: {', '.join(envs.names())}; algorithms: {', '.join(ALGORITHMS)}"
    name, algo, profile, chosen = cli.peek(argv, "--env", "--algo", "--profile", "--preset")
    if name is None:
        if {"-h", "--help"} & set(argv):
            cli.parse(Run, ["--help"], _COMMAND, f"{__doc__}\n{known}")
        cli.fail(f"--env is missing; valid: {', '.join(envs.names())}")
    algo = algo or Run.algo
    with cli.failing(ValueError):
        task, config = envs.config_class(name), algorithm(algo).config_class
        options = cli.merge(run=Run, task=task, algorithm=config)
        if chosen is not None:
            check_preset(name, algo, chosen)
        scale = None if chosen == "cpu" else chosen
        values = cli.distribute(preset(name, algo, scale or profile), Run, task, config)
        run = Run(env=name, algo=algo, **values[0])
        default = options(run, task(**values[1]), config(**values[2]))
    parsed = cli.parse(options, argv, _COMMAND, f"{__doc__}\n{known}", default)
    return parsed.run, parsed.task, parsed.algorithm


def _source(run: Run) -> Path | str | None:
    """What the algorithm learns from. Raises ValueError if it takes no such thing."""
    given = {k: v for k in ("demos", "base") if (v := getattr(run, k)) is not None}
    needs = algorithm(run.algo).source
    if wrong := given.keys() - {needs}:
        raise ValueError(f"{run.algo} doesn't take --{min(wrong)}")
    return given.get(needs)


if __name__ == "__main__":
    cli.start(main)
