"""Exports a trained policy for computers without this library.

python -m experiments.export --run-dir runs/servo --out exported

Writes policy.npz with runner.py, which needs numpy and Python 3.6 or later, and policy.stablehlo.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments import cli
from experiments.common import restore_trainer
from jaxrobo.deploy import extract, runner, save_npz, save_stablehlo
from jaxrobo.training import RunError, restore_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an export.

    Attributes:
      run_dir: the folder of the run.
      out: the folder to write to.
      checkpoint: the best on the validation split, or the last.
      seed: one of the run's seeds; the first if None.
    """

    run_dir: Path
    out: Path
    checkpoint: Literal["best", "last"] = "best"
    seed: int | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    o = cli.parse(Options, argv, "python -m experiments.export", __doc__)
    with cli.failing(RunError, ValueError, OSError):
        trainer = restore_trainer(o.run_dir)
        _, params = restore_policy(o.run_dir, trainer, o.checkpoint, o.seed)
        network = extract(trainer, params)
        save_npz(network, o.out / "policy.npz")
        save_stablehlo(network, o.out / "policy.stablehlo")
        shutil.copy(runner.__file__, o.out)
    print(f"{o.out}: policy.npz, runner.py (python3 runner.py policy.npz), policy.stablehlo")


if __name__ == "__main__":
    cli.start(main)
