"""Learning curves: what is drawn is what the logs say."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from jaxrobo.plotting import plot_learning_curve


def write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def train(steps, goals, **more):
    return {"steps": steps, "train/episode/goals": goals, **more}


def validate(steps, goals, low, high, **more):
    names = ("validation/goals", "validation/goals/low", "validation/goals/high")
    return {"steps": steps, **dict(zip(names, (goals, low, high), strict=True)), **more}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Plots, and returns the axes before they become pixels."""
    seen = []
    save = Figure.savefig

    def spy(figure, *arguments, **options):
        seen.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)

    def plot(*logs, metric="goals", beside=()):
        runs = {f"seed {k}": path for k, path in enumerate(logs)}
        plot_learning_curve(runs, tmp_path / "curve.png", metric, beside)
        return seen[-1].axes

    return plot


def lines(axes):
    """The points of each line, by its label; those without one are listed under ''."""
    found = {"": []}
    for line in axes.get_lines():
        label, points = line.get_label(), line.get_xydata().tolist()
        if label.startswith("_"):
            found[""].append(points)
        else:
            found[label] = points
    return found


def test_one_run(drawn, tmp_path):
    rows = [validate(0, 0, -1, 1), train(10, 2), train(20, 4), validate(20, 5, 4, 7)]
    (axes,) = drawn(write(tmp_path / "log", rows))
    assert lines(axes) == {
        "": [],
        "training": [[10, 2], [20, 4]],
        "validation (95 % interval)": [[0, 0], [20, 5]],
    }
    (band,) = axes.collections
    corners = {tuple(v) for v in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, -1), (0, 1), (20, 4), (20, 7)}
    assert axes.get_ylabel() == "goals per episode"


def test_several_runs_have_a_mean_where_all_have_values(drawn, tmp_path):
    first = write(tmp_path / "a", [train(0, 0), train(10, 10), train(20, 20)])
    second = write(tmp_path / "b", [train(10, 4), train(15, 6), train(30, 6)])
    (axes,) = drawn(first, second)
    assert lines(axes) == {
        "": [[[0, 0], [10, 10], [20, 20]], [[10, 4], [15, 6], [30, 6]]],
        "training, mean of 2 runs": [[10, 7], [15, 10.5], [20, 13]],
    }


def test_other_estimates_are_drawn_below_if_they_are_known(drawn, tmp_path):
    time = {"validation/time": 7, "validation/time/low": 6, "validation/time/high": 9}
    rows = [validate(0, 0, 0, 0), validate(10, 4, 3, 5, **time)]
    first = write(tmp_path / "a.jsonl", rows)
    second = write(tmp_path / "b.jsonl", rows[:1])
    _, below, *more = drawn(first, second, beside=["time", "unknown"])
    assert not more
    assert below.get_ylabel() == "time"
    (label,) = set(lines(below)) - {""}
    assert lines(below)[label] == [[10, 7]]


def test_wall_time_is_on_top_where_the_steps_were_reached(drawn, tmp_path):
    # Twice as fast after the first 10 minutes.
    rows = [train(0, 0, seconds=0.0), train(100, 1, seconds=600.0), train(300, 2, seconds=1200.0)]
    axes, top = drawn(write(tmp_path / "log", rows))
    minutes = [float(label.get_text()) for label in top.get_xticklabels()]
    assert top.get_xlabel() == "wall time, min"
    assert top.get_xlim() == axes.get_xlim()
    assert len(minutes) > 3
    reached = [10 * m if m <= 10 else 100 + 20 * (m - 10) for m in minutes]
    np.testing.assert_allclose(top.get_xticks(), reached)


def test_no_wall_time_if_a_run_has_none(drawn, tmp_path):
    timed = write(tmp_path / "a", [train(0, 0, seconds=0.0), train(9, 1, seconds=5.0)])
    assert len(drawn(timed, write(tmp_path / "b", [train(0, 0), train(9, 1)]))) == 1


def test_no_wall_time_if_runs_have_no_steps_in_common(drawn, tmp_path):
    early = write(tmp_path / "a", [train(0, 0, seconds=0.0), train(9, 1, seconds=5.0)])
    late = write(tmp_path / "b", [train(20, 0, seconds=7.0), train(29, 1, seconds=9.0)])
    assert len(drawn(early, late)) == 1


def test_a_row_that_is_still_being_written_is_left_out(drawn, tmp_path):
    log = write(tmp_path / "log", [train(10, 2), train(20, 4)], end='\n{"steps": 3')
    assert lines(drawn(log)[0])["training"] == [[10, 2], [20, 4]]


def test_of_rows_with_the_same_steps_the_last_counts(drawn, tmp_path):
    log = write(tmp_path / "log", [train(10, 2), train(20, 4), train(10, 3)])
    assert lines(drawn(log)[0])["training"] == [[10, 3], [20, 4]]


def test_the_file_is_a_picture_and_nothing_else_is_left(tmp_path):
    log = write(tmp_path / "log", [train(0, 0), train(10, 2)])
    path = tmp_path / "new" / "curve.png"
    plot_learning_curve({"seed 0": log}, path, "goals")
    picture = imread(path)
    assert picture.shape == (660, 1080, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 10
    assert [*path.parent.iterdir()] == [path]


def test_an_unknown_metric_is_refused(drawn, tmp_path):
    log = write(tmp_path / "log", [train(0, 0), validate(0, 0, 0, 0, **{"validation/reward": 1})])
    with pytest.raises(ValueError, match=r"no log has 'success'; valid: goals, reward$"):
        drawn(log, metric="success")


@pytest.mark.parametrize("text", ["", "steps,goals\n0,1\n", "[1]\n", '{"step": 1}\n'])
def test_a_file_that_is_not_a_log_is_refused(drawn, tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match="log isn't a log of metrics"):
        drawn(tmp_path / "log")
