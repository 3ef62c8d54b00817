"""From the scripted expert of a tiny task to a refined policy, by the command line."""

import json
import shlex
import shutil

import jax
import numpy as np
import pytest
import rich

import envs
from experiments import evaluate, refine, train
from experiments.common import load, make_trainer, restore_trainer
from experiments.presets import PRESETS, REFINEMENTS
from jaxrobo import checkpoint, data, metrics, training
from jaxrobo._plan import state_template
from jaxrobo.evaluation import evaluate as measure
from jaxrobo.learning import residual_ppo
from tests.experiments import coin

pytestmark = pytest.mark.usefixtures("cache")

CLONING = dict(horizon=2, action_horizon=2, batch=4, gradient_steps=2, warmup_steps=1)
BUDGET = dict(evaluation_episodes=4, patience=None)
TINY = {
    ("Coin", "bc"): CLONING
    | BUDGET
    | {"hidden": (8,), "steps": 8, "evaluate_every": 4, "episode_steps": 8},
    ("Coin", "residual_ppo"): BUDGET
    | dict(num_envs=2, horizon=4, epochs=1, minibatches=1, hidden=(8,))
    | {"steps": 32, "evaluate_every": 16},
}
REFINE = [
    "--env",
    "Coin",
    "--clone",
    "bc",
    "--episodes",
    "3",
    "--test-episodes",
    "12",
    "--seed",
    "3",
]


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Knows the task and its presets here, and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "_REGISTRY", dict(envs._REGISTRY))
        for name, values in TINY.items():
            patch.setitem(PRESETS, name, values)
        coin.register()
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A whole refinement's folder."""
    run_dir = tmp_path_factory.mktemp("refine") / "straight"
    refine.main([*REFINE, "--run-dir", str(run_dir)])
    return run_dir


def timeless(value):
    """A tree without what depends on the clock."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return value


def outcome(run_dir):
    """All that a refinement says but for times: the result, and both policies' logs and bits."""
    lines = [
        json.loads(line)
        for stage in ("clone", "refined")
        for line in (run_dir / stage / metrics.JSONL).read_text().splitlines()
    ]
    bits = [
        json.loads((checkpoint.newest(run_dir / stage / name) / "meta/metadata").read_text())[
            "digest"
        ]
        for stage in ("clone", "refined")
        for name in ("last", "best")
    ]
    result = timeless(json.loads((run_dir / "result.json").read_text()))
    return result, [*map(timeless, lines), *bits]


