import dataclasses
import shutil
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import envs
from experiments import play
from jaxrobo import checkpoint, rundir, training
from tests.tiny import make_trainer

REACHER = ["--env", "DofbotReacher", "--engine", "native"]


@pytest.mark.parametrize(
    ("policy", "acts"),
    [
        (None, "scripted expert (no trained policy comes with DofbotReacher and these options;"),
        ("expert", "scripted expert"),
        ("random", "random actions"),
        ("zero", "zeros"),
    ],
)
def test_without_a_run(policy, acts):
    argv = [] if policy is None else ["--policy", policy]
    found = play.load(*play.parse([*REACHER, *argv, "--velocity-cap", "2"]))
    assert (found.name, found.params, found.trainer) == ("DofbotReacher", (), None)
    assert found.acts == acts if policy else found.acts.startswith(acts)
    assert found.env.config.velocity_cap == 2.0
    action = act(found)
    assert action.shape == (5,)
    assert (policy == "zero") == (not action.any())


def test_where_there_can_be_no_expert_actions_are_random():
    found = play.load(*play.parse([*REACHER, "--relative-control"]))
    assert found.env.config.relative_control
    assert found.acts.startswith("random actions, as there's no expert (no trained policy comes")
    assert len(np.unique(act(found))) == 5
    with pytest.raises(ValueError, match="relative_control must be off"):
        play.load(*play.parse([*REACHER, "--relative-control", "--policy", "expert"]))


def test_the_librarys_own_policy_acts_where_it_was_trained_for_the_options():
    found = play.load(*play.parse([*REACHER, "--profile", "servo"]))
    assert (found.params.names, found.acts) == (("obs",), "trained policy dofbot-servo")
    same = play.load(*play.parse([*REACHER, "--profile", "servo", "--policy", "trained"]))
    np.testing.assert_array_equal(act(found), act(same))
    expert = play.load(*play.parse([*REACHER, "--profile", "servo", "--policy", "expert"]))
    assert expert.params == ()
    with pytest.raises(ValueError, match="there are: DofbotReacher; DofbotReacher --profile servo"):
        play.load(*play.parse([*REACHER, "--velocity-cap", "2", "--policy", "trained"]))


@pytest.mark.parametrize("option", [[], ["--velocity-cap", "2"]])
def test_the_page_and_the_console_say_what_acts(option, monkeypatch, capsys):
    shown = SimpleNamespace(url="http://here", run=lambda: None, close=lambda: None)
    ignore = lambda *arguments: None
    page = SimpleNamespace(Page=lambda *arguments: shown, check_address=ignore)
    monkeypatch.setitem(sys.modules, "jaxrobo.viewer.page", page)
    monkeypatch.setattr(play, "Player", ignore)
    play.main([*REACHER, *option])
    expected = "scripted expert (no trained policy" if option else "trained policy dofbot"
    assert shown.note.startswith(f"acting: {expected}")
    assert f"shows DofbotReacher; {shown.note}; Ctrl-C ends it" in capsys.readouterr().out


