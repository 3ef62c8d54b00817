"""How far do demonstrations, a clone and its refinement get, and how long does each take?

Runs `experiments.refine` for several seeds one after another, or goes on with runs in the folder,
and pools their test episodes. When a rate was reached is read off the validation curve of the
refinement: steps and wall time of that stage alone, with its compilation.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.common import report
from experiments import refine
from jaxrobo import rundir
from jaxrobo.evaluation import wilson_interval
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
      seeds: how many runs.
      steps: control steps of each refinement; those of the preset if None.
      episodes: test episodes of each run.
      out: where to write JSON.
    """

    run_dir: Path
    env: str = "PegHole"
    randomness: Literal["low", "med", "high", "wide"] = "low"
    seeds: int = 3
    steps: int | None = None
    episodes: int = 1024
    out: Path | None = None


def main(options: Options) -> None:
    rows = [_run(options, seed) for seed in range(options.seeds)]
    pooled = {"seed": "all"} | {stage: _pool(options, rows, stage) for stage in STAGES}
    clone, refined = (sum(row["counts"][stage] for row in rows) for stage in STAGES[1:])
    failures = options.episodes * options.seeds - clone
    pooled["failures removed"] = (refined - clone) / failures if failures else "-"
    columns = dict.fromkeys(key for row in rows for key in row if key != "counts")
    table = [{key: row.get(key, "") for key in columns} for row in (*rows, pooled)]
    title = f"{options.env}, {options.randomness}: success on the same test episodes"
    report(title, table, options.out)


def _run(options: Options, seed: int) -> dict[str, Any]:
    run_dir = options.run_dir / f"{options.env}-{options.randomness}-{seed}"
    flags = {
        "--env": options.env,
        "--randomness": options.randomness,
        "--seed": seed,
        "--test-episodes": options.episodes,
        "--run-dir": run_dir,
    }
    if options.steps is not None:
        flags["--steps"] = options.steps
    resume = ["--resume"] if (run_dir / rundir.CONFIG).exists() else []
    refine.main([*(str(x) for pair in flags.items() for x in pair), *resume])
    result = json.loads((run_dir / rundir.RESULT).read_text())
    estimates = {stage: result[stage]["estimates"]["success"] for stage in STAGES}
    seconds = {stage: result[stage]["wall_seconds"] for stage in STAGES}
    return {
        "seed": seed,
        "counts": {k: round(e["mean"] * options.episodes) for k, e in estimates.items()},
        **{k: _show(e["mean"], e["low"], e["high"]) for k, e in estimates.items()},
        "failures removed": result["share_of_failures_removed"],
        "steps": result["refined"]["steps"],
        **{f"min {stage}": seconds[stage] / 60 for stage in STAGES},
        **_reached(run_dir / "refined" / JSONL),
    }


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


def _pool(options: Options, rows: list[dict[str, Any]], stage: str) -> str:
    trials = options.episodes * options.seeds
    successes = sum(row["counts"][stage] for row in rows)
    return _show(successes / trials, *wilson_interval(successes, trials))


def _show(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
