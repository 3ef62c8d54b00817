"""PPO on environments whose values and best actions are known in closed form."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobo.distributions import normal_log_prob
from jaxrobo.env import NaNGuard, TimeLimit
from jaxrobo.learning import ppo, schedules
from jaxrobo.learning.normaliser import denormalise, init_stats, normalise
from jaxrobo.learning.trainer import episode_metrics
from jaxrobo.networks import ActorCritic, flatten_observation
from jaxrobo.randomise import ObservationNoise
from jaxrobo.rollout import Transition, run_episode
from tests.learning.diagnostic_envs import Endless, Tasks, Walk, endless

TINY = ppo.Config(num_envs=32, horizon=8, epochs=4, minibatches=2, hidden=(16,), discount=0.5)
KEY = jax.random.key(0)


def make(env, **options):
    return ppo.make(env, dataclasses.replace(TINY, **options))


def train(trainer, iterations):
    """The last state, and the metrics of every iteration, stacked."""
    state, history = trainer.init(KEY, trainer.inputs), []
    for _ in range(iterations):
        state, metrics = trainer.step(state, trainer.inputs)
        history.append(metrics)
    return state, jax.tree.map(lambda *m: np.stack(m), *history)


def value(trainer, state, obs):
    """What the critic thinks that an observation is worth, in units of the learner's reward."""
    c = trainer.config
    network = ActorCritic(
        trainer.env.action_size, c.hidden, c.activation, c.shared_trunk, c.init_log_std
    )
    x = flatten_observation(trainer.env.observation_spec, obs)
    if c.normalise_observations:
        x = normalise(state.observation_stats, x)
    v = network.apply(state.params, x)[2]
    return float(denormalise(state.value_stats, v) if c.normalise_values else v)


# --- values and actions ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks():
    """PPO on six tasks at once, one of which breaks in every episode: trainer, state, metrics."""
    trainer = make(NaNGuard(Tasks()), learning_rate=1e-2, schedule="adaptive", init_log_std=-1.0)
    return trainer, *train(trainer, 120)


@pytest.mark.parametrize(
    ("task", "x", "expected"),
    [
        ("constant", -1, 1.0),
        ("constant", 1, 1.0),
        ("observed", -1, -1.0),
        ("observed", 1, 1.0),
        ("delayed", 0, 0.5),  # discounted by 0.5
        ("delayed", 1, 1.0),
        ("breaking", 1, 0.0),  # truncated without reward: V = 0 + 0.5 V
    ],
)
def test_values_are_those_of_the_closed_form(tasks, task, x, expected):
    trainer, state, _ = tasks
    obs = Tasks.observe(Tasks.names.index(task), float(x))
    assert value(trainer, state, obs) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("task", "x", "expected"),
    [("target", -1, 0.5), ("target", 1, 0.5), ("follow", -1, -0.6), ("follow", 1, 0.6)],
)
def test_actions_go_to_the_best_ones(tasks, task, x, expected):
    trainer, state, metrics = tasks
    policy, params = trainer.policy(state)
    obs = Tasks.observe(Tasks.names.index(task), float(x))
    action, _, _ = policy.act(params, policy.init(obs, KEY), obs, KEY)
    assert action[0] == pytest.approx(expected, abs=0.05)
    assert metrics["entropy"][-1] < metrics["entropy"][0]  # and the noise shrinks


def test_broken_simulations_are_counted_and_never_reach_statistics_or_gradients(tasks):
    _, state, metrics = tasks
    assert metrics["episode/diverged"].mean() == pytest.approx(1 / 6, abs=0.02)
    learned = (state.params, state.opt_state, state.observation_stats, state.value_stats)
    for x in jax.tree.leaves((learned, metrics)):
        assert np.isfinite(x).all()
    mean = state.observation_stats.mean  # of the tasks, and of x, which is 1 in one step of seven
    np.testing.assert_allclose(mean, [*[1 / 7] * 2, 2 / 7, *[1 / 7] * 4], atol=0.02)


