import json
import sys
import types

import numpy as np
import pytest

from jaxrobo.checkpoint import RunError
from jaxrobo.metrics import JSONL, Display, Logs, find_wandb


def read(folder):
    return [json.loads(line) for line in (folder / JSONL).read_text().splitlines()]


def counters(iteration):
    return {"iteration": iteration, "steps": 10 * iteration, "seconds": 0.5}


def test_each_seed_gets_its_own_finite_numbers(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    with Logs(tmp_path, folders, None, 0, {}) as logs:
        logs.write(counters(1), {"x": np.array([1.5, np.nan]), "y": np.array([np.inf, 2])})
    assert read(folders[0]) == [counters(1) | {"x": 1.5}]
    assert read(folders[1]) == [counters(1) | {"y": 2.0}]


@pytest.mark.parametrize("cut", ["", '{"iteration": 4, "st', '{"iteration": 1, "x": 7}'])
def test_going_on_drops_later_rows_and_a_line_that_was_cut_off(tmp_path, cut):
    with Logs(tmp_path, [tmp_path], None, 0, {}) as logs:
        for i in range(4):
            logs.write(counters(i), {"x": np.float32(i)})
    with (tmp_path / JSONL).open("a") as file:
        file.write(cut)
    with Logs(tmp_path, [tmp_path], 2, 20, {}) as logs:
        logs.write(counters(3), {"x": np.float32(30)})
    assert [row["x"] for row in read(tmp_path)] == [0, 1, 2, 30]


def test_wandb_gets_the_same(tmp_path):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finish"),
    )
    wandb = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    folders = [tmp_path / "seed-0", tmp_path / "seed-1"]
    with Logs(tmp_path, folders, None, 0, {"hidden": (64, 64)}, wandb) as logs:
        logs.write(counters(1), {"x": np.array([1.0, 2.0])})
    assert calls[0]["config"] == {"hidden": [64, 64]}
    assert calls[0]["dir"] == str(tmp_path)
    assert calls[1:] == [(10, {"seed-0/x": 1.0}), (10, {"seed-1/x": 2.0}), "finish"]


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxrobo.metrics.time.monotonic", lambda: now[0])
    with Display(total=4000, done=1000, metric="goals") as display:
        for second in range(1, 26):
            now[0] = float(second)
            if second == 5:
                display.score([1.25, 2.0])
            display.show(1000 + 100 * second)
    assert capsys.readouterr().out.splitlines() == [
        "2,000 of 4,000 steps, 100/s, ETA 0:00:20, goals 1.25 2",
        "3,000 of 4,000 steps, 100/s, ETA 0:00:10, goals 1.25 2",
        "3,500 of 4,000 steps, 100/s, ETA 0:00:05, goals 1.25 2",
    ]


def test_a_folder_of_its_name_is_not_wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(RunError, match="wandb isn't installed"):
        find_wandb()
