"""The commands `experiments.deploy` and `experiments.export`."""

import functools
import os
import re
import signal
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from experiments import deploy, export
from jaxrobo import rundir
from jaxrobo.deploy import Deployment, Dofbot, RobotError, Timing, arm_server, follow, runner, ur10
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
    rundir.write_json(tmp_path / rundir.CONFIG, {"refinement": {}})
    message = refusal(deploy.main, [*DRY, "--run-dir", str(tmp_path)], capsys)
    assert "holds the stages of experiments.refine" in message


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


@pytest.fixture
def standing(monkeypatch):
    """Twins that are where an episode starts, and nothing else."""

    def stand(env, policy, params, key):
        start = lambda key: np.asarray(env.unwrapped._start(key))
        return SimpleNamespace(env=env.unwrapped, pose=start(key), start=start)

    monkeypatch.setattr(deploy, "Twin", stand)


def test_the_ur10s_policy_starts_within_the_robots_limits(standing):
    twin = deploy._twin(deploy.Options(robot="ur10"))
    starts = np.array([twin.start(key) for key in jax.random.split(jax.random.key(0), 100)])
    low, high = np.transpose(ur10.LIMITS)
    assert np.all((starts >= low - 1e-6) & (starts <= high + 1e-6))
    assert np.ptp(starts, axis=0).max() > 0.1
    assert twin.env.config.profile == "servo"


def test_a_run_that_starts_outside_the_robots_limits_is_refused(standing, monkeypatch, tmp_path):
    """Joint 2 starts at a share of -120 degrees, above -60."""
    rundir.write_json(tmp_path / rundir.CONFIG, {"env": "UR10Reacher"})
    env = envs.make("UR10Reacher", "native", safety=True, upstream_quirks=True)
    monkeypatch.setattr(deploy, "load", lambda *_: (env, None, ()))
    with pytest.raises(RunError, match=r"starts with joint 2 at -0.\d+ rad, .*-3.14 and -1.05"):
        deploy._twin(deploy.Options(robot="ur10", run_dir=tmp_path))


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


@pytest.mark.parametrize(("waited", "told"), [(0.02, False), (0.67, True)])
def test_waiting_is_told_of_if_it_is_more_than_now_and_then(waited, told, capsys):
    outcome = Deployment(Timing(1 / 60, np.zeros(0), np.zeros(0)), waited)
    deploy._report(deploy.Options(robot="ur10"), Sweep(), SimpleNamespace(limited=0), outcome)
    words = "in 67 % of the periods the simulation waited for the arm"
    assert (words in capsys.readouterr().out) == told


@pytest.fixture
def patient(monkeypatch):
    """The server may have to wait for its turn on this computer."""
    monkeypatch.setattr(deploy, "Dofbot", functools.partial(Dofbot, timeout=20.0))


@pytest.mark.parametrize("compatible", [False, True])
def test_ctrl_c_stops_the_arm(compatible, patient, monkeypatch, capfd):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))

    def interrupted(*args, **options):
        timer.start()
        return follow(*args, **options)

    monkeypatch.setattr(deploy, "follow", interrupted)
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
        seen, nothing = [], Deployment(Timing(1 / 60, np.zeros(0), np.zeros(0)), 0.0)
        monkeypatch.setattr(
            deploy, "follow", lambda robot, *_, **__: seen.append(robot.pose) or nothing
        )
        deploy.main([*THERE, *options, "--start", *start])
        np.testing.assert_allclose(seen[0], np.array(start, float), atol=1e-9)


def test_a_lost_robot_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    message = refusal(
        deploy.main, ["--robot", "dofbot", "--host", "127.0.0.1", "--port", "9"], capsys
    )
    assert "127.0.0.1:9 refuses the connection" in message


def test_a_dry_run_whose_server_does_not_start_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(deploy, "_twin", Sweep)
    message = refusal(deploy.main, [*DRY, "--speed", "1e307"], capsys)  # too much in degrees
    assert "the server didn't start: " in message
    assert "--speed must be positive, got inf" in message


@pytest.mark.parametrize(("flags", "expected"), [([], {}), (["--speed", "0.2"], {"speed": 0.2})])
def test_without_a_speed_the_robots_own_counts(flags, expected, monkeypatch):
    def connect(**options):
        given.append(options)
        raise RobotError("not here")

    given = []
    monkeypatch.setattr(deploy, "_twin", Sweep)
    monkeypatch.setattr(deploy, "Ur10", connect)
    with pytest.raises(SystemExit):
        deploy.main(["--robot", "ur10", *flags])
    assert given == [expected]


def test_how_it_was_is_told_also_if_the_robot_is_lost(patient, monkeypatch, capsys):
    class Breaks(Sweep):
        def step(self):
            if self.steps == 5:
                server.process.kill()
                server.process.wait()
            return super().step()

    monkeypatch.setattr(deploy, "_twin", Breaks)
    with dry_run() as server, pytest.raises(SystemExit) as stop:
        deploy.main([*THERE, "--port", str(server.port)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert re.search(r"\d+ periods of 16.67 ms: [\d.]+ % within 5 ms", out)
    assert "DofbotReacher in simulation: 3 goals" in out
    assert "stopped" not in out
    assert err.startswith(f"error: lost 127.0.0.1:{server.port}: ")


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
    (tmp_path / "file").touch()
    capsys.readouterr()
    message = refusal(export.main, ["--run-dir", "run", "--out", str(tmp_path / "file")], capsys)
    assert "file" in message
