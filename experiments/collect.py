"""Collects demonstrations of a task's scripted expert.

    python -m experiments.collect --env DofbotReacher --episodes 50 --out demos/reacher.zarr

Every field of the task's `Config` is a flag; `--env NAME --help` lists them. The same command goes
on where an earlier one ended or was killed, and with a larger `--episodes` adds to it.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

import envs
from experiments import cli
from jaxrobo import data
from jaxrobo._files import obstacle
from jaxrobo.env import Env
from jaxrobo.policy import Policy
from jaxrobo.rollout import check_seed

_COMMAND = "python -m experiments.collect"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Options of a collection.

    Attributes:
      env: the task.
      out: where to write: a folder with `.zarr`, a file with `.hdf5`.
      episodes: how many to have in the end.
      format: zarr as diffusion_policy lays it out, or as robust-rearrangement does; hdf5 as
        robomimic does. By the name of `out` if None.
      engine: native (MuJoCo C on CPU threads), mjx (on the device); auto takes mjx where JAX has an
        accelerator.
      seed: which draw of the training split.
      batch: simulations side by side; what a batch adds is saved when all of it is over.
      failures: keep failed episodes as well.
      states: store what a film needs.
    """

    env: str
    out: Path
    episodes: int = 50
    format: Literal["zarr", "robust_rearrangement", "hdf5"] | None = None
    engine: Literal["auto", "native", "mjx"] = "auto"
    seed: int = 0
    batch: int = 256
    failures: bool = False
    states: bool = False

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_seed(self.seed)
        suffix = ".hdf5" if self.format == "hdf5" else ".zarr"
        valid = (suffix,) if self.format else (".zarr", ".hdf5")
        if self.out.suffix not in valid:
            raise ValueError(f"out must end in {' or '.join(valid)}, got {self.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options, task = parse(argv)
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    with cli.failing(ValueError):
        env = envs.make(options.env, options.engine, **fields)
        if not hasattr(env, "expert"):
            raise ValueError(f"{options.env} has no scripted expert")
        expert = env.expert()
    with cli.failing(data.DataError, data.NoSuccess):
        collect(env, expert, options)
    print(options.out)


def collect(env: Env, expert: Policy, options: Collection) -> None:
    """Collects what is missing, and stores the normaliser of the whole.

    Raises:
      DataError: if the file is of other settings, can't be used, or another process writes it.
      NoSuccess: if the expert fails all the time.
    """
    about = data.describe(env, "train", options.seed, options.failures)
    if not options.out.exists():
        data.check_format(options.format or "", about)
        if why := obstacle(options.out):
            raise data.DataError(why)
    with data.claimed(options.out):
        _collect(env, expert, options, about)


def _collect(env: Env, expert: Policy, options: Collection, about: data.Metadata) -> None:
    found, first = _progress(options, about)
    missing = options.episodes - found
    parts = data.stream(
        env,
        expert,
        None,
        missing,
        first=first,
        seed=options.seed,
        batch=options.batch,
        failures=options.failures,
        poses=options.states,
    )
    format_ = options.format or options.out.suffix[1:]
    with _bar() as bar:
        task = bar.add_task("", total=options.episodes, completed=found)
        for part in parts if missing > 0 else ():
            data.extend(options.out, part, format_)
            bar.advance(task, part.episodes)
    data.write_normaliser(options.out, data.fit(data.read(options.out)))


def parse(argv: Sequence[str]) -> tuple[Collection, Any]:
    """Options of the collection, and the task's `Config`. Exits with 2 on a wrong flag."""
    known = f"tasks: {', '.join(envs.names())}"
    (name,) = cli.peek(argv, "--env")
    if name is None:
        if {"-h", "--help"} & set(argv):
            cli.parse(Collection, ["--help"], _COMMAND, f"{__doc__}\n{known}")
        cli.fail(f"--env is missing; valid: {', '.join(envs.names())}")
    with cli.failing(ValueError):
        options = cli.merge(collection=Collection, task=envs.config_class(name))
    parsed = cli.parse(options, argv, _COMMAND, f"{__doc__}\n{known}")
    return parsed.collection, parsed.task


def _progress(options: Collection, about: data.Metadata) -> tuple[int, int]:
    """How many episodes are there already, and the number of the next to try."""
    if not options.out.exists():
        return 0, 0
    there = data.read(options.out)
    if there.metadata.env is None:
        raise data.DataError(f"{options.out} was written by others: choose another path")
    data.check_settings(there.metadata, about)
    if bool(there.poses) != options.states:
        how = "with" if there.poses else "without"
        raise data.DataError(f"{options.out} was collected {how} --states")
    if options.format not in (None, format_ := data.format_of(options.out)):
        raise data.DataError(f"{options.out} is in the format {format_}, not {options.format}")
    return there.episodes, int(there.episode[-1]) + 1


def _bar() -> Progress:
    console = Console()
    return Progress(
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes,"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    cli.start(main)
