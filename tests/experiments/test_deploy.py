"""The commands `experiments.deploy` and `experiments.export`."""

import functools
import os
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import deploy, export
from jaxrobo import rundir
from jaxrobo.deploy import Dofbot, arm_server, runner
from jaxrobo.env import Spec
from jaxrobo.learning import ppo
from jaxrobo.learning.normaliser import init_stats
from tests.experiments.test_cli import refusal

DRY = ["--robot", "dofbot", "--dry-run"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--robot"]),
        (["--robot", "kuka"], ["'kuka'", "'dofbot', 'ur10'"]),
        (["--robot", "dofbot"], ["a Dofbot needs either --host, its server's, or --dry-run"]),
        ([*DRY, "--host", "here"], ["a Dofbot needs either --host, its server's, or --dry-run"]),
        (["--robot", "ur10", "--dry-run"], ["the UR10 is reached through ROS"]),
        ([*DRY, "--speed", "0"], ["speed must be positive, got 0"]),
        ([*DRY, "--seconds", "nan"], ["seconds must be positive, got nan"]),
        ([*DRY, "--port", "70000"], ["port must be in 1 .. 65535, got 70000"]),
        ([*DRY, "--run-dir", "nowhere"], ["there is no run in nowhere"]),
    ],
)
def test_deploy_refuses_in_one_line(argv, words, capsys):
    message = refusal(deploy.main, argv, capsys)
    for word in words:
        assert word in message


def test_a_run_of_another_task_is_refused(tmp_path, capsys):
    rundir.write_json(tmp_path / rundir.CONFIG, {"env": "PegHole"})
    message = refusal(deploy.main, [*DRY, "--run-dir", str(tmp_path)], capsys)
    assert "is a run of PegHole; a dofbot needs one of DofbotReacher" in message


class Sweep:
    """Instead of a simulation, which takes seconds to compile."""

    metric = 3.0

    def __init__(self, *_):
        self.steps = 0

    @property
    def pose(self):
        return np.full(5, 0.1 * np.sin(self.steps / 60))

    def step(self):
        self.steps += 1
        return self.pose


@pytest.fixture
def patient(monkeypatch):
    """The server may have to wait for its turn on this computer."""
    monkeypatch.setattr(deploy, "Dofbot", functools.partial(Dofbot, timeout=20.0))


@pytest.mark.parametrize("compatible", [False, True])
def test_ctrl_c_stops_the_arm(compatible, patient, monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    pace = deploy.pace

    def interrupted(*args, **options):
        timer.start()
        return pace(*args, **options)

    monkeypatch.setattr(deploy, "pace", interrupted)
    deploy.main([*DRY, "--speed", "2"] + ["--compatible"] * compatible)
    out, err = capsys.readouterr()
    assert "stopping the arm; again to abort" in err or err == ""  # written past Python's stderr
    assert "stopped: the arm holds its pose" in out
    assert int(re.search(r"(\d+) periods of 16.67 ms", out)[1]) > 0
    assert "DofbotReacher in simulation: 3 goals" in out
    assert "[90. 90. 90. 90. 90. 90.]" in out


def test_a_lost_robot_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    message = refusal(
        deploy.main, ["--robot", "dofbot", "--host", "127.0.0.1", "--port", "9"], capsys
    )
    assert "127.0.0.1:9 refuses the connection" in message


def test_the_expert_is_streamed_for_a_second(patient, capsys):
    deploy.main([*DRY, "--seconds", "1"])
    out = capsys.readouterr().out
    assert re.search(r"\d+ periods of 16.67 ms: [\d.]+ % within 5 ms", out)
    low, high = (np.array(v.split(), float) for v in re.findall(r"\[([^]]*)\]", out))
    limits = np.transpose(arm_server.LIMITS)
    assert np.all((low >= limits[0]) & (high <= limits[1]))
    assert np.max(high - low) > 1


def test_a_run_is_exported(tmp_path, monkeypatch, capsys):
    class Blind:
        observation_spec = Spec((3,))
        action_size = 2

    config = ppo.Config(hidden=(4,), num_envs=4, horizon=4)
    trainer = ppo.make(Blind(), config)
    network = ppo.actor_critic(Blind(), config)
    params = {
        "network": network.init(jax.random.key(0), jnp.zeros(3)),
        "observation_stats": init_stats((3,)),
    }
    monkeypatch.setattr(export, "restore_trainer", lambda run_dir: trainer)
    monkeypatch.setattr(export, "restore_policy", lambda *_: (None, params))
    export.main(["--run-dir", "run", "--out", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"policy.npz", "policy.stablehlo", "runner.py"}
    policy = runner.Policy(str(tmp_path / "out" / "policy.npz"))
    expected = trainer.act(True).act(params, (), jnp.ones(3), jax.random.key(0))[0]
    np.testing.assert_allclose(policy.act(np.ones(3)), expected, atol=1e-5)
