import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import envs
from experiments import collect
from jaxrobo import data
from tests.data.samples import assert_same, sample
from tests.experiments import coin

COIN = ["--env", "Coin"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Knows the task here, and nowhere else."""
    monkeypatch.setattr(envs, "_REGISTRY", dict(envs._REGISTRY))
    coin.register()


def refusal(argv, capsys):
    """The one line on stderr with which the command exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        collect.main(argv)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err


def expected(episodes, **options):
    env = envs.make("Coin")
    return data.collect(env, env.expert(), None, episodes, **options)


@pytest.mark.parametrize("name", ["x.zarr", "x.hdf5"])
def test_it_collects_and_a_larger_number_adds(tmp_path, capsys, name):
    path = tmp_path / "demos" / name
    argv = [*COIN, "--out", str(path), "--seed", "5", "--batch", "4"]
    collect.main([*argv, "--episodes", "3"])
    assert capsys.readouterr().out == f"{path}\n"
    collect.main([*argv, "--episodes", "5"])
    collect.main([*argv, "--episodes", "4"])
    got = data.read(path)
    assert_same(got, expected(5, seed=5))
    normaliser = data.read_normaliser(path)
    np.testing.assert_array_equal(normaliser.scale["obs"], data.fit(got).scale["obs"])


def test_failures_are_kept_if_asked_for(tmp_path):
    path = tmp_path / "x.zarr"
    collect.main([*COIN, "--out", str(path), "--episodes", "12", "--failures"])
    assert_same(data.read(path), expected(12, failures=True))
    assert 0 < data.read(path).success.sum() < 12


def test_killed_half_way_it_goes_on_where_it_was(tmp_path):
    path = tmp_path / "x.zarr"
    argv = [*COIN, "--out", str(path), "--batch", "8"]
    code = "from tests.experiments import coin; coin.register(); import experiments.collect as c"
    command = [sys.executable, "-c", f"{code}; c.main()", *argv, "--episodes", "5000"]
    with subprocess.Popen(command, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGKILL)
    found = data.read(path)
    assert 0 < found.episodes < 5000
    more = found.episodes + 3
    whole = expected(more)
    assert_same(found, data.take(whole, range(found.episodes)))
    collect.main([*argv, "--episodes", str(more)])
    assert_same(data.read(path), whole)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--episode-steps", "5"], ["config.episode_steps is 8 there, 5 here"]),
        (["--act", "0.5"], ["config.act is -0.25 there, 0.5 here"]),
        (["--seed", "1"], ["seed is 0 there, 1 here"]),
        (["--states"], ["was collected without --states"]),
        (["--format", "robust_rearrangement"], ["is in the format zarr, not robust_rearrangement"]),
    ],
)
def test_a_file_of_other_settings_is_refused(tmp_path, capsys, monkeypatch, argv, words):
    path = tmp_path / "x.zarr"
    collect.main([*COIN, "--out", str(path), "--episodes", "1", "--batch", "8"])
    capsys.readouterr()
    monkeypatch.setattr(data, "stream", None)  # it's refused before any work
    message = refusal([*COIN, "--out", str(path), "--episodes", "3", *argv], capsys)
    for word in words:
        assert word in message
    assert data.read(path).episodes == 1


@pytest.mark.parametrize("name", ["x.zarr", "x.hdf5"])
@pytest.mark.parametrize("episodes", ["1", "9"])
def test_a_file_of_others_is_left_as_it_is(tmp_path, capsys, name, episodes):
    path = tmp_path / name
    data.FORMATS[path.suffix[1:]](path, sample().replace(metadata=data.Metadata()))
    message = refusal([*COIN, "--out", str(path), "--episodes", episodes], capsys)
    assert f"{path} was written by others: choose another path" in message
    with pytest.raises(data.DataError, match="there is no normaliser"):
        data.read_normaliser(path)


