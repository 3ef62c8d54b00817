import dataclasses
import json
import os

import numpy as np
import pytest

from jaxrobo.checkpoint import RunError
from jaxrobo.evaluation import Estimate
from jaxrobo.rundir import check, claimed, hardware, plain, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (64, 64)
    cap: float | None = None


def test_everything_becomes_what_json_can_hold(tmp_path):
    data = {
        "config": Config(),
        "estimate": Estimate(0.5, float("nan"), np.float32("inf")),
        "list": [np.int64(3), True, "x"],
        "path": tmp_path,
    }
    expected = {
        "config": {"hidden": [64, 64], "cap": None},
        "estimate": {"mean": 0.5, "low": None, "high": None},
        "list": [3, True, "x"],
        "path": str(tmp_path),
    }
    assert json.loads(json.dumps(plain(data))) == expected


def test_a_run_may_go_on_with_the_same_configuration_and_another_budget(tmp_path):
    write_json(tmp_path / "config.json", {"task": Config(), "steps": 10})
    check(tmp_path, {"task": Config(), "steps": 20}, resume=True)


def test_all_differences_are_named_with_both_values(tmp_path):
    write_json(tmp_path / "config.json", {"task": Config(), "seed": 0, "old": 1})
    changed = {"task": Config((32,), 0.5), "seed": 0, "new": "x"}
    with pytest.raises(RunError) as error:
        check(tmp_path, changed, resume=True)
    assert str(error.value).split(": ")[1].split("; ") == [
        "task.hidden is [64, 64] there, [32] here",
        "task.cap is None there, 0.5 here",
        "old is 1 there, missing here",
        "new is missing there, 'x' here",
    ]


def test_only_a_new_or_empty_folder_is_taken(tmp_path):
    check(tmp_path / "new", {}, resume=False)
    check(tmp_path, {}, resume=False)
    (tmp_path / ".config-x").mkdir()  # a kill left it
    check(tmp_path, {}, resume=False)
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="exists: resume the run, or choose another folder"):
            check(folder, {}, resume=False)
    with pytest.raises(RunError, match=r"run can't be made: .*file isn't a folder"):
        check(tmp_path / "file" / "run", {}, resume=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no run in .*config.json is missing"),
        ('{"task": ', "config.json is damaged"),
        ("\xff", "config.json is damaged"),
        ("[1, 2]", "is not the configuration of a run"),
    ],
)
def test_missing_damaged_and_foreign_configurations_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=message):
        check(tmp_path, {}, resume=True)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    with claimed(tmp_path / "run"):
        with pytest.raises(RunError, match=r"another process is writing .*run"):
            claimed(tmp_path / "run").__enter__()
        check(tmp_path / "run", {}, resume=False)  # the lock isn't something that was written
    with claimed(tmp_path / "run"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written to"):
        claimed(tmp_path / "file").__enter__()


def test_a_file_is_whole_even_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_hardware_names_the_processor():
    assert "cores of" in hardware()