@pytest.fixture(scope="module")
def cosine():
    """PPO on a task that never ends, with two trunks."""
    options = dict(schedule="cosine", decay_steps=80 * 32 * 8, shared_trunk=False)
    return make(endless(4), discount=0.9, learning_rate=1e-2, **options)


def test_the_end_of_the_time_has_a_value(cosine):
    """A reward of 1 a step for ever is worth 1 / (1 - gamma), however often it's cut."""
    trainer = cosine
    state, metrics = train(trainer, 80)
    assert value(trainer, state, jnp.ones(1)) == pytest.approx(10, rel=0.03)
    assert state.params["params"].keys() >= {"trunk", "critic"}
    rates = 0.5e-2 * (1 + np.cos(np.pi * np.arange(80) / 80))
    np.testing.assert_allclose(metrics["learning_rate"], rates, rtol=1e-4)
    learned = jax.tree.map(np.array, state.params)
    state, after = trainer.step(state, ())
    assert after["learning_rate"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, learned)


def test_the_end_of_the_time_can_count_as_a_terminal_state():
    """The mean over the 4 steps of an episode of what remains of it; rewards scaled by 0.01.

    Trained by `collect` and `update` apart, as with an external simulator.
    """
    trainer = make(
        endless(4),
        discount=0.9,
        gae_decay=1.0,
        learning_rate=1e-2,
        schedule="constant",
        truncation_as_done=True,
        reward_scale=0.01,
        normalise_values=False,
        normalise_observations=False,
    )
    collect, update = jax.jit(trainer.collect), jax.jit(trainer.update)
    state = trainer.init(KEY, ())
    for i in range(80):
        state, batch = collect(state, ())
        assert batch.reward.shape == (8, 32)
        state, metrics = update(state, batch, ())
        assert metrics["learning_rate"] == np.float32(1e-2)
        assert state.observation_stats.count == 32 * 8 * (i + 1)
    remaining = [np.sum(0.9 ** np.arange(n)) for n in (1, 2, 3, 4)]
    expected = 0.01 * np.mean(remaining)
    assert value(trainer, state, jnp.ones(1)) == pytest.approx(expected, rel=0.05)
    episode = {k: float(metrics[f"episode/{k}"]) for k in ("reward", "length", "count")}
    assert episode == {"reward": 4, "length": 4, "count": 32 * 8 / 4}  # the reward isn't scaled


# --- the loss -------------------------------------------------------------------------------------


LINEAR = ActorCritic(2, hidden=())
ONLY_POLICY = dataclasses.replace(TINY, value_coef=0.0, bounds_coef=0.0)
loss = jax.jit(ppo._loss, static_argnums=(1, 2))


