from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo.policy import Policy
from jaxrobo.viewer import Player, player
from jaxrobo.viewer.session import Abilities


@pytest.fixture(scope="module")
def made():
    """Two Dofbots under a policy whose action is its parameter.

    `traced` has an entry for every time that the policy was, `at_first` their number when made.
    """
    env = envs.make("DofbotReacher", "native")
    traced = []

    def act(params, carry, observation, key):
        traced.append(params)
        return jnp.full(5, params), carry, {}

    made = Player(env, Policy(act), jnp.asarray(0.5), 2)
    made.traced, made.at_first = traced, len(traced)
    return made


@pytest.fixture
def playing(made, monkeypatch):
    """The same from its start, with a clock that goes on only in `sleep`."""
    clock = [1000.0]
    monkeypatch.setattr(player, "time", SimpleNamespace(monotonic=lambda: clock[0]))
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


def test_nothing_compiles_once_time_passes(playing):
    playing.tick()
    playing.take_over(1)
    playing.nudge(0, 0.1)
    playing.move_goal(0, np.array([0.1, 0.1, 0.2]))
    playing.step_once()
    playing.tick()
    playing.params = jnp.asarray(0.5)
    playing.step_once()
    playing.tick()
    assert 0 < playing.at_first == len(playing.traced)


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
    for index in (2, -1):
        with pytest.raises(ValueError, match=f"no simulation {index}; valid: 0 to 1"):
            playing.take_over(index)
        with pytest.raises(ValueError, match=f"no simulation {index}; valid: 0 to 1"):
            playing.move_goal(index, np.zeros(3))


def test_what_cannot_be_done_is_refused_at_once(playing, monkeypatch):
    monkeypatch.setattr(playing, "abilities", Abilities((), False))
    with pytest.raises(ValueError, match="don't move its joints one by one"):
        playing.take_over(0)
    with pytest.raises(ValueError, match="no goals to move"):
        playing.move_goal(0, np.zeros(3))
