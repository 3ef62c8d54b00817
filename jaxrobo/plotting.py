"""Learning curves from the logs of a run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxrobo._files import replacing
from jaxrobo.evaluation import LEVEL

_TRAINING, _VALIDATION = "#8c96a3", "#0b5fce"
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))

Row = dict[str, Any]


class _Curve(NamedTuple):
    """Values of one run, by the steps at which they were logged; both `[n]`, steps ascending."""

    steps: np.ndarray
    values: np.ndarray


def plot_learning_curve(
    runs: Mapping[str, Path], path: Path, metric: str, beside: Sequence[str] = ()
) -> None:
    """Draws a metric in training and in validation against steps, and wall time above them.

    Each run is a thin line, the mean of several runs a thick one; validation has its interval. A
    value that isn't known at some step is left out there.

    Args:
      runs: logs by name, each a `metrics.jsonl` (`jaxrobo.metrics`); they differ in their seed.
      path: where to write, a `.png`; a file that's there is replaced.
      metric: the name of an episode's metric, as in "train/episode/<metric>" and
        "validation/<metric>".
      beside: names of others, drawn below it if the logs have them.

    Raises:
      ValueError: if no log has the metric, or a log isn't one.
    """
    logs = [_read(Path(file)) for file in runs.values()]
    keys = {key for rows in logs for row in rows for key in row}
    if not keys & {f"train/episode/{metric}", _validation(metric)}:
        raise ValueError(f"no log has {metric!r}; valid: {', '.join(_metrics(keys)) or 'none'}")
    beside = [name for name in beside if any(_curve(x, _validation(name)).steps.size for x in logs)]
    heights = [4.4, *(1.8 for _ in beside)]
    figure = Figure(figsize=(7.2, sum(heights)), layout="constrained")
    every = figure.subplots(len(heights), squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, name in zip(every, (metric, *beside), strict=True):
        _draw_metric(axes, logs, name)
    top = every[0]
    top.set_ylabel(f"{metric} per episode")
    top.legend(frameon=False)
    top.set_xlim(0, max(1, *(row["steps"] for rows in logs for row in rows)) * 1.01)
    every[-1].set_xlabel("steps")
    _add_wall_time(top, [_curve(rows, "seconds") for rows in logs])
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)


def _validation(metric: str) -> str:
    return f"validation/{metric}"


def _draw_metric(axes: Axes, logs: Sequence[Sequence[Row]], metric: str) -> None:
    training, validation = f"train/episode/{metric}", _validation(metric)
    label = f"validation ({100 * LEVEL:g} % interval)"
    _draw(axes, [_curve(rows, training) for rows in logs], "training", _TRAINING, marker="")
    _draw(axes, [_curve(rows, validation) for rows in logs], label, _VALIDATION, marker="o")
    intervals = [[_curve(rows, f"{validation}/{end}") for end in ("low", "high")] for rows in logs]
    _draw_intervals(axes, intervals)
    axes.set_ylabel(metric.replace("_", " "))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _read(path: Path) -> list[Row]:
    """The rows of a log, without a last one that is still being written."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} isn't a log of metrics: {error}") from error
    if not rows or not all(isinstance(row, dict) and "steps" in row for row in rows):
        raise ValueError(f"{path} isn't a log of metrics: rows need 'steps'")
    return rows


def _metrics(keys: Iterable[str]) -> list[str]:
    """The names of the episodes' metrics in a log."""
    named = (
        key.removeprefix(prefix)
        for key in keys
        for prefix in ("train/episode/", "validation/")
        if key.startswith(prefix) and not key.endswith(("/low", "/high"))
    )
    return sorted(set(named))


def _curve(rows: Sequence[Row], key: str) -> _Curve:
    """The values of a key; of rows with the same steps the last one counts."""
    values = dict(sorted({row["steps"]: row[key] for row in rows if key in row}.items()))
    return _Curve(np.array([*values], float), np.array([*values.values()], float))


def _mean(curves: Sequence[_Curve]) -> _Curve:
    """The mean over runs where all of them have values, interpolated between their points."""
    low = max(c.steps[0] for c in curves)
    high = min(c.steps[-1] for c in curves)
    steps = np.unique(np.concatenate([c.steps for c in curves]))
    steps = steps[(steps >= low) & (steps <= high)]
    return _Curve(steps, np.mean([np.interp(steps, *c) for c in curves], axis=0))


def _draw(axes: Axes, curves: Sequence[_Curve], label: str, colour: str, marker: str) -> None:
    """Thin lines for several runs, and a thick one for their mean, or for the only run."""
    curves = [c for c in curves if len(c.steps)]
    if not curves:
        return
    thick = dict(color=colour, linewidth=1.8, marker=marker, markersize=4)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*curve, color=colour, linewidth=0.8, alpha=0.45)
        label = f"{label}, mean of {len(curves)} runs"
    axes.plot(*_mean(curves), label=label, **thick)


def _draw_intervals(axes: Axes, intervals: Sequence[Sequence[_Curve]]) -> None:
    """A band from low to high; several runs' bands overlap."""
    for low, high in intervals:
        if len(low.steps):
            axes.fill_between(
                low.steps,
                low.values,
                np.interp(low.steps, *high),
                color=_VALIDATION,
                alpha=0.18 / np.sqrt(len(intervals)),
                linewidth=0,
            )


def _add_wall_time(axes: Axes, elapsed: Sequence[_Curve]) -> None:
    """An axis on top with round wall times at the steps that were reached by then."""
    if not all(len(c.steps) for c in elapsed):
        return
    steps, seconds = _mean(elapsed)
    if not len(steps):  # the runs have no steps in common
        return
    seconds = np.maximum.accumulate(seconds)
    unit, name = next((u for u in _UNITS if seconds[-1] >= 2 * u[0]), _UNITS[-1])
    times = MaxNLocator(nbins=6, integer=True).tick_values(0, seconds[-1] / unit)
    times = times[(times * unit >= seconds[0]) & (times * unit <= seconds[-1])]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(np.interp(times * unit, seconds, steps), [f"{t:g}" for t in times])
    top.set_xlabel(f"wall time, {name}")
    top.spines[["right"]].set_visible(False)