def linear_samples(seed, mean_bias=(0.0, 0.0)):
    """Parameters of a linear policy and value, and four samples that they could have made."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    dense = lambda n, bias: {"Dense_0": {"kernel": draw(3, n), "bias": jnp.asarray(bias)}}
    heads = {"mean": dense(2, mean_bias), "value": dense(1, [0.3]), "log_std": jnp.zeros(2)}
    params = {"params": heads}
    obs, action = draw(4, 3), draw(4, 2)
    mean, log_std, value = LINEAR.apply(params, obs)
    log_prob = normal_log_prob(action, mean, log_std)
    samples = ppo._Samples(obs, action, log_prob, mean, log_std, value, draw(4), draw(4))
    return params, samples


def test_the_first_gradient_is_that_of_reinforce():
    params, samples = linear_samples(0)

    def reinforce(params):
        mean, log_std, _ = LINEAR.apply(params, samples.observation)
        return -jnp.mean(normal_log_prob(samples.action, mean, log_std) * samples.advantage)

    grads, metrics = jax.grad(loss, has_aux=True)(params, LINEAR, ONLY_POLICY, samples)
    expected = jax.jit(jax.grad(reinforce))(params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, grads, expected)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected)) > 0.1
    assert (metrics["kl"], metrics["clip_fraction"]) == (0, 0)


def test_the_ratio_is_clipped_where_it_went_too_far():
    """Ratios of 2 and 1/2 with both signs of the advantage; clip = 0.2."""
    params, samples = linear_samples(1)
    ratio = jnp.array([2.0, 2.0, 0.5, 0.5])
    samples = samples.replace(
        log_prob=samples.log_prob - jnp.log(ratio), advantage=jnp.array([1.0, -1.0, 1.0, -1.0])
    )
    total, metrics = loss(params, LINEAR, ONLY_POLICY, samples)
    surrogate = [1.2, -2.0, 0.5, -0.8]
    assert metrics["policy_loss"] == pytest.approx(-np.mean(surrogate), rel=1e-5)
    assert total == metrics["policy_loss"]
    assert metrics["clip_fraction"] == 1


@pytest.mark.parametrize("clip", [True, False])
def test_the_value_is_clipped_around_its_old_one(clip):
    """max((v - t)^2, (clip(v) - t)^2) for v above and below its old value; clip = 0.2."""
    params, samples = linear_samples(2)
    v = samples.value
    samples = samples.replace(
        value=v + jnp.array([-1.0, -1.0, 1.0, 0.1]), target=v + jnp.array([2.0, -2.0, 0.5, 0.3])
    )
    expected = np.square([2.0, 2.0, 0.5, 0.3])
    if clip:  # v moved by -0.8, -0.8, 0.8, 0
        expected = np.maximum(expected, np.square([2.8, 1.2, 0.3, 0.3]))
    config = dataclasses.replace(ONLY_POLICY, value_coef=3.0, clip_values=clip)
    total, metrics = jax.device_get(loss(params, LINEAR, config, samples))
    assert metrics["value_loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert total == pytest.approx(metrics["policy_loss"] + 3 * metrics["value_loss"], rel=1e-5)


def test_means_beyond_the_bounds_and_certainty_are_priced():
    params, samples = linear_samples(3, mean_bias=(1.6, -3.1))
    samples = samples.replace(observation=jnp.zeros((4, 3)))
    config = dataclasses.replace(ONLY_POLICY, bounds_coef=0.1, entropy_coef=0.01)
    total, metrics = jax.device_get(loss(params, LINEAR, config, samples))
    assert metrics["bounds_loss"] == pytest.approx(0.5**2 + 2.0**2, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(np.log(2 * np.pi * np.e), rel=1e-5)
    priced = 0.1 * metrics["bounds_loss"] - 0.01 * metrics["entropy"]
    assert total == pytest.approx(metrics["policy_loss"] + priced, rel=1e-4)


# --- steps that don't count -----------------------------------------------------------------------


TRUNKS = ActorCritic(2, hidden=(4,), shared=False)
PLAIN = ppo.Config(
    num_envs=2,
    horizon=6,
    minibatches=1,
    discount=0.9,
    gae_decay=0.8,
    normalise_observations=False,
    hidden=(4,),
    shared_trunk=False,
)


def make_state(network, config, **options):
    """What `_targets` and `_optimise` read of a state; observations have 3 numbers."""
    params = network.init(KEY, jnp.zeros(3))
    optimiser = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())
    state = ppo.TrainState(
        iteration=jnp.zeros((), jnp.int32),
        key=KEY,
        params=params,
        opt_state=optimiser.init(params),
        learning_rate=jnp.asarray(config.learning_rate),
        observation_stats=init_stats((3,)),
        value_stats=init_stats(()).replace(count=jnp.array(10.0), mean=jnp.array(0.5)),
        rollout=None,
    )
    return state.replace(**options), optimiser


def batch_of_two():
    """Six steps of two simulations: the first terminates in its fourth and idles, as `rollout` says
    it; the other is cut short in its fifth. What idle rows say besides is nonsense."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.standard_normal((6, 2, *shape)).astype(np.float32)
    after = lambda step, i: np.eye(2, dtype=bool)[i] & (np.arange(6) >= step)[:, None]
    live = ~(after(4, 0) | after(5, 1))
    shout = lambda x: np.where(live[..., *(None,) * (x.ndim - 2)], x, 100 * x)
    x, x_next = shout(draw(3)), shout(draw(3))
    aux = {"log_prob": shout(draw()), "mean": shout(draw(2)), "log_std": np.zeros((6, 2, 2), "f")}
    batch = Transition(
        obs=None,
        action=None,
        reward=np.where(live, draw(), 0),
        next_obs=None,
        terminated=after(3, 0),
        truncated=after(4, 1),
        live=live,
        episode={},
        aux=aux,
    )
    return batch, x, x_next, shout(draw(2))


