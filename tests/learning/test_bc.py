"""Behaviour cloning of experts that are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data
from jaxrobo.learning import bc
from jaxrobo.rollout import rollout, start
from tests.learning.diagnostic_envs import Aim, Walk, aiming, best_aim

KEY = jax.random.key(0)
ENV = Aim()
FAST = dict(batch=64, gradient_steps=300, learning_rate=1e-2, warmup_steps=10, decay_steps=900)


@pytest.fixture(scope="module")
def demos():
    return data.collect(ENV, aiming(), (), 40)


def play(trainer, params, steps, episodes=3):
    """Transitions `[episodes, steps, ...]` of the deterministic policy."""
    policy = trainer.act(True)

    def run(key):
        return rollout(trainer.env, policy, params, start(trainer.env, policy, key), steps)[1]

    return jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(KEY, episodes)))


# --- what is learned ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizon", "action_horizon", "obs_horizon", "hidden", "error"),
    [(1, 1, 1, (), 1e-3), (1, 1, 2, (), 5e-3), (5, 5, 1, (32,), 0.03)],
)
def test_an_expert_is_cloned(demos, horizon, action_horizon, obs_horizon, hidden, error):
    """A linear expert; in chunks of 5, of which it repeats the last beyond the end."""
    horizons = dict(horizon=horizon, action_horizon=action_horizon, obs_horizon=obs_horizon)
    trainer = bc.make(ENV, demos, bc.Config(**horizons, **FAST, hidden=hidden))
    state, losses = trainer.init(KEY, trainer.inputs), []
    for _ in range(3):
        state, metrics = trainer.step(state, trainer.inputs)
        losses.append(metrics["loss"])
    assert losses[0] > losses[1] > losses[2]
    assert state.iteration == 3
    batch = play(trainer, trainer.policy(state)[1], 10)
    assert batch.live.all()
    assert batch.truncated[:, 4].all()
    expected = best_aim(batch.obs["place"], batch.obs["time"])
    assert np.abs(expected).max() > 0.4
    np.testing.assert_allclose(batch.action, expected, atol=error)


def test_the_loss_is_the_squared_error_of_normalised_chunks(demos):
    """An untrained network says 0, but for its small last layer."""
    config = bc.Config(horizon=5, action_horizon=1, hidden=(), **FAST | {"gradient_steps": 1})
    trainer = bc.make(ENV, demos, config)
    state = trainer.init(KEY, trainer.inputs)
    zero = jax.tree.map(jnp.zeros_like, state.params)
    state, index = trainer.collect(state.replace(params=zero), trainer.inputs)
    _, metrics = jax.jit(trainer.update)(state, index, trainer.inputs)
    starts = np.arange(40) * 5  # a window an episode
    assert index.shape == (1, 64)
    actions = demos.action[starts[np.asarray(index)][..., None] + np.arange(5), 0]
    low, high = demos.action.min(), demos.action.max()
    normal = (actions - (low + high) / 2) / ((high - low) / 2)
    assert metrics["loss"] == pytest.approx(np.mean(normal**2), rel=1e-4)
    windows = data.make_windows(demos.episode_ends, 5, 1)
    np.testing.assert_array_equal(trainer.inputs.action_rows, windows.action)


def test_the_policy_acts_by_the_moving_average(demos):
    options = FAST | {"gradient_steps": 1, "batch": 8}
    config = bc.Config(horizon=1, action_horizon=1, hidden=(), ema_decay=0.75, **options)
    trainer = bc.make(ENV, demos, config)
    collect, update = jax.jit(trainer.collect), jax.jit(trainer.update)
    state = trainer.init(KEY, trainer.inputs)
    average = jax.tree.map(np.array, state.params)
    for _ in range(4):
        state, batch = collect(state, trainer.inputs)
        state, _ = update(state, batch, trainer.inputs)
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, state.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, trainer.learned(state)["network"], average)
    leaves = zip(jax.tree.leaves(average), jax.tree.leaves(state.params), strict=True)
    assert max(np.abs(a - p).max() for a, p in leaves) > 1e-3
    stepped, _ = trainer.step(state, trainer.inputs)  # donates: the average has its own buffers
    assert stepped.iteration == 5


# --- what the policy sees and remembers -----------------------------------------------------------


def scribe(predict):
    """A model that learns nothing: `predict(condition, previous) -> actions [4, 1]`."""
    return bc.Model(
        init=lambda key: jnp.zeros(()),
        loss=lambda params, condition, actions, key: params * 0,
        predict=lambda params, condition, previous, key: predict(condition, previous),
    )


def acts(demos, predict, steps, **horizons):
    """What a scribe does, normalised, `[episodes, steps]`, and the transitions."""
    config = bc.Config(horizon=4, decay_steps=1000, **horizons)
    trainer = bc.clone(ENV, demos, config, scribe(predict))
    state = trainer.init(KEY, trainer.inputs)
    batch = play(trainer, trainer.policy(state)[1], steps)
    normaliser = trainer.inputs.normaliser
    return np.asarray(data.normalise(normaliser, "action", batch.action))[..., 0], batch, normaliser


def test_past_observations_are_seen_the_first_again_and_again(demos):
    """Writes down what it sees: place and time of two steps. Episodes of 5, plans of 2."""
    tell = lambda condition, previous: condition[jnp.array([1, 3, 0, 2])][:, None]
    wrote, batch, normaliser = acts(demos, tell, 12, action_horizon=2, obs_horizon=2)
    times = data.denormalise(normaliser, "time", wrote)
    live = [1, 1, 1, 1, 1, 0] * 2
    np.testing.assert_array_equal(batch.live, [live] * 3)
    seen = [0, 0, 1, 2, 3, 4]  # times of (previous, current) at steps 0, 2 and 4
    expected = np.array([[*seen[:5], np.nan] * 2] * 3)
    np.testing.assert_allclose(np.where(batch.live, times, np.nan), expected, atol=1e-5)
    tell = lambda condition, previous: condition[jnp.array([0, 2, 1, 3])][:, None]
    wrote, batch, normaliser = acts(demos, tell, 12, action_horizon=2, obs_horizon=2)
    places = data.denormalise(normaliser, "place", np.clip(wrote, -1, 1))
    shown = batch.obs["place"][..., 0]
    assert (shown[:, 5] == shown[:, 0]).all()
    assert (shown[:, 6] != shown[:, 0]).all()  # a new episode, of another place
    low, high = demos.obs["place"].min(), demos.obs["place"].max()
    expected = np.where(batch.live, np.clip(shown, low, high), np.nan)
    np.testing.assert_allclose(np.where(batch.live, places, np.nan), expected, atol=1e-5)


def test_training_sees_the_same_past(demos):
    config = bc.Config(horizon=4, action_horizon=2, obs_horizon=3, hidden=(), decay_steps=1000)
    inputs = bc.make(ENV, demos, config).inputs
    time = data.denormalise(inputs.normaliser, "time", inputs.observation[:, 1])
    np.testing.assert_allclose(time[inputs.obs_rows[:3]], [[0, 0, 0], [0, 0, 1], [0, 1, 2]])
    place = data.denormalise(inputs.normaliser, "place", inputs.observation[:, 0])
    np.testing.assert_allclose(place, demos.obs["place"][:, 0], atol=1e-5)


def test_a_plan_reads_what_is_left_of_the_last_and_an_episode_starts_without(demos):
    """Plans of 4, of which 2 are carried out; episodes of 5, so the third is broken off."""
    fresh = jnp.array([[0.1], [0.2], [0.3], [0.4]])
    go_on = lambda condition, previous: jnp.where(previous.exists, previous.actions, fresh)
    wrote, batch, _ = acts(demos, go_on, 12, action_horizon=2)
    episode = [0.1, 0.2, 0.3, 0.4, 0.4, np.nan]
    np.testing.assert_allclose(np.where(batch.live, wrote, np.nan), [episode * 2] * 3, rtol=1e-4)


def test_a_plan_beyond_the_demonstrated_actions_is_clipped(demos):
    far = lambda condition, previous: jnp.array([[3.0], [-3.0], [0.5], [1.5]])
    wrote, batch, _ = acts(demos, far, 4, action_horizon=4)
    np.testing.assert_allclose(wrote, [[1, -1, 0.5, 1]] * 3, atol=1e-5)
    bounds = [demos.action.max(), demos.action.min()]
    np.testing.assert_allclose(batch.action[0, :2, 0], bounds, rtol=1e-5)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"obs_horizon": 0}, "obs_horizon must be at least 1, got 0"),
        ({"batch": -1}, "batch must be at least 1, got -1"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
        ({"horizon": 4}, "action_horizon must be at most horizon, 4, got 8"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"warmup_steps": 7, "decay_steps": 7}, "in 0 .. decay_steps - 1 = 6, got 7"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"activation": "sine"}, "unknown activation 'sine'; valid: elu"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bc.Config(**options)


def test_a_schedule_without_an_end_is_refused(demos):
    with pytest.raises(ValueError, match="decay_steps is missing"):
        bc.make(ENV, demos, bc.Config())


def test_demonstrations_of_another_environment_are_refused(demos):
    config = bc.Config(**FAST)
    with pytest.raises(data.DataError, match="env is 'Aim' there, 'Walk' here"):
        bc.make(Walk(), demos, config)
    unknown = demos.replace(metadata=data.Metadata())
    with pytest.raises(data.DataError, match="no observation 'obs', which Walk shows"):
        bc.make(Walk(), unknown, config)
    wide = demos.replace(action=np.repeat(demos.action, 2, axis=1))
    with pytest.raises(data.DataError, match="the actions have width 2, expected 1 for Aim"):
        bc.make(ENV, wide, config)


def test_what_the_environment_does_not_show_is_left_out(demos):
    more = demos.replace(obs={**demos.obs, "colour": np.zeros((demos.steps, 3), np.float32)})
    config = bc.Config(horizon=1, action_horizon=1, hidden=(), decay_steps=1000)
    plain, same = (bc.make(ENV, d, config).inputs for d in (demos, more))
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    walk = dataclasses.replace(demos, obs={"obs": np.zeros((demos.steps, 2), np.float32)})
    walk = walk.replace(metadata=data.Metadata(), final_obs={})
    inputs = bc.make(Walk(), walk.replace(obs={**walk.obs, **demos.obs}), config).inputs
    assert inputs.observation.shape == (demos.steps, 2)
