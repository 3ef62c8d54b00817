import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo.policy import Policy
from jaxrobo.viewer import Player, player


@pytest.fixture(scope="module")
def made():
    """Two Dofbots under a policy whose action is its parameter."""
    env = envs.make("DofbotReacher", "native")
    act = lambda params, carry, observation, key: (jnp.full(5, params), carry, {})
    return Player(env, Policy(act), jnp.asarray(0.5), 2)


@pytest.fixture
def playing(made, monkeypatch):
    """The same from its start, with a clock that goes on only in `sleep`."""
    clock = [1000.0]
    monkeypatch.setattr(player.time, "monotonic", lambda: clock[0])
    made.paused, made.speed, made._due = False, 1.0, 0.0
    made.sleep = lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    made.reset()
    made.paused = True
    made.tick()
    made.paused = False
    return made


def steps(playing, seconds, of=0.001):
    """Control steps that are made in some time."""
    before = int(playing.session.steps)
    for _ in range(round(seconds / of)):
        playing.tick()
        playing.sleep(of)
    return int(playing.session.steps) - before


def test_time_passes_as_it_should(playing):
    second = 1 / playing.env.dt
    assert steps(playing, 0.5) == pytest.approx(0.5 * second, abs=1)
    playing.speed = 4.0
    steps(playing, 0.02)  # what was due at the old speed
    assert steps(playing, 0.25) == pytest.approx(second, abs=1)
    playing.speed = 0.1
    steps(playing, 0.02)
    assert steps(playing, 1.0) == pytest.approx(0.1 * second, abs=1)


def test_a_machine_that_lags_does_not_catch_up(playing):
    playing.tick()
    playing.sleep(10.0)
    assert steps(playing, 0.1) == pytest.approx(0.1 / playing.env.dt, abs=1)


def test_pause_and_single_steps(playing):
    playing.paused = True
    assert steps(playing, 0.1) == 0
    playing.step_once()
    playing.step_once()
    assert steps(playing, 0.1) == 2
    playing.paused = False
    assert steps(playing, 0.1) > 2


def test_wishes_are_done_while_paused(playing):
    playing.paused = True
    playing.take_over(1)
    playing.command(2, -0.5)
    playing.nudge(2, 0.25)
    playing.move_goal(0, np.array([0.1, 0.1, 0.2]))
    playing.tick()
    frame = playing.look()
    assert frame.taken == 1
    assert frame.manual[2] == -0.25
    np.testing.assert_allclose(frame.goal[0], [0.1, 0.1, 0.2])
    playing.give_back()
    playing.tick()
    assert playing.look().taken == -1


def test_reset_starts_other_episodes(playing):
    steps(playing, 0.1)
    first = playing.look()
    playing.reset()
    playing.paused = True
    playing.tick()
    frame = playing.look()
    np.testing.assert_array_equal(frame.episode["length"], 0.0)
    assert not np.allclose(frame.goal, first.goal)


def test_new_parameters_act_from_the_next_step(playing):
    playing.tick()
    np.testing.assert_allclose(playing.session.action, 0.5)
    playing.params = jnp.asarray(-0.25)
    playing.step_once()
    playing.tick()
    playing.params = jnp.asarray(0.5)
    np.testing.assert_allclose(playing.session.action, -0.25)


def test_mistakes(playing):
    with pytest.raises(ValueError, match=r"speed must be in 0\.1 \.\. 4\.0, got 0"):
        playing.speed = 0.0
    with pytest.raises(ValueError, match="no simulation 2; valid: 0 to 1"):
        playing.take_over(2)