def advantages_by_hand(batch, i, values, next_values):
    """Backwards over the live steps of simulation `i`."""
    total, result = 0.0, []
    for t in reversed(np.flatnonzero(batch.live[:, i])):
        follows = 0.0 if batch.terminated[t, i] else next_values[t, i]
        error = batch.reward[t, i] + 0.9 * follows - values[t, i]
        over = batch.terminated[t, i] or batch.truncated[t, i]
        total = error + (0.0 if over else 0.9 * 0.8 * total)
        result.insert(0, total)
    return np.array(result)


def test_targets_are_those_of_the_live_steps_alone():
    state, _ = make_state(TRUNKS, PLAIN)
    batch, x, x_next, action = batch_of_two()
    weight = batch.live.astype(np.float32)
    targets = jax.jit(ppo._targets, static_argnums=(0, 1))
    samples, stats = targets(TRUNKS, PLAIN, state, batch, x, x_next, action, weight)
    values, next_values = (
        np.asarray(denormalise(state.value_stats, TRUNKS.apply(state.params, s)[2]))
        for s in (x, x_next)
    )
    advantages = np.concatenate(
        [advantages_by_hand(batch, i, values, next_values) for i in range(2)]
    )
    alive = values.T[batch.live.T]
    returns = advantages + alive
    assert stats.count == 10 + 9
    assert stats.mean == pytest.approx((10 * 0.5 + returns.sum()) / 19, rel=1e-5)
    mean = float(stats.mean)
    spread = 10 * (1 + (0.5 - mean) ** 2) + np.square(returns - mean).sum()
    assert float(stats.var) == pytest.approx(spread / 19, rel=1e-4)
    got = lambda x: np.asarray(x).reshape(6, 2).T[batch.live.T]
    normal = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(got(samples.advantage), normal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got(samples.target), normalise(stats, returns), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got(samples.value), normalise(stats, alive), rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_samples_with_weight():
    params, samples = linear_samples(5)
    kept = np.array([True, False, True, True])
    nonsense = jax.tree.map(
        lambda a: jnp.where(kept.reshape(-1, *[1] * (a.ndim - 1)), a, 30 * a + 3), samples
    )
    weighted = nonsense.replace(weight=kept.astype(np.float32))
    config = dataclasses.replace(ONLY_POLICY, value_coef=0.7, entropy_coef=0.1, bounds_coef=0.2)
    found = jax.value_and_grad(loss, has_aux=True)(params, LINEAR, config, weighted)
    alone = jax.tree.map(lambda a: a[kept], samples)
    expected = jax.value_and_grad(loss, has_aux=True)(params, LINEAR, config, alone)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)
    nothing, _ = loss(params, LINEAR, config, weighted.replace(weight=jnp.zeros(4)))
    assert nothing == 0


