"""The folder of a run: what it was started with, and what came of it.

    config.json    the whole configuration; a run goes on only with the same
    result.json    the outcome, once the run is complete
    last/, best/   checkpoints (`jaxrobo.checkpoint`)
    metrics.jsonl, tensorboard/   logs (`jaxrobo.metrics`)

With several seeds, the logs and a result of each are in `seed-<seed>/`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxrobo import _files
from jaxrobo._files import obstacle, replacing
from jaxrobo.checkpoint import RunError

CONFIG, RESULT, BEST, LAST = "config.json", "result.json", "best", "last"

_FREE = ("steps", "test_episodes")
"""What may change when a run goes on."""


def check(run_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Checks that a new run may take a folder, or that an old run may go on there.

    Raises:
      RunError: if a new run's folder isn't empty, or can't be made; if there's no run to resume, or
        it was started with another configuration: all fields that differ are named, with both
        values.
    """
    if resume:
        if changes := differences(_fixed(read_config(run_dir)), _fixed(plain(config))):
            raise RunError(
                f"{run_dir} was started with another configuration: {'; '.join(changes)}"
            )
    elif run_dir.exists() and (not run_dir.is_dir() or any(map(_ours, run_dir.iterdir()))):
        raise RunError(f"{run_dir} exists: resume the run, or choose another folder")
    elif why := obstacle(run_dir):
        raise RunError(why)


def claimed(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from writing a run's folder; makes it.

    Raises:
      RunError: on entry, if another process writes there, or nobody may.
    """
    return _files.claimed(run_dir, run_dir / ".lock", RunError)


def _ours(path: Path) -> bool:
    """Whether it's something that was written; a kill leaves hidden ones that weren't."""
    return not path.name.startswith(".")


def read_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run. Raises RunError if there is none, or it can't be read."""
    path = run_dir / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"there is no run in {run_dir}: {CONFIG} is missing") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} is not the configuration of a run")
    return config


def seed_dir(run_dir: Path, seed: int, seeds: int) -> Path:
    """Where a seed's logs and result are: a folder of its own if there are several seeds."""
    return run_dir / f"seed-{seed}" if seeds > 1 else run_dir


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a file that is whole at every moment, and makes its folder."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(data), indent=2) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold: dataclasses and named tuples become dicts, what isn't finite null."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def hardware() -> str:
    """The devices in words, as in "cpu, 8 cores of Intel(R) Xeon(R) Gold 6154 CPU @ 3.00GHz"."""
    devices = jax.devices()
    accelerator = (
        "" if devices[0].platform == "cpu" else f"{len(devices)} x {devices[0].device_kind}, "
    )
    return f"{accelerator}{_cores()} cores of {_cpu()}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in _FREE}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, a sentence each."""
    old, new = _flat(there), _flat(here)
    show = lambda values, k: repr(values[k]) if k in values else "missing"
    missing = object()
    return [
        f"{k} is {show(old, k)} there, {show(new, k)} here"
        for k in {**old, **new}
        if old.get(k, missing) != new.get(k, missing)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
