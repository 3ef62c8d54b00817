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

import envs
from experiments import deploy, export
from jaxrobo import rundir
from jaxrobo.deploy import Dofbot, Timing, arm_server, runner, ur10
from jaxrobo.deploy.dry_run import dry_run
from jaxrobo.env import Spec
from jaxrobo.learning import ppo
from jaxrobo.learning.normaliser import init_stats
from jaxrobo.training import RunError
from tests.experiments.test_cli import refusal

DRY = ["--robot", "dofbot", "--dry-run"]
THERE = ["--robot", "dofbot", "--host", "127.0.0.1"]
MIDDLE = ["0.0"] * 5


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
        (["--robot", "ur10", "--port", "1"], ["the UR10 is reached through ROS"]),
        ([*THERE, "--port", "70000"], ["port must be in 1 .. 65535, got 70000"]),
        ([*DRY, "--port", "65432"], ["--dry-run takes a free port: --port is for --host"]),
        ([*THERE, "--start", *MIDDLE], ["--start is for --host with --compatible"]),
        ([*DRY, "--compatible", "--start", *MIDDLE], ["--start is for --host with --compatible"]),
        ([*THERE, "--compatible", "--start", *["90"] * 5], ["start must be 5 angles in rad"]),
        ([*DRY, "--run-seed", "1"], ["--run-seed needs --run-dir"]),
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


@pytest.mark.parametrize(
    ("robot", "task", "options", "words"),
    [
        ("dofbot", "DofbotReacher", {"gripper": True}, "moves 6 joints, a dofbot has 5"),
        ("ur10", "UR10Reacher", {}, r"moves joint 1 between .*-6.28 +6.28.* train with --safety"),
    ],
)
def test_a_run_that_leaves_the_robots_limits_is_refused(
    robot, task, options, words, monkeypatch, tmp_path
):
    rundir.write_json(tmp_path / rundir.CONFIG, {"env": task})
    monkeypatch.setattr(deploy, "load", lambda *_: (envs.make(task, "native", **options), None, ()))
    with pytest.raises(RunError, match=words):
        deploy._twin(deploy.Options(robot=robot, dry_run=robot == "dofbot", run_dir=tmp_path))


def test_the_ur10s_policy_starts_within_the_robots_limits(monkeypatch):
    monkeypatch.setattr(deploy, "Twin", lambda env, *_: env)
    env = deploy._twin(deploy.Options(robot="ur10")).unwrapped
    starts = jax.vmap(env._start)(jax.random.split(jax.random.key(0), 100))
    low, high = np.transpose(ur10.LIMITS)
    assert np.all((starts >= low - 1e-6) & (starts <= high + 1e-6))
    assert np.ptp(starts, axis=0).max() > 0.1
    assert env.config.profile == "servo"


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
def test_ctrl_c_stops_the_arm(compatible, patient, monkeypatch, capfd):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    pace = deploy.pace

    def interrupted(*args, **options):
        timer.start()
        return pace(*args, **options)

    monkeypatch.setattr(deploy, "pace", interrupted)
    deploy.main([*DRY, "--speed", "2"] + ["--compatible"] * compatible)
    out, err = capfd.readouterr()
    assert "stopping the arm; again to abort" in err
    assert "stopped: the arm holds its pose" in out
    assert int(re.search(r"(\d+) periods of 16.67 ms", out)[1]) > 0
    assert "DofbotReacher in simulation: 3 goals" in out
    assert "[90. 90. 90. 90. 90. 90.]" in out


def test_the_compatible_mode_goes_on_where_it_was(patient, monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    with dry_run("--compatible") as server:
        options = ["--port", str(server.port), "--compatible", "--seconds", "0.2"]
        deploy.main([*THERE, *options])
        start = re.search(r"go on with --start (.*)", capsys.readouterr().out)[1].split()
        assert 0 < float(start[0]) <= 0.1
        assert start == [start[0]] * 5
        seen, nothing = [], deploy.Outcome(Timing(1 / 60, np.zeros(0), np.zeros(0)), 0.0)
        monkeypatch.setattr(deploy, "stream", lambda robot, *_: seen.append(robot.pose) or nothing)
        deploy.main([*THERE, *options, "--start", *start])
        np.testing.assert_allclose(seen[0], np.array(start, float), atol=1e-9)


def test_a_lost_robot_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    message = refusal(
        deploy.main, ["--robot", "dofbot", "--host", "127.0.0.1", "--port", "9"], capsys
    )
    assert "127.0.0.1:9 refuses the connection" in message


def test_the_librarys_policy_is_streamed_for_a_second(patient, capsys):
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