@pytest.fixture(scope="module")
def whole():
    """Walks of at most 6 steps in iterations of 8: trainer, its two halves, jitted, and a state."""
    env = TimeLimit(Walk(), 6)
    trainer = make(env, num_envs=6, whole_episodes=True, init_log_std=0.0)
    return trainer, jax.jit(trainer.collect), jax.jit(trainer.update), trainer.init(KEY, ())


def test_whole_episodes_start_anew_in_every_iteration_and_reach_their_end(whole):
    _, collect, _, state = whole
    starts = []
    for _ in range(2):
        state, batch = collect(state, ())
        batch = jax.device_get(batch)
        starts.append(batch.obs[0, :, 0])
        assert (np.abs(starts[-1]) <= 0.5).all()
        for i in range(6):
            steps = batch.live[:, i].sum()
            x = batch.next_obs[:, i, 0]
            np.testing.assert_array_equal(batch.live[:, i], np.arange(8) < steps)
            assert batch.terminated[steps - 1, i] == (abs(x[steps - 1]) > 1)
            assert batch.truncated[steps - 1, i] == (steps == 6 and abs(x[steps - 1]) <= 1)
            assert (np.abs(x[: steps - 1]) <= 1).all()
            assert batch.terminated[steps - 1, i] or steps == 6
            np.testing.assert_array_equal(batch.obs[1:steps, i], batch.next_obs[: steps - 1, i])
        assert episode_metrics(batch)["episode/count"] == 6
        assert 6 < batch.live.sum() < 36  # some ended beyond the edge, not all at once
    assert len(np.unique(starts)) == 12


def test_only_episodes_of_training_are_cut_short():
    trainer = make(endless(7), num_envs=2, horizon=8, minibatches=1, training_episode_steps=3)
    state, batch = trainer.collect(trainer.init(KEY, ()), ())
    np.testing.assert_array_equal(batch.truncated[:, 0], [0, 0, 1, 0, 0, 1, 0, 0])
    assert not batch.terminated.any()
    policy, params = trainer.policy(state)
    assert run_episode(trainer.env, policy, params, KEY)["length"] == 7


def test_only_actions_of_training_are_held():
    env = TimeLimit(Walk(), 5)
    options = {"num_envs": 4, "horizon": 8, "minibatches": 4, "init_log_std": -3.0}
    trainer = make(env, action_repeat=2, **options)
    assert trainer.steps_per_iteration == 32
    state, batch = trainer.collect(trainer.init(KEY, ()), ())
    np.testing.assert_array_equal(batch.truncated, np.tile([[0], [0], [1], [0]], (1, 4)))
    np.testing.assert_array_equal(batch.episode["length"][:, 0], [2, 4, 5, 2])
    moved = (batch.next_obs - batch.obs)[..., 0]
    np.testing.assert_allclose(moved[:2], batch.action[:2, :, 0], rtol=1e-4)  # two steps of a / 2
    np.testing.assert_allclose(moved[2], batch.action[2, :, 0] / 2, rtol=1e-4)
    assert episode_metrics(batch)["episode/length"] == 5
    policy, params = trainer.policy(state)
    assert policy.period == 1
    assert run_episode(trainer.env, policy, params, KEY)["length"] == 5


def test_whole_episodes_of_held_actions_are_cut_short_and_randomised():
    """Episodes of 5 of the 7 steps: two samples of 2 and one of 1, then the simulation idles."""
    env = ObservationNoise(TimeLimit(Endless(), 7), 0.8, 0.8)
    options = {"num_envs": 2, "horizon": 8, "minibatches": 1, "randomisation_steps": 2 * 16}
    held = {"whole_episodes": True, "action_repeat": 2, "training_episode_steps": 5}
    trainer = make(env, **options, **held)
    state, batch = trainer.collect(trainer.init(KEY, ()), ())
    np.testing.assert_array_equal(batch.live[:, 0], [1, 1, 1, 0])
    np.testing.assert_array_equal(batch.reward[:, 0], [2, 2, 1, 0])
    assert batch.truncated[2, 0]
    state, _ = trainer.update(state, batch, ())
    state, _ = trainer.step(state, ())
    std = state.rollout.env.info["observation_noise"]["std"]
    np.testing.assert_allclose(std, np.full(2, 0.4), rtol=1e-6)


