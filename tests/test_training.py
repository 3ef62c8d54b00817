"""The host loop, on an environment without physics (`tests.tiny`) and on one with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo import checkpoint, metrics, rundir, training
from jaxrobo._plan import state_template
from jaxrobo.env import Metric, TimeLimit
from jaxrobo.evaluation import Estimate
from jaxrobo.learning import ppo
from jaxrobo.rollout import split_key
from jaxrobo.training import RunError, restore_policy
from tests.tiny import Draw, make_trainer

pytestmark = pytest.mark.usefixtures("cache")
PER_ITERATION = 16
TRAINER = make_trainer()


def run(run_dir, iterations, trainer=TRAINER, **options):
    options = {"evaluate_every": 2 * PER_ITERATION, "evaluation_episodes": 8} | options
    steps = iterations * PER_ITERATION
    return training.run(trainer, run_dir, steps=steps, test_episodes=12, **options)


def bits(tree):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(data(x)).tobytes() for x in jax.tree.leaves(tree)]


def rows(run_dir):
    """The log without what depends on the clock."""
    lines = (run_dir / metrics.JSONL).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 8 iterations, and its folder."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    return run(run_dir, 8, config={"env": "Draw", "algo": "walk", "engine": "none"}), run_dir


def test_a_run_is_its_trainer_in_a_loop(straight):
    result, _ = straight
    state = TRAINER.init(split_key("train", 0), ())
    for _ in range(8):
        state, _ = TRAINER.step(state, ())
    np.testing.assert_allclose(result.state.params["w"], state.params["w"], rtol=1e-6)
    assert (result.steps, result.interrupted) == (8 * PER_ITERATION, False)


def test_result_says_what_was_run_and_how_well_it_did(straight):
    result, run_dir = straight
    stored = json.loads((run_dir / "result.json").read_text())
    expected = {
        "env": "Draw",
        "algo": "walk",
        "engine": "none",
        "seed": 0,
        "steps": 8 * PER_ITERATION,
        "episodes": 12,
        "metric": "success",
    }
    assert stored | expected == stored
    assert stored["success"] == result.evaluation[0]["success"]._asdict()
    assert list(stored["estimates"]) == ["success", "length", "reward", "length_of_success"]
    assert stored["config"]["algorithm"] == {"rate": 0.1, "horizon": 8}
    assert stored["config"]["versions"]["jax"] == jax.__version__
    assert min(stored["wall_seconds"], stored["compile_seconds"]) > 0
    assert "cores of" in stored["hardware"]


def test_log_has_every_iteration_and_evaluation_in_order_and_no_nan(straight):
    _, run_dir = straight
    log = rows(run_dir)
    evaluated = [r["iteration"] for r in log if "validation/success" in r]
    assert evaluated == [0, 2, 4, 6, 8]
    assert [r["iteration"] for r in log if "train/w" in r] == list(range(1, 9))
    assert [r["iteration"] for r in log] == sorted(r["iteration"] for r in log)
    assert all(r["steps"] == r["iteration"] * PER_ITERATION for r in log)
    assert not any("train/nothing" in r for r in log)
    assert all(np.isfinite(v) for r in log for v in r.values())
    assert any((run_dir / "tensorboard").iterdir())


def test_best_is_the_last_of_the_highest_scores(straight):
    result, run_dir = straight
    log = rows(run_dir)
    w = {r["iteration"]: r["train/w"] for r in log if "train/w" in r} | {0: 0.0}
    scores = {r["iteration"]: r["validation/success"] for r in log if "validation/success" in r}
    best = max(scores, key=lambda i: (scores[i], i))
    assert len(set(scores.values())) > 1
    assert float(result.params["w"]) == pytest.approx(w[best])
    assert json.loads((run_dir / "result.json").read_text())["best_steps"] == best * PER_ITERATION
    _, params = restore_policy(run_dir, TRAINER)
    assert bits(params) == bits(result.params)
    _, params = restore_policy(run_dir, TRAINER, "last")
    assert bits(params) == bits(result.state.params)


def test_resume_is_bitwise(tmp_path, straight):
    result, run_dir = straight
    options = {"config": {"env": "Draw", "algo": "walk", "engine": "none"}}
    run(tmp_path / "a", 4, **options)
    resumed = run(tmp_path / "a", 8, resume=True, **options)
    assert bits(resumed.state) == bits(result.state)
    assert bits(resumed.params) == bits(result.params)
    assert rows(tmp_path / "a") == rows(run_dir)
    assert resumed.evaluation == result.evaluation
    assert json.loads((tmp_path / "a/config.json").read_text())["steps"] == 8 * PER_ITERATION


SCRIPT = """
import sys
from jaxrobo import training
from tests.tiny import make_trainer
training.run(make_trainer(), sys.argv[1], steps=int(sys.argv[2]), evaluate_every=16,
             evaluation_episodes=8, test_episodes=12, resume=sys.argv[3:] == ["resume"])
