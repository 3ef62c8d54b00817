import threading

import jax
import pytest

from experiments import play
from jaxrobo import checkpoint, rundir, training
from jaxrobo.checkpoint import RunError
from tests.tiny import make_trainer


@pytest.mark.parametrize("policy", [None, "expert", "random", "zero"])
def test_without_a_run(policy):
    name, env, made, params, trainer = play.load(play.Options(env="DofbotReacher", policy=policy))
    assert (name, params, trainer) == ("DofbotReacher", (), None)
    state = env.reset(jax.random.key(0))
    carry = made.init(made.observe(state), jax.random.key(1))
    action, _, _ = made.act((), carry, made.observe(state), jax.random.key(2))
    assert action.shape == (5,)
    assert (policy == "zero") == (not action.any())


def test_follow_loads_what_is_newer(tmp_path):
    trainer = make_trainer()
    options = {"evaluate_every": 16, "evaluation_episodes": 2, "test_episodes": 2}
    training.run(trainer, tmp_path, steps=16, **options)
    done, accepted = threading.Event(), threading.Event()
    given = []

    def accept(params):
        given.append(params)
        accepted.set()

    arguments = (tmp_path, "last", trainer, accept, done, 0.01)
    thread = threading.Thread(target=play.follow, args=arguments)
    thread.start()
    try:
        assert not accepted.wait(0.2)  # nothing is newer
        state = training.state_template(trainer, 1)
        state, info = checkpoint.load(tmp_path / rundir.LAST, state)
        checkpoint.save(tmp_path / rundir.LAST, state, info)
        assert accepted.wait(60.0)
    finally:
        done.set()
        thread.join()
    expected = training.restore_policy(tmp_path, trainer, "last")[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, given[0], expected))


def test_mistakes(tmp_path, capsys):
    with pytest.raises(RunError, match="there is no run"):
        play.load(play.Options(run_dir=tmp_path))
    with pytest.raises(SystemExit):
        play.main([])
    assert "--env or --run-dir is missing; tasks: DofbotReacher" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        play.main(["--run-dir", str(tmp_path), "--policy", "zero"])
    assert "the run's policy acts" in capsys.readouterr().err
    (tmp_path / rundir.CONFIG).write_text('{"env": "PegHole"}')
    with pytest.raises(ValueError, match="is a run of PegHole, not of DofbotReacher"):
        play.load(play.Options(run_dir=tmp_path, env="DofbotReacher"))