def test_what_is_held_is_worth_what_it_brings():
    """Two steps of 1 in a sample, for ever: 2 / (1 - 1/2) = 4."""
    trainer = make(endless(8), action_repeat=2, learning_rate=1e-2, normalise_observations=False)
    state, _ = train(trainer, 60)
    assert value(trainer, state, jnp.ones(1)) == pytest.approx(4, rel=0.02)


def test_randomisation_grows_from_nothing_to_all_of_it():
    env = ObservationNoise(TimeLimit(Walk(), 6), 0.8, 0.8)
    trainer = make(env, num_envs=6, whole_episodes=True, randomisation_steps=2 * 6 * 8)
    state = trainer.init(KEY, ())
    for expected in (0.0, 0.4, 0.8, 0.8):
        state, _ = trainer.step(state, ())
        std = state.rollout.env.info["observation_noise"]["std"]
        np.testing.assert_allclose(std, np.full(6, expected), rtol=1e-6)


def test_what_idle_steps_say_changes_nothing(whole):
    _, collect, update, state = whole
    state, batch = collect(state, ())
    idle = ~batch.live

    def spoil(x):
        return jnp.where(idle.reshape(8, 6, *[1] * (x.ndim - 2)), x * 3 - 7, x)

    names = ("obs", "next_obs", "action", "aux")
    spoilt = batch.replace(**{k: jax.tree.map(spoil, getattr(batch, k)) for k in names})
    found, metrics = update(state, spoilt, ())
    expected, sound = update(state, batch, ())
    assert found.observation_stats.count == batch.live.sum()
    seen = np.asarray(batch.obs)[np.asarray(batch.live)]
    np.testing.assert_allclose(found.observation_stats.mean, seen.mean(0), rtol=1e-5)
    strip = lambda s, m: (s.params, s.opt_state, s.observation_stats, s.value_stats, m)
    jax.tree.map(np.testing.assert_array_equal, strip(found, metrics), strip(expected, sound))


# --- what ends an iteration, and what learns at which rate ----------------------------------------


ONCE = dataclasses.replace(PLAIN, epochs=1, schedule="constant", learning_rate=3e-3)


@functools.partial(jax.jit, static_argnums=(0, 1))
def optimise(config, network, state):
    """What becomes of a state over nine samples that are always the same: the next, and metrics."""
    first, optimiser = make_state(network, config)
    batch, x, x_next, action = batch_of_two()
    weight = batch.live.astype(np.float32)
    samples, _ = ppo._targets(network, config, first, batch, x, x_next, action, weight)
    return ppo._optimise(network, optimiser, config, state, samples, KEY)


def test_epochs_end_once_the_divergence_is_beyond_its_bound():
    state, kl, states = make_state(TRUNKS, ONCE)[0], [], []
    for _ in range(4):
        state, metrics = optimise(ONCE, TRUNKS, state)
        kl.append(float(metrics["kl"]))
        states.append(state)
    assert kl[0] < kl[1] < kl[2] < kl[3]
    stopping = dataclasses.replace(ONCE, epochs=6, kl_stop=(kl[1] + kl[2]) / 2)
    got, metrics = optimise(stopping, TRUNKS, make_state(TRUNKS, ONCE)[0])
    assert metrics["epochs"] == 3
    assert metrics["kl"] == pytest.approx(kl[2], rel=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, got.params, states[2].params)