"""


@pytest.fixture
def other_process(tmp_path, cache):
    """Starts a run in a process of its own."""
    root = Path(__file__).parents[1]
    started = []

    def start(run_dir, iterations, *more):
        arguments = [str(run_dir), str(iterations * PER_ITERATION), *more]
        command = [sys.executable, "-c", SCRIPT, *arguments]
        with (tmp_path / "output").open("w") as output:
            process = subprocess.Popen(
                command, cwd=root, env=os.environ | cache, stdout=output, stderr=output
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_a_killed_run_goes_on_bitwise_in_another_process(tmp_path, other_process):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = other_process(killed, 10**6)
    last = killed / "last"
    wait_for(lambda: (p := checkpoint.newest(last)) and int(p.name) >= 5, process)
    process.kill()
    process.wait()
    template = state_template(TRAINER, 1)
    done = checkpoint.load(last, template)[1]["iteration"]
    assert done >= 4
    resumed = run(killed, done + 3, evaluate_every=PER_ITERATION, resume=True)
    result = run(straight, done + 3, evaluate_every=PER_ITERATION)
    assert bits(resumed.state) == bits(result.state)
    assert bits(resumed.params) == bits(result.params)
    assert rows(killed) == rows(straight)


def test_a_kill_between_best_and_last_changes_nothing(tmp_path):
    killed, straight, last = (tmp_path / name for name in ("killed", "straight", "killed/last"))
    options = dict(seed=2, patience=3)
    run(killed, 4, **options)
    shutil.copytree(last, tmp_path / "earlier")
    run(killed, 6, resume=True, **options)
    scores = [r["validation/success"] for r in rows(killed) if "validation/success" in r]
    assert scores[0] == scores[1] == scores[2] < scores[3]
    shutil.rmtree(last)
    shutil.copytree(tmp_path / "earlier", last)  # as if the next one hadn't been written yet
    resumed = run(killed, 8, resume=True, **options)
    result = run(straight, 8, **options)
    assert (resumed.steps, resumed.evaluation) == (result.steps, result.evaluation)
    assert bits(resumed.params) == bits(result.params)
    assert rows(killed) == rows(straight)


def test_interrupt_finishes_the_iteration_saves_and_the_run_goes_on(
    tmp_path, straight, interrupted, capfd
):
    options = {"config": {"env": "Draw", "algo": "walk", "engine": "none"}}
    handler = signal.getsignal(signal.SIGINT)
    with interrupted(after=3):
        result = run(tmp_path / "a", 8, **options)
    out, err = capfd.readouterr()
    assert result.interrupted
    assert result.steps == 4 * PER_ITERATION  # the one under way when it came
    assert result.evaluation == ()
    assert "stopped at step 64; the run can be resumed" in out
    assert "again to abort" in err
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "a/result.json").exists()
    resumed = run(tmp_path / "a", 8, resume=True, **options)
    assert "resuming from step 64" in capfd.readouterr().out
    assert bits(resumed.state) == bits(straight[0].state)


def test_second_interrupt_aborts(tmp_path, monkeypatch):
    def interrupt(self, counters, values):
        # Not os.kill: another thread may take both signals before either is handled.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(metrics.Logs, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", 8)


def test_a_run_in_the_background_stays_deaf_to_ctrl_c(tmp_path, straight, interrupted):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted(after=3):
            result = run(tmp_path / "a", 8)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert not result.interrupted
    assert bits(result.state) == bits(straight[0].state)


def test_seeds_at_once_are_the_seeds_one_by_one(tmp_path):
    both = run(tmp_path / "both", 4, seed=5, seeds=2)
    for k, seed in enumerate((5, 6)):
        single = run(tmp_path / f"{seed}", 4, seed=seed)
        np.testing.assert_allclose(both.state.params["w"][k], single.state.params["w"], rtol=1e-5)
        np.testing.assert_array_equal(
            jax.random.key_data(both.state.key[k]), jax.random.key_data(single.state.key)
        )
        _, params = restore_policy(tmp_path / "both", TRAINER, seed=seed)
        np.testing.assert_allclose(params["w"], single.params["w"], rtol=1e-5)
        assert both.evaluation[k]["success"] == single.evaluation[0]["success"]
        mine, alone = rows(tmp_path / f"both/seed-{seed}"), rows(tmp_path / f"{seed}")
        assert [r["iteration"] for r in mine] == [r["iteration"] for r in alone]
        np.testing.assert_allclose(mine[-1]["validation/reward"], alone[-1]["validation/reward"])
        stored = json.loads((tmp_path / f"both/seed-{seed}/result.json").read_text())
        assert stored["seed"] == seed
    overall = json.loads((tmp_path / "both/result.json").read_text())
    assert overall["seeds"] == [5, 6]
    assert overall["success"]["mean"] == pytest.approx(np.mean(overall["each"]))
    again = run(tmp_path / "both", 4, seed=5, seeds=2, resume=True)
    assert bits(again.state) == bits(both.state)
    with pytest.raises(RunError, match="has no seed 7; valid: 5 to 6"):
        restore_policy(tmp_path / "both", TRAINER, seed=7)


def test_patience_ends_a_run_that_no_longer_gets_better(tmp_path, interrupted, capfd):
    """A policy that never changes: after the first evaluation all are flat."""
    still, options = make_trainer(rate=0.0), {"patience": 3}
    whole = run(tmp_path / "a", 100, still, **options)
    stored = json.loads((tmp_path / "a/result.json").read_text())
    assert (whole.steps, whole.interrupted) == (6 * PER_ITERATION, False)  # evaluated at 2, 4, 6
    assert (stored["steps"], stored["ended_early"]) == (6 * PER_ITERATION, True)
    assert stored["config"]["patience"] == 3
    with interrupted(after=3):  # the flat one at 2 is remembered
        assert run(tmp_path / "b", 100, still, **options).interrupted
    resumed = run(tmp_path / "b", 100, still, resume=True, **options)
    assert resumed.steps == 6 * PER_ITERATION
    assert bits(resumed.state) == bits(whole.state)
    assert rows(tmp_path / "b") == rows(tmp_path / "a")
    again = run(tmp_path / "b", 200, still, resume=True, **options)  # over is over
    assert (again.steps, again.interrupted) == (6 * PER_ITERATION, False)
    run(tmp_path / "c", 4, still, **options)
    assert json.loads((tmp_path / "c/result.json").read_text())["ended_early"] is False


def test_patience_counts_evaluations_since_the_last_better_one(tmp_path):
    """The fifth is better than those before, so a patience of 5 lasts beyond it."""
    options = {"evaluate_every": PER_ITERATION, "seed": 6}
    run(tmp_path / "a", 40, **options)
    scores = [r["validation/success"] for r in rows(tmp_path / "a") if "validation/success" in r]
    rises = [i for i in range(1, 41) if scores[i] > max(scores[:i])]
    assert rises[0] == 5
    over = next(i for i in range(5, 41) if i - max(r for r in rises if r <= i) == 5)
    assert over < 40
    patient = run(tmp_path / "b", 40, patience=5, **options)
    assert patient.steps == over * PER_ITERATION
    assert "ended_early" not in json.loads((tmp_path / "a/result.json").read_text())


def test_patience_doesnt_count_the_evaluation_of_a_budget_that_was_raised(tmp_path):
    still, options = make_trainer(rate=0.0), {"patience": 3}
    run(tmp_path, 3, still, **options)  # evaluated at 2, and at 3 because it ends
    assert run(tmp_path, 100, still, resume=True, **options).steps == 6 * PER_ITERATION


def test_a_score_that_isnt_a_number_is_the_worst(tmp_path):
    """It's better than none, so that there is a policy to go on with."""

    class Unknown(Draw):
        metric = Metric("score", kind="count")

        def reset(self, key, model=None):
            return super().reset(key, model).replace(metrics={"score": jnp.array(jnp.nan)})

        def step(self, state, action):
            return super().step(state, action).replace(metrics={"score": jnp.array(jnp.nan)})

    trainer = TRAINER._replace(env=TimeLimit(Unknown(), 8))
    run(tmp_path, 2, trainer)
    result = run(tmp_path, 4, trainer, resume=True)
    assert result.params["w"] == result.state.params["w"] != 0
    assert [row["iteration"] for row in rows(tmp_path) if "train/w" in row] == [1, 2, 3, 4]


