"""What a run tells while it lasts: logs on disk, and a progress bar or lines for people.

`metrics.jsonl` has a JSON object a line: "iteration", "steps" (the trainer's counter), "seconds"
(of the run so far, without compilation), and either the metrics of an iteration, "train/<name>", or
an evaluation, "validation/<name>" with its interval in "validation/<name>/low" and "/high". Numbers
that aren't finite are left out. TensorBoard, and Weights & Biases if asked for, show the same.
"""

import contextlib
import importlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxrobo._files import replacing
from jaxrobo.checkpoint import RunError
from jaxrobo.rundir import plain

JSONL = "metrics.jsonl"


class Logs:
    """The logs of all seeds of a run; a context manager."""

    def __init__(
        self,
        run_dir: Path,
        folders: Sequence[Path],
        iteration: int | None,
        steps: int,
        config: Mapping[str, Any],
        wandb: ModuleType | None = None,
    ) -> None:
        """Opens the logs, and drops what a killed run wrote beyond where it goes on.

        Args:
          run_dir: the run's folder.
          folders: where each seed's files are.
          iteration: the last iteration whose rows stay; None if no row does.
          steps: the same in the trainer's counter.
          config: the run's configuration.
          wandb: what `find_wandb` found, to log there as well.
        """
        self._folders = folders
        self._files, self._boards = [], []
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(folder / JSONL, -1 if iteration is None else iteration)
            self._files.append((folder / JSONL).open("a", buffering=1))  # a line at a time
            self._boards.append(
                tensorboardX.SummaryWriter(
                    str(folder / "tensorboard"),
                    purge_step=0 if iteration is None else steps + 1,
                    flush_secs=10,
                )
            )
        self._wandb = wandb and wandb.init(
            project="jaxrobo",
            name=run_dir.name,
            dir=str(run_dir),
            config=plain(config),
            resume="auto",
        )

    def __enter__(self) -> "Logs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for log in (*self._files, *self._boards):
            log.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, counters: Mapping[str, float], values: Mapping[str, np.ndarray]) -> None:
        """Adds a row to each seed's logs.

        Args:
          counters: "iteration", "steps" and "seconds".
          values: by name, [] or [seeds].
        """
        for k, folder in enumerate(self._folders):
            mine = {name: float(np.reshape(v, -1)[k]) for name, v in values.items()}
            mine = {name: v for name, v in mine.items() if math.isfinite(v)}
            self._files[k].write(json.dumps({**counters, **mine}) + "\n")
            for name, v in mine.items():
                self._boards[k].add_scalar(name, v, counters["steps"])
            if self._wandb is not None:
                prefix = f"{folder.name}/" if len(self._folders) > 1 else ""
                named = {f"{prefix}{name}": v for name, v in mine.items()}
                self._wandb.log(named, step=counters["steps"])


def find_wandb() -> ModuleType:
    """The `wandb` package. Raises RunError if it isn't installed."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("wandb")
        if hasattr(module, "init"):  # wandb leaves a folder of that name, which can be imported too
            return module
    raise RunError("wandb isn't installed: run pip install wandb, or leave wandb out")


def _drop_after(path: Path, iteration: int) -> None:
    """Rewrites a log without the rows beyond `iteration`, nor a last one that a kill cut off."""
    if not path.exists():
        return
    with replacing(path) as temporary, path.open() as old, temporary.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["iteration"] <= iteration:
                new.write(line)


class Display:
    """How far a run is: a progress bar, or a line now and then where there's no terminal.

    A context manager.
    """

    period = 10.0
    """Seconds between two lines."""

    def __init__(self, total: int, done: int, metric: str) -> None:
        """Shows `done` of `total` steps, and the latest value of `metric`."""
        self._total, self._first, self._metric = total, done, metric
        self._started = self._last = time.monotonic()
        self._score = self._pending = ""
        console = Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._pending:
            print(self._pending, flush=True)

    def score(self, values: Sequence[float]) -> None:
        """Takes the metric's values, one a seed."""
        self._score = f", {self._metric} {' '.join(f'{v:.3g}' for v in values)}"

    def show(self, steps: int) -> None:
        """Shows that `steps` are done."""
        now = time.monotonic()
        text = self._text(steps, now)
        self._bar.update(self._task, completed=steps, text=text)
        if self._bar.disable:
            self._pending = text
            if now - self._last >= self.period:
                print(text, flush=True)
                self._last, self._pending = now, ""

    def _text(self, steps: int, now: float) -> str:
        speed = (steps - self._first) / max(now - self._started, 1e-9)
        left = timedelta(seconds=round(max(self._total - steps, 0) / speed)) if speed else "?"
        return f"{steps:,} of {self._total:,} steps, {speed:,.0f}/s, ETA {left}{self._score}"