def refusal(main, argv, capsys):
    """The one line on stderr with which a command exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1), err
    return err.removeprefix("error: ")


# --- refine ---------------------------------------------------------------------------------------


def test_all_three_are_compared_on_the_same_episodes(straight):
    result = json.loads((straight / "result.json").read_text())
    expected = {"env": "Coin", "seed": 3, "preset": "cpu", "episodes": 12}
    assert result | expected == result
    assert {p.name for p in straight.iterdir() if p.name[0] != "."} == {
        *("config.json", "expert.json", "result.json", "demonstrations.zarr", "clone", "refined")
    }
    demos = data.read(straight / "demonstrations.zarr")
    assert (demos.episodes, demos.metadata.seed) == (3, 3)
    assert demos.success.all()
    env = envs.make("Coin")
    by_hand = measure(env, env.expert(), (), "test", episodes=12)["success"]
    assert result["expert"]["estimates"]["success"] == by_hand._asdict()
    for stage, algo in (("clone", "bc"), ("refined", "residual_ppo")):
        own = json.loads((straight / stage / "result.json").read_text())
        assert result[stage] == own
        assert (own["algo"], own["seed"], own["split"], own["episodes"]) == (algo, 3, "test", 12)
        loaded = measure(*load(straight / stage), "test", episodes=12)
        assert own["estimates"]["success"] == loaded["success"]._asdict()
        assert (straight / stage / "learning_curve.png").stat().st_size > 0
    failing = [1 - result[stage]["estimates"]["success"]["mean"] for stage in ("clone", "refined")]
    assert result["share_of_failures_removed"] == pytest.approx(1 - failing[1] / failing[0])
    assert result["refined"]["steps"] == 32


def test_a_policy_is_that_of_a_stage(straight):
    with pytest.raises(training.RunError, match=r"choose .*/straight/refined or .*/straight/clone"):
        load(straight)


def test_the_table_shows_success_steps_and_time_of_each(straight, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(rich, "_console", None)  # reads the width once
    results = json.loads((straight / "result.json").read_text())
    stages = {k: results[k] for k in ("expert", "clone", "refined")}
    del stages["clone"]["estimates"]["length_of_success"]  # as if it never succeeded
    stages["expert"]["estimates"]["length_of_success"] |= {"low": None, "high": None}  # only once
    refine._show("Coin", "success", stages)
    lines = capsys.readouterr().out.splitlines()
    row = lambda word: next(line for line in lines if word in line)
    assert [row("refined").index(k) for k in stages] == sorted(
        row("refined").index(k) for k in stages
    )
    for stage in stages.values():
        estimate = stage["estimates"]["success"]
        assert "{mean:.4g} [{low:.4g}, {high:.4g}]".format(**estimate) in row("success")
    steps = results["refined"]["estimates"]["length_of_success"]
    assert f"{steps['mean']:.4g} [" in row("steps to success")
    assert " - " in row("steps to success")
    assert "[nan, nan]" in row("steps to success")
    assert "wall time, s" in "".join(lines)


def test_more_test_episodes_test_again_and_train_nothing(straight, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    refine.main([*REFINE, "--test-episodes", "6", "--run-dir", str(run_dir), "--resume"])
    old, new = (json.loads((d / "result.json").read_text()) for d in (straight, run_dir))
    for stage in ("expert", "clone", "refined"):
        assert (old[stage]["episodes"], new[stage]["episodes"]) == (12, 6)
        env = envs.make("Coin")
        policy = (env.expert(), ()) if stage == "expert" else load(run_dir / stage)[1:]
        fewer = measure(env, *policy, "test", episodes=6)["success"]
        assert new[stage]["estimates"]["success"] == fewer._asdict()
        log = (run_dir / stage / metrics.JSONL, straight / stage / metrics.JSONL)
        assert stage == "expert" or log[0].read_text() == log[1].read_text()


class Killed(BaseException):
    """What a kill does to the program, as far as files are concerned."""


def test_stopped_at_every_point_it_ends_the_same(
    straight, tmp_path, monkeypatch, interrupted, capsys
):
    argv = [*REFINE, "--run-dir", str(tmp_path / "run")]
    original = refine._train

    def killed_at(name, stage=None):
        def kill(*arguments, **_):
            if stage in (None, arguments[0]):
                raise Killed
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(refine, name, kill)
            with pytest.raises(Killed):
                refine.main(argv)

    def stopped_after(iteration):
        with interrupted(after=iteration), pytest.raises(SystemExit, match="130"):
            refine.main(argv)
        assert "to go on: python -m experiments.refine --env Coin" in capsys.readouterr().out

    killed_at("evaluate")  # demonstrations are there, the expert isn't tested
    argv.append("--resume")
    killed_at("_train", "clone")
    stopped_after(1)
    killed_at("_train", "refined")
    stopped_after(1)
    assert not (tmp_path / "run/refined/result.json").exists()
    killed_at("_conclude")
    assert not (tmp_path / "run/result.json").exists()
    capsys.readouterr()
    refine.main(argv)
    out = capsys.readouterr().out
    assert "no video: Coin has no MuJoCo model" in out
    assert "stage" not in out  # nothing was left to do
    assert outcome(tmp_path / "run") == outcome(straight)


def test_demonstrations_may_be_given(straight, tmp_path, monkeypatch):
    train_stage = refine._train

    def clone_only(stage, *arguments):
        if stage == "refined":
            raise Killed
        return train_stage(stage, *arguments)

    monkeypatch.setattr(refine, "_train", clone_only)
    demos = straight / "demonstrations.zarr"
    with pytest.raises(Killed):
        refine.main([*REFINE, "--run-dir", str(tmp_path / "run"), "--demos", str(demos)])
    assert not (tmp_path / "run/demonstrations.zarr").exists()
    given, own = (
        json.loads((d / "clone/result.json").read_text()) for d in (tmp_path / "run", straight)
    )
    assert given["estimates"] == own["estimates"]
    monkeypatch.chdir(straight)  # said in another way, it's the same run
    same = ["--run-dir", str(tmp_path / "run"), "--demos", demos.name, "--engine", "native"]
    with pytest.raises(Killed):
        refine.main([*REFINE, *same, "--resume"])


@pytest.mark.parametrize(
    ("argv", "act"),
    [([], -0.2), (["--act", "-0.15"], -0.15), (["--act", "-0.25"], -0.25)],  # the usual one too
)
def test_demonstrations_differ_as_the_preset_says_unless_a_flag_says_otherwise(
    argv, act, tmp_path, monkeypatch
):
    monkeypatch.setitem(REFINEMENTS, ("Coin", "cpu"), {"act": -0.2, "episodes": 50})

    def kill(*_, **__):
        raise Killed

    monkeypatch.setattr(refine, "evaluate", kill)
    with pytest.raises(Killed):
        refine.main([*REFINE, *argv, "--run-dir", str(tmp_path / "run")])
    demos = data.read(tmp_path / "run/demonstrations.zarr")
    assert demos.episodes == 3
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["demonstrated"]["act"] == act
    assert {float(a) for a in np.ravel(demos.action)} == {np.float32(act)}


def test_a_base_that_changed_is_refused(straight, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    trainer = restore_trainer(run_dir / "clone")
    template = trainer.learned(state_template(trainer, 1))
    learned, info = checkpoint.load(run_dir / "clone/best", template)
    checkpoint.save(run_dir / "clone/best", jax.tree.map(lambda x: 1.01 * x, learned), info)
    argv = [*REFINE, "--run-dir", str(run_dir), "--resume", "--test-episodes", "24"]
    with pytest.raises(SystemExit):
        refine.main(argv)
    message = capsys.readouterr().err
    assert "refined was started with another configuration: base_fingerprint is" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["{run} exists: resume the run, or choose another folder"]),
        (["--resume", "--seed", "4"], ["refinement.seed is 3 there, 4 here"]),
        (["--resume", "--episodes", "5"], ["refinement.episodes is 3 there, 5 here"]),
        (["--resume", "--steps", "48"], ["refinement.steps is None there, 48 here"]),
        (["--resume", "--act", "-0.2"], ["task.act is -0.25 there, -0.2 here"]),
    ],
)
def test_a_folder_of_another_refinement_is_refused(straight, capsys, argv, words):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    message = refusal(refine.main, [*REFINE, "--run-dir", str(straight), *argv], capsys)
    for word in words:
        assert word.format(run=straight) in message
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--env", "Foo"], "unknown environment 'Foo'; valid: Coin, DofbotReacher, HiwinReacher, "),
        (["--episodes", "0"], "episodes must be at least 1, got 0"),
        (["--test-episodes", "0"], "test_episodes must be at least 1, got 0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--preset", "paper"], "Coin has no preset 'paper' for bc"),
        (["--seed", "-1"], "seed must be in 0 .. 2147483647, got -1"),
        (["--no-expert"], "Coin has no scripted expert"),
        (["--act", "-2"], "the expert can't act by -2"),
        (["--demos", "nowhere.zarr"], "nowhere.zarr"),
        (["--resume"], "there is no run in run: config.json is missing"),
        (["--demos", "{demos}", "--act", "-0.2"], "config.act is -0.25 there, -0.2 here"),
        (["--env", "DofbotReacher"], "DofbotReacher has no preset 'cpu' for bc"),
    ],
)
def test_bad_flags_are_refused_in_one_line(straight, argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "stream", None)  # it's refused before any work
    argv = [a.format(demos=straight / "demonstrations.zarr") for a in argv]
    first = REFINE if "--env" not in argv else []
    assert message in refusal(refine.main, [*first, "--run-dir", "run", *argv], capsys)
    assert not list(tmp_path.iterdir())


def test_an_expert_that_always_fails_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.collection, "PATIENCE", 4)
    monkeypatch.setattr(refine, "print", lambda *_, **__: None, raising=False)
    message = refusal(
        refine.main, [*REFINE, "--act", "-1", "--run-dir", str(tmp_path / "run")], capsys
    )
    assert "episodes in a row failed" in message


# --- train, load, evaluate ------------------------------------------------------------------------


SHORT = ["--env", "Coin", "--evaluation-episodes", "4", "--test-episodes", "8", "--seed", "1"]
WINDOWS = shlex.split(
    "--horizon 2 --action-horizon 2 --batch 4 --gradient-steps 2 --warmup-steps 1 "
    "--decay-steps 16 --steps 4 --evaluate-every 2"
)
SIMULATIONS = shlex.split(
    "--num-envs 2 --horizon 4 --epochs 1 --minibatches 1 --hidden 8 --steps 16 --evaluate-every 8"
)
OPTIONS = {
    "bc": [*WINDOWS, "--hidden", "8", "--demos", "{demos}"],
    "diffusion_bc": [*WINDOWS, "--widths", "8", "--sampling-steps", "1", "--demos", "{demos}"],
    "residual_ppo": [*SIMULATIONS, "--base", "{base}"],
    "residual_ppo expert": [*SIMULATIONS, "--base", "expert"],
}


def train_argv(name, run_dir, straight):
    sources = {"demos": straight / "demonstrations.zarr", "base": straight / "clone"}
    options = [word.format(**sources) for word in OPTIONS[name]]
    return [*SHORT, "--algo", name.split()[0], "--run-dir", str(run_dir), *options]


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_trained_comes_back_without_the_demonstrations(
    name, straight, tmp_path, monkeypatch
):
    """What is loaded acts as what was tested did, after folders were moved together."""
    monkeypatch.setattr(train, "draw_learning_curve", lambda *_: None)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(straight, here / "refine")
    train.main(train_argv(name, here / "run", here / "refine"))
    result = json.loads((here / "run/result.json").read_text())
    assert result["algo"] == name.split()[0]
    here.rename(there)
    shutil.rmtree(there / "refine/demonstrations.zarr")
    evaluate.main(["--run-dir", str(there / "run"), "--episodes", "8"])
    stored = json.loads((there / "run/evaluation-best-test-0-none-8.json").read_text())
    assert stored["estimates"]["seed 1"] == result["estimates"]
    env, policy, params = load(there / "run", "last")
    assert type(env.unwrapped) is coin.Coin
    assert policy.period == (1 if name.endswith("expert") else 2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_units_over_the_expert_are_those_of_the_native_engine(straight, monkeypatch):
    """What was learned in them on one engine is loaded for the other."""
    made, original = [], envs.make

    def make(name, engine="auto", **options):
        made.append(engine)
        return original(name, engine, **(options if engine == "native" else {"act": -0.2}))

    monkeypatch.setattr(envs, "make", make)
    config = residual_ppo.Config(num_envs=2, horizon=4, minibatches=1)
    trainer = make_trainer("Coin", "mjx", coin.Config(), "residual_ppo", config, "expert")
    assert made == ["mjx", "native"]
    assert trainer.env.unwrapped.config.act == -0.2
    np.testing.assert_allclose(trainer.inputs.normaliser.offset["action"], -0.25)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--algo", "bc"], "bc needs --demos"),
        (["--algo", "diffusion_bc", "--base", "expert"], "diffusion_bc doesn't take --base"),
        (["--algo", "residual_ppo"], "residual_ppo needs --base"),
        (["--algo", "ppo", "--base", "expert"], "ppo doesn't take --base"),
        (["--algo", "bc", "--demos", "x", "--base", "y"], "bc doesn't take --base"),
        (["--algo", "bc", "--demos", "x.zarr"], "x.zarr"),
        (["--algo", "bc", "--demos", "{demos}", "--act", "0.5"], "config.act is -0.25 there"),
        (["--algo", "residual_ppo", "--base", "nowhere"], "there is no run in nowhere"),
        (["--algo", "residual_ppo", "--base", "{refined}"], "is not the run of a cloned policy"),
        (["--algo", "residual_ppo", "--base", "expert", "--no-expert"], "has no scripted expert"),
        (["--algo", "residual_ppo", "--base", "{clone}", "--horizon", "5"], "multiple of the 2"),
    ],
)
def test_wrong_sources_are_refused_in_one_line(
    straight, argv, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "compile_programs", None)
    paths = {k: straight / k for k in ("clone", "refined")}
    paths["demos"] = straight / "demonstrations.zarr"
    argv = [a.format(**paths) for a in argv]
    assert words in refusal(train.main, ["--env", "Coin", "--steps", "8", *argv], capsys)
    assert not list(tmp_path.iterdir())


def test_a_residual_policy_is_refused_over_another_base(straight, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "draw_learning_curve", lambda *_: None)
    shutil.copytree(straight, tmp_path / "refine")
    train.main(train_argv("residual_ppo", tmp_path / "run", tmp_path / "refine"))
    train.main([*train_argv("bc", tmp_path / "other", straight), "--seed", "2"])
    shutil.rmtree(tmp_path / "refine/clone")
    (tmp_path / "other").rename(tmp_path / "refine/clone")
    with pytest.raises(training.RunError, match="isn't the one that it corrects"):
        load(tmp_path / "run")
    argv = [*train_argv("residual_ppo", tmp_path / "run", tmp_path / "refine"), "--resume"]
    assert "base_fingerprint is" in refusal(train.main, argv, capsys)
