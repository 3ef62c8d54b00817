import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
from experiments import cli, evaluate, refine, train
from experiments.common import ALGORITHMS, load, scheduled
from experiments.presets import PRESETS, REFINEMENTS, preset
from jaxrobo import rendering, training
from jaxrobo.rollout import episode_key

REACHER = ["--env", "DofbotReacher"]
VALID = "valid: DofbotReacher, HiwinReacher, KukaReacher, PegHole, UR10Reacher"


def refusal(main, argv, capsys):
    """The one line on stderr with which a command exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--env is missing", VALID]),
        (["--env", "Foo"], ["unknown environment 'Foo'", VALID]),
        ([*REACHER, "--algo", "foo"], ["unknown algorithm 'foo'", "valid: ppo"]),
        ([*REACHER, "--engine", "foo"], ["'foo'", "'auto', 'native', 'mjx'"]),
        ([*REACHER, "--profile", "foo"], ["'foo'", "'isaac', 'servo'"]),
        ([*REACHER, "--num-env", "8"], ["--num-env", "perhaps --num-envs"]),
        ([*REACHER, "--num-envs", "0"], ["num_envs must be positive, got 0"]),
        ([*REACHER, "--num-envs", "many"], ["--num-envs", "'many'"]),
        ([*REACHER, "--steps", "-5"], ["steps must be at least 1, got -5"]),
        ([*REACHER, "--seeds", "0"], ["seeds must be at least 1, got 0"]),
        ([*REACHER, "--episode-steps", "0"], ["episode_steps must be positive, got 0"]),
        ([*REACHER, "--activation", "foo"], ["'foo'", "elu"]),
        ([*REACHER, "--resume", "--run-dir", "/nowhere"], ["there is no run in /nowhere"]),
    ],
)
def test_train_refuses_in_one_line_before_compiling(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "compile_programs", None)
    monkeypatch.chdir(tmp_path)
    message = refusal(train.main, argv, capsys)
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--run-dir"]),
        (["--run-dir", "nowhere"], ["there is no run in nowhere"]),
        (["--run-dir", "nowhere", "--split", "dev"], ["'dev'", "'validation', 'test'"]),
        (["--run-dir", "nowhere", "--episodes", "0"], ["episodes must be at least 1, got 0"]),
    ],
)
def test_evaluate_refuses_in_one_line(argv, words, capsys):
    message = refusal(evaluate.main, argv, capsys)
    for word in words:
        assert word in message


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_are_the_same_for_any_terminal(encoding, colour, monkeypatch, capsys):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    terminal.isatty = lambda: colour
    for argv, expected in [
        (["--num-env", "8"], "error: Unrecognized options: --num-env, 8; perhaps --num-envs\n"),
        (["--num-envs", "0"], "error: num_envs must be positive, got 0\n"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            with pytest.raises(SystemExit):
                train.main([*REACHER, *argv])
        assert capsys.readouterr().err == expected


def test_an_existing_folder_is_refused(tmp_path, capsys):
    (tmp_path / "notes").write_text("precious")
    message = refusal(train.main, [*REACHER, "--run-dir", str(tmp_path)], capsys)
    assert f"{tmp_path} exists: resume the run, or choose another folder" in message


def test_the_command_exits_with_2_and_without_a_traceback():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "experiments.train", "--env", "Foo"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: unknown environment 'Foo'; {VALID}\n"


def test_flags_override_presets_which_override_defaults(capsys):
    run, task, config = train.parse(REACHER)
    for name, value in PRESETS["DofbotReacher", "ppo"].items():
        owner = next(o for o in (run, task, config) if hasattr(o, name))
        assert getattr(owner, name) == value
    argv = [*REACHER, "--num-envs", "64", "--steps", "9", "--profile", "servo", "--hidden", "8"]
    run, task, config = train.parse([*argv, "--no-clip-values", "--velocity-cap", "2"])
    assert (run.steps, config.num_envs, config.hidden, config.clip_values) == (9, 64, (8,), False)
    assert (task.profile, task.velocity_cap) == ("servo", 2.0)
    expected = PRESETS["DofbotReacher", "ppo"] | PRESETS["DofbotReacher", "ppo", "servo"]
    assert config.discount == expected["discount"]
    assert train.parse([*argv, "--preset", "cpu"])[0].preset == "cpu"
    assert train.parse([*argv, "--preset", "cpu"])[1:] == train.parse(argv)[1:]
    with pytest.raises(SystemExit):  # a profile's flags without the profile
        train.parse([*argv, "--preset", "servo"])
    assert "unknown preset 'servo'; valid: cpu, long, paper" in capsys.readouterr().err


@pytest.mark.parametrize("env", envs.names())
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_option_of_every_task_and_algorithm_is_a_flag(env, algo, capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(["--env", env, "--algo", algo, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for group in (train.Run, envs.config_class(env), ALGORITHMS[algo].config_class):
        for field in dataclasses.fields(group):
            assert f"--{field.name.replace('_', '-')}" in text


def test_presets_are_of_options_that_exist_and_suit_each_other():
    for env, algo, *profile in PRESETS:
        groups = train.Run, envs.config_class(env), ALGORITHMS[algo].config_class
        values = cli.distribute(preset(env, algo, *profile), *groups)
        for group, own, needed in zip(groups, values, ({"env": env}, {}, {}), strict=True):
            group(**needed, **own)
    for name in ("isaac", "servo"):
        train.parse([*REACHER, "--profile", name])


def test_refinements_are_of_options_that_exist():
    for env, chosen in REFINEMENTS:
        refine.parse(["--env", env, "--preset", chosen])
    options, task, demonstrated = refine.parse(["--preset", "paper"])
    assert demonstrated == task
    assert (options.episodes, options.clone) == (50, "diffusion_bc")
    assert (task.action, task.observe_errors, task.perturbation) == ("pos", False, 0.0)
    options, task, demonstrated = refine.parse(["--episodes", "7", "--action", "pos"])
    assert (options.episodes, options.clone, task.action) == (7, "bc", "pos")
    assert (task.perturbation, demonstrated.perturbation) == (0.0, 0.1)
    assert refine.parse(["--perturbation", "0"])[2].perturbation == 0.0


def test_flags_are_found_however_they_are_written():
    argv = ["--perturbation=0", "--no-observe-errors", "--episode-steps", "5", "randomness"]
    names = "perturbation", "observe_errors", "episode_steps", "randomness", "action"
    assert cli.given(argv, *names) == {"perturbation", "observe_errors", "episode_steps"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            "--schedule cosine --decay-steps 64 --steps 65",
            "with --decay-steps 64 nothing is learnt from there on, of 65 steps",
        ),
        (
            "--schedule adaptive_cosine --decay-steps 64 --steps 65",
            "with --decay-steps 64 nothing is learnt from there on, of 65 steps",
        ),
        (
            "--algo bc --demos x --decay-steps 1000 --steps 1001",
            "with --decay-steps 1000 nothing is learnt from there on, of 1,001 steps",
        ),
    ],
)
def test_steps_that_teach_nothing_are_refused(argv, words, capsys):
    assert words in refusal(train.main, [*REACHER, *argv.split()], capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--algo bc --steps 700", 700),
        ("--algo diffusion_bc", 20_000),
        ("--algo bc --steps 700 --decay-steps 900", 900),
        ("--schedule cosine --steps 700", 700),
        ("--schedule adaptive_cosine --steps 700", 700),
        ("--schedule adaptive --steps 700", None),  # so that it can go on
    ],
)
def test_a_schedule_lasts_as_long_as_the_run_unless_it_says_when_it_ends(flags, expected):
    run, _, config = train.parse([*REACHER, *flags.split()])
    assert scheduled(config, run.steps).decay_steps == expected


def test_a_stage_of_a_refinement_has_its_presets(capsys):
    stage = ["--env", "PegHole", "--algo", "diffusion_bc"]
    run, task, config = train.parse([*stage, "--preset", "paper"])
    assert (run.steps, task.action, config.widths) == (5_000_000, "pos", (256, 512, 1024))
    with pytest.raises(SystemExit):
        train.parse([*stage, "--preset", "large"])
    assert "unknown preset 'large'; valid: cpu, long, paper" in capsys.readouterr().err


def test_two_owners_of_a_flag_are_refused():
    with pytest.raises(ValueError, match="'seed' is an option of run and task"):
        cli.merge(run=train.Run, task=dataclasses.make_dataclass("Config", [("seed", int)]))


def test_train_then_evaluate_then_act(tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "run"
    small = "--num-envs 8 --horizon 4 --epochs 1 --minibatches 1 --hidden 8 --episode-steps 6"
    budget = "--steps 64 --evaluate-every 32 --evaluation-episodes 4 --test-episodes 6"
    argv = [*REACHER, "--engine", "native", "--run-dir", str(run_dir), *small.split()]
    train.main([*argv, *budget.split()])
    assert "DofbotReacher" in capsys.readouterr().out
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["env"], result["algo"], result["engine"]) == ("DofbotReacher", "ppo", "native")
    assert (result["steps"], result["episodes"], result["metric"]) == (64, 6, "goals")
    assert (run_dir / "learning_curve.png").stat().st_size > 0

    films = []
    monkeypatch.setattr(rendering, "record_video", lambda *arguments: films.append(arguments))
    evaluate.main(["--run-dir", str(run_dir), "--engine", "native", "--episodes", "6", "--video"])
    stored = json.loads((run_dir / "evaluation-best-test-0-native-6.json").read_text())
    assert stored["estimates"]["seed 0"] == result["estimates"]

    env, policy, params = load(run_dir, engine="native")
    assert films[0][0].observation_spec == env.observation_spec
    assert films[0][3] == run_dir / "video-best-test-0-native-6.mp4"
    first = jax.random.key_data(episode_key("test", 0, 0))
    np.testing.assert_array_equal(jax.random.key_data(films[0][4])[0], first)
    action, _, _ = policy.act(params, (), np.zeros(26, np.float32), jax.random.key(0))
    assert action.shape == (env.action_size,)
    capsys.readouterr()
    message = refusal(train.main, [*argv, "--resume", "--seed", "1"], capsys)
    assert "seed is 0 there, 1 here" in message
