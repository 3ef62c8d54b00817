import re

import numpy as np
import pytest

import envs
from experiments import inspect
from jaxrobo import data, rendering
from tests.data.samples import sample


def rows(text):
    """The cells of all rows of all tables."""
    lines = [line for line in text.splitlines() if re.match(r"[│|]", line)]
    return [[cell.strip() for cell in re.split(r"[│|]", line)[1:-1]] for line in lines]


def test_it_prints_what_is_inside(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    won, lost = sample(), sample((2,), success=False)
    lost = lost.replace(episode=won.episode[-1:] + 5)
    data.hdf5.write(tmp_path / "x.hdf5", data.concatenate([won, lost]))
    inspect.main([str(tmp_path / "x.hdf5")])
    text = capsys.readouterr().out
    cells = {row[0]: row[1:] for row in rows(text)}
    assert cells["episodes"] == ["4"]
    assert cells["steps"] == ["10, 2.5 (1 to 4) an episode"]
    assert cells["successful"] == ["3"]
    assert cells["tried"] == [str(won.episode[-1] + 6)]
    returns = [*np.add.reduceat(won.reward, [0, 3, 4]), lost.reward.sum()]
    low, high = min(returns), max(returns)
    assert cells["return"] == [f"{np.mean(returns):.4g} ({low:.4g} to {high:.4g})"]
    assert cells["config"] == ['{"randomness": "low", "sizes": [1, 2.5], "cap": null}']
    assert cells["action"][:2] == ["(10,)", "float32"]
    state = np.concatenate([won.obs["robot_state"], lost.obs["robot_state"]])
    span = f"{state.min():.4g} to {state.max():.4g}"
    assert cells["obs/robot_state"] == ["(16,)", "float32", span]
    assert cells["poses/mocap_pos"] == ["(0, 3)", "float32", "empty"]


def test_what_is_unknown_is_left_out(tmp_path, capsys):
    others = sample().replace(metadata=data.Metadata(), poses={}, model={})
    data.zarr.write(tmp_path / "x.zarr", others)
    inspect.main([str(tmp_path / "x.zarr")])
    names = [row[0] for row in rows(capsys.readouterr().out)]
    assert names[:4] == ["episodes", "steps", "successful", "return"]
    assert "tried" not in names
    assert "env" not in names


def test_a_film_shows_the_chosen_episodes(tmp_path, monkeypatch, capsys):
    env = envs.make("DofbotReacher", "native", episode_steps=5)
    demos = data.collect(env, env.expert(), None, 3, poses=True)
    data.zarr.write(tmp_path / "x.zarr", demos)
    shown, written = [], []
    monkeypatch.setattr(rendering, "render", lambda *a, **k: shown.append((a, k)))
    monkeypatch.setattr(rendering, "write_video", lambda *a: written.append(a))
    film = tmp_path / "film.mp4"
    inspect.main([str(tmp_path / "x.zarr"), "--video", str(film), "--episodes", "2", "0"])
    assert str(film) in capsys.readouterr().out
    (model, trajectory, *_), _ = shown[0]
    expected = demos.poses["qpos"].reshape(3, 5, -1)[[2, 0]]
    np.testing.assert_array_equal(trajectory.qpos, expected)
    assert model.nq == env.mj_model.nq
    assert written[0][0] == film
    assert float(written[0][2]) == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(
    ("make", "argv", "message"),
    [
        (None, [], "there is nothing at"),
        (sample().replace(poses={}), ["--video", "x.mp4"], "there are no poses to film"),
        (sample(), ["--video", "x.mp4"], "unknown environment 'Toy'"),
        (sample(), ["--video", "x.mp4", "--episodes", "9"], "there is no episode 9; valid: 0 to 2"),
        (sample(), ["--video", "x.mp4", "--episodes=-9"], "there is no episode -9"),
        (sample(config=None), ["--video", "x.mp4"], "unknown environment 'Toy'"),
    ],
)
def test_refusals_in_one_line(tmp_path, capsys, make, argv, message):
    if make is not None:
        data.zarr.write(tmp_path / "x.zarr", make)
    with pytest.raises(SystemExit) as exit_:
        inspect.main([str(tmp_path / "x.zarr"), *argv])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["film", "a-file/film.mp4"])
def test_a_film_that_cannot_be_written_is_an_error_of_one_line(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "a-file").touch()
    env = envs.make("DofbotReacher", "native", episode_steps=5)
    data.zarr.write(tmp_path / "x.zarr", data.collect(env, env.expert(), None, 1, poses=True))
    black = np.zeros((48, 64, 3), np.uint8)
    monkeypatch.setattr(rendering, "render", lambda *_, **__: iter([black]))
    with pytest.raises(SystemExit) as exit_:
        inspect.main([str(tmp_path / "x.zarr"), "--video", str(tmp_path / name)])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("error: ")
    assert name.split("/")[0] in err
    assert err.count("\n") == 1