def test_episodes_under_other_conditions_are_kept_apart(tmp_path, capsys):
    """Though they're of the same task: a clone learns from either."""
    path = tmp_path / "x.zarr"
    collect.main([*COIN, "--out", str(path), "--episodes", "2", "--noise", "0.5"])
    capsys.readouterr()
    message = refusal([*COIN, "--out", str(path), "--episodes", "3"], capsys)
    assert "conditions.noise is 0.5 there, 0.0 here" in message
    data.check_env(data.read(path), envs.make("Coin"))


def test_a_file_without_failures_gets_none(tmp_path, capsys):
    path = tmp_path / "x.zarr"
    collect.main([*COIN, "--out", str(path), "--episodes", "2"])
    capsys.readouterr()
    message = refusal([*COIN, "--out", str(path), "--episodes", "3", "--failures"], capsys)
    assert "failures is False there, True here" in message


def test_two_collectors_dont_share_a_file(tmp_path, capsys):
    path = tmp_path / "x.zarr"
    with data.claimed(path):
        message = refusal([*COIN, "--out", str(path), "--episodes", "3"], capsys)
    assert "another process is writing" in message
    assert not path.exists()


def test_a_file_with_poses_is_refused_if_none_are_wanted(tmp_path, capsys):
    path = tmp_path / "x.zarr"
    about = data.describe(envs.make("Coin"), "train", 0)
    data.zarr.write(path, sample().replace(metadata=about))
    assert "was collected with --states" in refusal([*COIN, "--out", str(path)], capsys)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--env is missing", "DofbotReacher"]),
        (["--env", "Foo"], ["unknown environment 'Foo'", "valid: Coin, DofbotReacher"]),
        ([*COIN], ["--out"]),
        ([*COIN, "--out", "x"], ["out must end in .zarr or .hdf5, got x"]),
        ([*COIN, "--out", "x.zarr", "--format", "hdf5"], ["out must end in .hdf5, got x.zarr"]),
        ([*COIN, "--out", "x.zarr", "--format", "rlds"], ["'rlds'", "robust_rearrangement"]),
        ([*COIN, "--out", "x.zarr", "--episodes", "0"], ["episodes must be at least 1, got 0"]),
        ([*COIN, "--out", "x.zarr", "--batch", "0"], ["batch must be at least 1, got 0"]),
        ([*COIN, "--out", "x.zarr", "--seed", "-1"], ["seed must be in 0 .. 2147483647, got -1"]),
        ([*COIN, "--out", "/dev/null/x.zarr"], ["x.zarr can't be made: /dev/null isn't a folder"]),
        ([*COIN, "--out", "x.zarr", "--episode-step", "3"], ["perhaps --episode-steps"]),
        ([*COIN, "--out", "x.zarr", "--no-expert"], ["Coin has no scripted expert"]),
        ([*COIN, "--out", "x.zarr", "--act", "-2"], ["the expert can't act by -2"]),
        (
            [*COIN, "--out", "x.zarr", "--format", "robust_rearrangement"],
            ["takes actions of mode pos or delta, got None"],
        ),
    ],
)
def test_bad_flags_are_refused_in_one_line(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "stream", None)  # it's refused before any work
    message = refusal(argv, capsys)
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


def test_every_option_of_the_task_is_a_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        collect.main([*COIN, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for group in (collect.Collection, coin.Config):
        for field in dataclasses.fields(group):
            assert f"--{field.name.replace('_', '-')}" in text


def test_an_expert_that_always_fails_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.collection, "PATIENCE", 4)
    message = refusal([*COIN, "--act", "-1", "--out", str(tmp_path / "x.zarr")], capsys)
    assert "50 episodes in a row failed" in message
    assert not (tmp_path / "x.zarr").exists()


def test_the_layouts_are_those_of_the_library(tmp_path):
    data.FORMATS["robust_rearrangement"](tmp_path / "y.zarr", sample())
    assert (tmp_path / "y.zarr/action/pos").is_dir()


@pytest.mark.parametrize("format_", data.FORMATS)
def test_the_format_of_a_file_is_known(tmp_path, format_):
    data.FORMATS[format_](tmp_path / "x", sample())
    assert data.format_of(tmp_path / "x") == format_
