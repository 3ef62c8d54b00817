"""What benchmarks share: timing, the machine, and the report."""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrobo import rundir

_FILE_WIDTH = 200
"""Columns of a table that goes to a file."""


def best_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of several runs, after one that compiles and warms up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mujoco": mujoco.__version__,
    }


def report(title: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Prints the rows as a table and, with `out`, writes them as JSON beside the machine."""
    table = Table(title=title)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "-")) for column in columns))
    Console(width=None if sys.stdout.isatty() else _FILE_WIDTH).print(table)
    if out is not None:
        rundir.write_json(out, {"title": title, "machine": machine(), "rows": rows})


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float | np.floating) else str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
