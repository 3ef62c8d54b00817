"""How far do demonstrations, a clone and its refinement get, and how long does each take?

Runs `experiments.refine` for several seeds one after another, or goes on with runs in the folder,
and pools their test episodes, with and without kicks. When a rate was reached is read off the
validation curve of the refinement: steps and wall time of that stage alone, without compilation.
All seeds are tested on the same starts; what comes of them together is shown of the policies alone,
since the expert does the same in each.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

import envs
from benchmarks.common import report
from experiments import refine
from experiments.common import load
from jaxrobo import rundir
from jaxrobo.evaluation import evaluate, mean_of_seeds, wilson_interval
from jaxrobo.metrics import JSONL

STAGES = ("expert", "clone", "refined")
RATES = (0.90, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      run_dir: where the runs are kept.
      env: the task, one that is judged by success.
      randomness: of its starts.
      preset: of `experiments.refine`.
      seeds: how many runs.
      steps: control steps of each refinement; those of the preset if None.
      episodes: test episodes of each run.
      perturbation: the probability that a part is kicked in a step of the disturbed episodes; they
        are left out if 0. The task must have such an option.
      out: where to write JSON.
    """

    run_dir: Path
    env: str = "PegHole"
    randomness: Literal["low", "med", "high", "wide"] = "low"
    preset: Literal["cpu", "long", "paper"] = "cpu"
    seeds: int = 3
    steps: int | None = None
    episodes: int = 1024
    perturbation: float = 0.01
    out: Path | None = None


def main(options: Options) -> None:
    """Runs what is missing, and prints the table."""
    runs = [_run(options, seed) for seed in range(options.seeds)]
    counts = {name: sum(run.counts[name] for run in runs) for name in runs[0].counts}
    trials = options.episodes * options.seeds
    rows = [run.row | _rates(run.counts, options.episodes) | run.times for run in runs]
    together = {k: v for k, v in _rates(counts, trials).items() if not k.startswith("expert")}
    rows.append(dict.fromkeys(rows[0], "") | {"seed": "all"} | together)
    if options.seeds > 1:
        rates = {
            k: [run.counts[k] / options.episodes for run in runs] for k in together.keys() & counts
        }
        rows.append(
            dict.fromkeys(rows[0], "")
            | {"seed": "between seeds"}
            | {k: _between(v) for k, v in rates.items()}
        )
    title = f"{options.env}, {options.randomness}: success on the same test episodes"
    report(title, rows, options.out)


class Run(NamedTuple):
    """What came of a run.

    Attributes:
      row: its first columns.
      counts: successful test episodes of each stage, by column.
      times: its last columns.
    """

    row: dict[str, Any]
    counts: dict[str, int]
    times: dict[str, Any]


def _run(options: Options, seed: int) -> Run:
    run_dir = options.run_dir / f"{options.env}-{options.randomness}-{seed}"
    flags = {
        "--env": options.env,
        "--randomness": options.randomness,
        "--preset": options.preset,
        "--seed": seed,
        "--test-episodes": options.episodes,
        "--run-dir": run_dir,
    }
    if options.steps is not None:
        flags["--steps"] = options.steps
    resume = ["--resume"] if (run_dir / rundir.CONFIG).exists() else []
    refine.main([*(str(x) for pair in flags.items() for x in pair), *resume])
    result = json.loads((run_dir / rundir.RESULT).read_text())
    estimates = {stage: result[stage]["estimates"]["success"]["mean"] for stage in STAGES}
    counts = {stage: round(mean * options.episodes) for stage, mean in estimates.items()}
    if options.perturbation:
        counts |= {f"{stage}, kicked": _kicked(options, run_dir, stage) for stage in STAGES}
    spent = lambda stage: stage["wall_seconds"] + stage.get("compile_seconds", 0.0)
    minutes = {f"{stage}, min": spent(result[stage]) / 60 for stage in STAGES}
    row = {"seed": seed, "steps": result["refined"]["steps"]}
    return Run(row, counts, minutes | _reached(run_dir / "refined" / JSONL))


def _kicked(options: Options, run_dir: Path, stage: str) -> int:
    """Successes of a stage's policy where parts are kicked."""
    env, policy, params = load(run_dir / "refined")
    config = dataclasses.replace(env.unwrapped.config, perturbation=options.perturbation)
    other = envs.make(options.env, **vars(config))
    if stage == "expert":
        policy, params = other.expert(), ()
    elif stage == "clone":
        _, policy, params = load(run_dir / stage)
    estimates = evaluate(other, policy, params, "test", episodes=options.episodes)
    return round(estimates["success"].mean * options.episodes)


def _reached(log: Path) -> dict[str, str]:
    """By rate: at which of the validations it was reached first."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    curve = [(x["validation/success"], x) for x in lines if "validation/success" in x]
    when = {}
    for rate in RATES:
        first = next((x for score, x in curve if score >= rate), None)
        show = "-" if first is None else f"{first['steps']:,}, {first['seconds'] / 60:.1f} min"
        when[f"to {rate:.0%}"] = show
    return when


def _between(rates: list[float]) -> str:
    """The interval of the mean of several trainings' rates."""
    _, low, high = mean_of_seeds(rates, "rate")
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _rates(counts: dict[str, int], trials: int) -> dict[str, Any]:
    """Rates of success with their intervals, and the share of the clone's failures removed."""

    def show(successes: int) -> str:
        low, high = wilson_interval(successes, trials)
        return f"{100 * successes / trials:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    failures = trials - counts["clone"]
    removed = (counts["refined"] - counts["clone"]) / failures if failures else "-"
    return {name: show(n) for name, n in counts.items()} | {"failures removed": removed}


if __name__ == "__main__":
    main(tyro.cli(Options))