def test_what_only_some_seeds_have_is_unknown_for_the_others():
    """No seed but the second had a success, so that only its length is known."""
    won, lost = Estimate(0.5, 0.2, 0.8), Estimate(0.0, 0.0, 0.4)
    first, second = {"success": lost}, {"success": won, "length_of_success": Estimate(7, 6, 8)}
    got = training._rows([first, second])
    np.testing.assert_array_equal(got["validation/length_of_success"], [np.nan, 7])
    np.testing.assert_array_equal(got["validation/length_of_success/high"], [np.nan, 8])
    np.testing.assert_array_equal(got["validation/success"], [0, 0.5])


def explode(*_):
    raise AssertionError("compiled")


def test_a_folder_where_another_process_trains_is_refused(tmp_path):
    claim, refusal = (
        rundir.claimed(tmp_path / "a"),
        pytest.raises(RunError, match="another process"),
    )
    with claim, refusal:
        run(tmp_path / "a", iterations=4, trainer=TRAINER._replace(init=explode))
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "steps must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in 0 .. 2147483647, got -1"),
        ({"seed": 2**31 - 1, "seeds": 2}, "seed must be in 0 .. 2147483646, got 2147483647"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"evaluation_episodes": -2}, "evaluation_episodes must be at least 1, got -2"),
        ({"resume": True}, "there is no run in .*: config.json is missing"),
        ({"wandb": True}, "wandb isn't installed"),
    ],
)
def test_bad_requests_are_refused_before_anything_happens(tmp_path, options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it weren't installed
    with pytest.raises(RunError, match=message):
        run(
            tmp_path / "a", **{"iterations": 4, "trainer": TRAINER._replace(init=explode)} | options
        )
    assert not (tmp_path / "a").exists()


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exists: resume the run, or choose another folder"),
        (
            {"resume": True, "seed": 3, "trainer": make_trainer(rate=0.2)},
            r"another configuration: algorithm.rate is 0.1 there, 0.2 here; seed is 0 there, 3",
        ),
        ({"resume": True, "config": {"env": "Draw"}}, "env is missing there, 'Draw' here"),
    ],
)
def test_other_runs_are_refused_and_stay_as_they_are(tmp_path, options, message):
    run(tmp_path / "a", 2)
    before = snapshot(tmp_path / "a")
    options = {"trainer": TRAINER} | options
    options["trainer"] = options["trainer"]._replace(init=explode)
    with pytest.raises(RunError, match=message):
        run(tmp_path / "a", 4, **options)
    assert snapshot(tmp_path / "a") == before