def test_the_critic_may_learn_at_a_rate_of_its_own():
    three = dataclasses.replace(ONCE, critic_learning_rate=3 * ONCE.learning_rate)
    state, _ = make_state(TRUNKS, ONCE)
    slow, fast = (optimise(c, TRUNKS, state)[0].params["params"] for c in (ONCE, three))
    old = state.params["params"]
    assert old.keys() == {"trunk", "critic", "mean", "value", "log_std"}
    for name in old:
        factor = 3 if name in ("critic", "value") else 1
        steps = jax.tree.map(lambda a, b: np.asarray(b - a), old[name], slow[name])
        for x, y, z in zip(*map(jax.tree.leaves, (old[name], steps, fast[name])), strict=True):
            np.testing.assert_allclose(z - x, factor * y, rtol=1e-3, atol=1e-6)
        assert max(np.abs(s).max() for s in jax.tree.leaves(steps)) > 1e-4


@pytest.mark.parametrize("learn", [True, False])
def test_the_deviation_stays_where_it_is_unless_it_is_learned(learn):
    config = dataclasses.replace(ONCE, entropy_coef=0.1, learn_std=learn, init_log_std=-0.7)
    network = dataclasses.replace(TRUNKS, learn_std=learn, init_log_std=-0.7)
    state, _ = make_state(network, config)
    old, new = (s.params["params"] for s in (state, optimise(config, network, state)[0]))
    np.testing.assert_allclose(old["log_std"], -0.7)
    assert np.array_equal(new["log_std"], old["log_std"]) != learn
    assert not np.array_equal(new["mean"]["Dense_0"]["bias"], old["mean"]["Dense_0"]["bias"])


def test_the_value_may_read_less_than_the_policy():
    network = ActorCritic(1, hidden=(8,), shared=False, mean_scale=1.0, value_inputs=2)
    x = jax.random.normal(KEY, (3, 4))
    params = network.init(KEY, x)
    mean, _, value = network.apply(params, x)
    other_mean, _, same = network.apply(params, x.at[:, 2:].add(1.0))
    np.testing.assert_array_equal(same, value)
    assert (np.abs(other_mean - mean) > 1e-3).all()
    assert params["params"]["critic"]["Dense_0"]["kernel"].shape == (2, 8)
    zero = dataclasses.replace(network, mean_scale=0.0)
    assert not np.any(zero.apply(zero.init(KEY, x), x)[0])


# --- the adaptive schedule ------------------------------------------------------------------------


def test_the_rate_adapts_once_an_epoch_by_factors_of_one_and_a_half(tasks):
    rates = np.append(np.float32(1e-2), tasks[2]["learning_rate"])
    factors = np.log(rates[1:] / rates[:-1]) / np.log(1.5)
    within = (rates[1:] < 0.99e-2) & (rates[:-1] < 0.99e-2)
    assert within.any()
    np.testing.assert_allclose(factors[within], np.round(factors[within]), atol=1e-3)
    assert np.abs(factors).max() < 4.01  # as many as there are epochs
    assert rates.max() <= np.float32(1e-2)


def test_the_rate_falls_with_the_divergence_and_keeps_within_its_bounds():
    adapt = lambda rate, kl: float(schedules.adapt(jnp.float32(rate), jnp.float32(kl), 0.02))
    assert adapt(1e-3, 0.05) == pytest.approx(1e-3 / 1.5)
    assert adapt(1e-3, 0.039) == adapt(1e-3, 0.011) == pytest.approx(1e-3)
    assert adapt(1e-3, 0.009) == pytest.approx(1.5e-3)
    assert adapt(1e-6, 1.0) == pytest.approx(1e-6)
    assert adapt(9e-3, 0.0) == pytest.approx(1e-2)


def test_the_target_of_the_divergence_falls_to_zero():
    options = dict(schedule="adaptive_cosine", decay_steps=20 * 8 * 32, kl_target=0.05)
    options |= dict(epochs=1, minibatches=4)
    _, metrics = train(make(NaNGuard(Tasks()), learning_rate=1e-2, **options), 70)
    rate, expected = 1e-2, []
    for i, kl in enumerate(metrics["kl"]):
        target = 0.05 * (1 + np.cos(np.pi * min(i / 20, 1.0))) / 2
        rate = float(schedules.adapt(jnp.float32(rate), kl, target))
        expected.append(rate)
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-5)
    assert expected[5] > 1e-3
    assert expected[-1] < 1e-5