def act(found):
    state, policy = found.env.reset(jax.random.key(0)), found.policy
    carry = policy.init(policy.observe(state), jax.random.key(1))
    carry = policy.plan(found.params, carry, policy.observe(state), jax.random.key(3))
    return policy.act(found.params, carry, policy.observe(state), jax.random.key(2))[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two seeds, and its trainer."""
    folder, trainer = tmp_path_factory.mktemp("run"), make_trainer()
    options = {"evaluate_every": 16, "evaluation_episodes": 2, "test_episodes": 2, "seeds": 2}
    training.run(trainer, folder, steps=16, config={"env": "Tiny"}, **options)
    return folder, trainer


def save_again(folder, trainer):
    state = training.state_template(trainer, 2)
    state, info = checkpoint.load(folder / rundir.LAST, state)
    checkpoint.save(folder / rundir.LAST, state, info)


def test_what_is_saved_while_the_page_starts_is_loaded(finished, monkeypatch):
    folder, trainer = finished
    monkeypatch.setattr(play, "restore_trainer", lambda *arguments: trainer)
    restore = play.restore_policy

    def restore_then_save(*arguments):
        restored = restore(*arguments)
        save_again(folder, trainer)
        return restored

    options = play.Options(run_dir=folder, checkpoint="last")
    with monkeypatch.context() as patch:
        patch.setattr(play, "restore_policy", restore_then_save)
        found = play.load(options, None)
    newest = checkpoint.newest(folder / rundir.LAST)
    assert int(found.path.name) == int(newest.name) - 1
    done, given = threading.Event(), []

    def accept(params, path):
        given.append((params, path))
        done.set()

    thread = threading.Thread(
        target=play.follow, args=(options, trainer, found.path, accept, done, 0.01)
    )
    thread.start()
    thread.join(60.0)
    assert given == [(found.params, newest)]


def test_a_run_that_has_saved_nothing_yet_is_waited_for(finished, monkeypatch, tmp_path, capsys):
    folder, trainer = finished
    monkeypatch.setattr(play, "restore_trainer", lambda *arguments: trainer)
    monkeypatch.setattr(play, "_LOOK_AGAIN", 0.01)
    shutil.copy(folder / rundir.CONFIG, tmp_path)
    shutil.copytree(folder / rundir.BEST, tmp_path / "later")
    timer = threading.Timer(0.3, (tmp_path / "later").rename, [tmp_path / rundir.BEST])
    timer.start()
    found = play.load(play.Options(run_dir=tmp_path), None)
    timer.join()
    assert found.params == training.restore_policy(folder, trainer)[1]
    assert found.acts.startswith(f"{tmp_path}, best checkpoint (")
    assert f"waiting for the first checkpoint in {tmp_path}/best" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_follow_loads_what_is_newer(finished, seed):
    folder, trainer = finished
    done, accepted = threading.Event(), threading.Event()
    given = []

    def accept(params, path):
        given.append((params, path))
        accepted.set()

    options = play.Options(run_dir=folder, checkpoint="last", run_seed=seed)
    loaded = checkpoint.newest(folder / rundir.LAST)
    arguments = (options, trainer, loaded, accept, done, 0.01)
    thread = threading.Thread(target=play.follow, args=arguments)
    thread.start()
    try:
        assert not accepted.wait(0.1)  # nothing is newer
        save_again(folder, trainer)
        assert accepted.wait(60.0)
    finally:
        done.set()
        thread.join()
    expected = training.restore_policy(folder, trainer, "last", seed)[1]
    other = training.restore_policy(folder, trainer, "last", 0 if seed == 1 else 1)[1]
    assert given == [(expected, checkpoint.newest(folder / rundir.LAST))]
    assert expected != other


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--env or --run-dir is missing; tasks: DofbotReacher"),
        (["--run-dir", "nowhere"], "there is no run in nowhere"),
        (["--run-dir", "nowhere", "--policy", "zero"], "the run's policy acts"),
        (["--run-dir", "nowhere", "--velocity-cap", "2"], "Unrecognized options: --velocity-cap"),
        ([*REACHER, "--run-seed", "1"], "--run-dir is missing"),
        ([*REACHER, "--velocity-cap", "-1"], "velocity_cap must be positive, got -1"),
        (["--env", "Foo"], "unknown environment 'Foo'; valid: DofbotReacher"),
        ([*REACHER, "--port", "70000"], "port must be in 0 .. 65535, got 70000"),
        ([*REACHER, "--host", "192.0.2.1"], "can't listen at '192.0.2.1'"),
        ([*REACHER, "--host", "no.such.host.invalid"], "can't listen at 'no.such.host.invalid'"),
    ],
)
def test_mistakes(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        play.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_of_another_task_is_refused(tmp_path):
    (tmp_path / rundir.CONFIG).write_text('{"env": "PegHole"}')
    with pytest.raises(ValueError, match="is a run of PegHole, not of DofbotReacher"):
        play.load(play.Options(run_dir=tmp_path, env="DofbotReacher"), None)


def test_the_folder_of_experiments_refine_is_refused(tmp_path):
    (tmp_path / rundir.CONFIG).write_text('{"refinement": {}}')
    with pytest.raises(training.RunError, match=r"choose .*/refined or .*/clone"):
        play.load(play.Options(run_dir=tmp_path, env="PegHole"), None)
    (tmp_path / rundir.CONFIG).write_text('{"task": {}}')
    with pytest.raises(training.RunError, match=r"config.json has no env"):
        play.load(play.Options(run_dir=tmp_path), None)


@pytest.mark.parametrize("env", envs.names())
def test_every_option_of_every_task_is_a_flag(env, capsys):
    with pytest.raises(SystemExit) as stop:
        play.main(["--env", env, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(envs.config_class(env)):
        assert f"--{field.name.replace('_', '-')}" in text