def test_other_inputs_are_refused(tmp_path):
    run(tmp_path / "a", 1, make_trainer(inputs={"data": jnp.arange(3.0)}))
    before = snapshot(tmp_path / "a")
    with pytest.raises(RunError, match="started with other inputs"):
        run(tmp_path / "a", 2, make_trainer(inputs={"data": jnp.arange(3.0) + 1}), resume=True)
    assert snapshot(tmp_path / "a") == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, straight, capsys):
    run(tmp_path / "a", 2)
    for name in ("last", "best"):
        (tmp_path / "a" / name).rename(tmp_path / name)
    run(tmp_path / "a", 8, resume=True)
    assert "nothing was saved" in capsys.readouterr().out
    assert rows(tmp_path / "a") == rows(straight[1])


def test_damaged_checkpoint_is_refused_when_resuming(tmp_path):
    run(tmp_path / "a", 2)
    (checkpoint.newest(tmp_path / "a/last") / "state/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(RunError, match="damaged, or not one of ours"):
        run(tmp_path / "a", 4, TRAINER._replace(collect=explode), resume=True)


def test_nothing_is_traced_twice_and_memory_does_not_grow(tmp_path, monkeypatch):
    traces, arrays = [], []

    def update(*arguments):
        traces.append("update")
        return TRAINER.update(*arguments)

    write = metrics.Logs.write

    def count(self, counters, values):
        arrays.append(len(jax.live_arrays()))
        write(self, counters, values)

    monkeypatch.setattr(metrics.Logs, "write", count)
    run(tmp_path / "a", 40, TRAINER._replace(update=update))
    assert traces == ["update"]
    assert max(arrays[40:]) < max(arrays[:20]) + 10


def test_a_state_with_physics_comes_back_whole(tmp_path):
    env = envs.make("DofbotReacher", engine="native", episode_steps=6)  # episodes end on the way
    config = ppo.Config(num_envs=8, horizon=4, epochs=1, minibatches=1, hidden=(8,))
    trainer = ppo.make(env, config)
    collect, update = jax.jit(trainer.collect), jax.jit(trainer.update)

    def advance(state):
        for _ in range(2):
            state, batch = collect(state, ())
            state, _ = update(state, batch, ())
        return state

    middle = advance(trainer.init(jax.random.key(0), ()))
    checkpoint.save(tmp_path, middle, {})
    restored, _ = checkpoint.load(tmp_path, state_template(trainer, 1))
    assert bits(advance(restored)) == bits(advance(middle))