# --- the trainer ----------------------------------------------------------------------------------


def test_nothing_is_compiled_twice(tasks):
    trainer, state, _ = tasks
    assert trainer.step._cache_size() == 1
    assert state.iteration == 120
    assert trainer.steps_per_iteration == 32 * 8


def test_seeds_side_by_side_equal_seeds_one_by_one(cosine):
    trainer = cosine
    keys = jax.random.split(KEY, 3)
    init, step = lambda key: trainer.init(key, ()), lambda state: trainer.step(state, ())
    seeds, vmapped = jax.vmap(init)(keys), jax.jit(jax.vmap(step))
    for _ in range(2):
        seeds, metrics = vmapped(seeds)
    for i, key in enumerate(keys):
        state, _ = step(init(key))
        state, alone = step(state)
        close = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, (seeds.params, metrics), (state.params, alone))
    assert len(np.unique(metrics["policy_loss"])) == 3


def test_episode_metrics_are_means_over_the_episodes_that_ended():
    sums = {"reward": jnp.array([[1.0, 2.0], [3.0, 5.0]]), "length": jnp.ones((2, 2))}
    no = jnp.zeros((2, 2), bool)
    batch = Transition(
        obs=(),
        action=(),
        reward=(),
        next_obs=(),
        terminated=no.at[0, 1].set(True).at[1, 1].set(True),
        truncated=no.at[1, 0].set(True),
        live=~no.at[1, 1].set(True),  # idles where its episode ended
        episode=sums,
        aux={},
    )
    metrics = episode_metrics(batch)
    assert (metrics["episode/count"], metrics["episode/reward"]) == (2, 2.5)
    none = episode_metrics(batch.replace(terminated=no, truncated=no))
    assert none["episode/count"] == 0
    assert np.isnan(none["episode/reward"])  # not zero


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be positive, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"minibatches": 3}, "must divide num_envs [*] horizon / action_repeat = 256, got 3"),
        ({"action_repeat": 0}, "action_repeat must be positive, got 0"),
        ({"action_repeat": 3}, "horizon must be a multiple of action_repeat = 3, got 8"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; valid: adaptive, adaptive_cosine,"),
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"activation": "sine"}, "unknown activation 'sine'; valid: elu"),
        ({"kl_stop": 0.0}, "kl_stop must be positive, got 0.0"),
        ({"kl_target": -1.0}, "kl_target must be positive, got -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"clip": -0.2}, "clip must be positive, got -0.2"),
        ({"reward_scale": math.nan}, "reward_scale must be finite, got nan"),
        ({"hidden": (64, 0)}, r"hidden must be widths of at least 1, got \(64, 0\)"),
        ({"decay_steps": 0}, "decay_steps must be positive, got 0"),
        ({"decay_steps": 9}, "schedule 'adaptive' has no end: decay_steps must be None"),
        (
            {"critic_learning_rate": 0.0, "shared_trunk": False},
            "critic_learning_rate must be positive, got 0.0",
        ),
        ({"training_episode_steps": 0}, "training_episode_steps must be positive, got 0"),
        ({"randomisation_steps": -1}, "randomisation_steps must not be negative, got -1"),
        ({"critic_learning_rate": 1e-3}, "needs a critic of its own: shared_trunk=False"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(Tasks(), **options)


@pytest.mark.parametrize("schedule", ["cosine", "adaptive_cosine"])
def test_a_schedule_without_an_end_is_refused(schedule):
    with pytest.raises(ValueError, match=f"'{schedule}' needs decay_steps"):
        make(Tasks(), schedule=schedule)
