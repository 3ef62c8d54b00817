import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo import policy
from jaxrobo.data import NoSuccess, collect, collection, stream
from jaxrobo.data.films import to_film
from jaxrobo.env import NaNGuard, TimeLimit, Wrapper
from jaxrobo.policy import watched
from jaxrobo.rendering import record
from jaxrobo.rollout import episode_key, rollout, run_episode, start
from tests.data.samples import assert_same
from tests.tiny import Draw

LOW = policy.constant(jnp.array([-0.25]))
"""Succeeds where u >= 3/4."""


def draws(split, seed, n):
    """The u of the first episodes, which tells all about them."""
    key = lambda i: jax.random.split(episode_key(split, seed, i), 3)[0]
    return np.array([jax.random.uniform(key(i)) for i in range(n)])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_first_successes_of_the_split_are_kept_whatever_the_batch(batch):
    u = draws("train", 2, 30)
    wins = np.flatnonzero(u >= 0.75)[:4]
    got = collect(TimeLimit(Draw(), 8), LOW, None, 4, seed=2, batch=batch)
    np.testing.assert_array_equal(got.episode, wins)
    np.testing.assert_array_equal(got.lengths, 1 + np.floor(4 * u[wins]))
    np.testing.assert_array_equal(got.obs["obs"][:, 0], np.repeat(u[wins], got.lengths))
    np.testing.assert_array_equal(got.reward, np.repeat(u[wins] - 0.25, got.lengths))
    np.testing.assert_array_equal(got.action, np.full((got.steps, 1), -0.25))
    np.testing.assert_array_equal(got.final_obs["obs"][:, 0], u[wins])
    np.testing.assert_array_equal(np.flatnonzero(got.terminated), got.episode_ends - 1)
    assert got.success.all()
    assert not got.truncated.any()
    assert (got.metadata.env, got.metadata.split, got.metadata.seed) == ("Draw", "train", 2)


class GoesOn(Wrapper):
    """Never ends of itself."""

    def step(self, state, action):
        state = self.env.step(state, action)
        no = jnp.zeros((), bool)
        return state.replace(done=jnp.zeros(()), terminated=no, truncated=no)


def test_an_episode_ends_with_its_success_even_where_the_environment_goes_on():
    got = collect(TimeLimit(GoesOn(Draw()), 8), LOW, None, 4, seed=2)
    u = draws("train", 2, 30)
    np.testing.assert_array_equal(got.lengths, 1 + np.floor(4 * u[u >= 0.75][:4]))
    assert got.terminated[got.episode_ends - 1].all()
    assert not got.truncated.any()


def test_failures_may_be_kept():
    got = collect(TimeLimit(Draw(), 8), LOW, None, 10, split="test", batch=4, failures=True)
    np.testing.assert_array_equal(got.episode, np.arange(10))
    np.testing.assert_array_equal(got.success, draws("test", 0, 10) >= 0.75)


def test_a_time_limit_truncates():
    got = collect(TimeLimit(Draw(), 2), LOW, None, 8, failures=True)
    cut = draws("train", 0, 8) >= 0.5
    np.testing.assert_array_equal(got.truncated[got.episode_ends - 1], cut)
    np.testing.assert_array_equal(got.terminated[got.episode_ends - 1], ~cut)


def test_a_stream_goes_on_where_another_ended():
    env = TimeLimit(Draw(), 8)
    whole = collect(env, LOW, None, 6)
    first = next(stream(env, LOW, None, 2, batch=2))
    rest = collection.concatenate(
        [first, *stream(env, LOW, None, 6 - first.episodes, first=int(first.episode[-1]) + 1)]
    )
    assert_same(rest, whole)


def test_long_episodes_and_plans_span_segments():
    env = envs.make("DofbotReacher", "native", episode_steps=70)
    plan = policy.chunked(lambda params, obs, key: jnp.tile(obs[:5], (3, 1)) / 5, 3, 5)
    got = collect(env, plan, None, 2)
    keys = jnp.stack([episode_key("train", 0, i) for i in range(2)])
    state = jax.vmap(lambda k: start(env, plan, k))(keys)
    run = jax.jit(jax.vmap(lambda s: rollout(env, plan, None, s, 72, auto_reset=False)))
    whole = run(state)[1]
    np.testing.assert_array_equal(got.lengths, [70, 70])
    for name, column in (("obs", got.obs["obs"]), ("action", got.action), ("reward", got.reward)):
        expected = np.asarray(getattr(whole, name))[:, :70].reshape(column.shape)
        np.testing.assert_array_equal(column, expected)


def test_the_reacher_expert_is_the_same_whatever_the_batch_and_as_filmed():
    env = envs.make("DofbotReacher", "native", episode_steps=6)
    expert = env.expert()
    got = collect(env, expert, None, 3, batch=3, poses=True)
    assert_same(collect(env, expert, None, 3, batch=2, poses=True), got)
    keys = jnp.stack([episode_key("train", 0, i) for i in range(3)])
    filmed = record(env, expert, None, keys)
    film = to_film(got)
    for name in ("qpos", "mocap_pos", "mocap_quat", "live"):
        np.testing.assert_array_equal(getattr(film, name), getattr(filmed, name)[:, :6])
    sums = jax.jit(jax.vmap(lambda k: run_episode(env, expert, None, k)))(keys)
    np.testing.assert_allclose(got.reward.reshape(3, 6).sum(1), sums["reward"], rtol=1e-5)


def test_a_film_waits_for_the_longest():
    got = collect(TimeLimit(Draw(), 8), LOW, None, 3, failures=True)
    rows = np.arange(got.steps, dtype=np.float32)[:, None]
    got = got.replace(poses=dict.fromkeys(("qpos", "mocap_pos", "mocap_quat"), rows))
    film = to_film(got)
    for e, (end, length) in enumerate(zip(got.episode_ends, got.lengths, strict=True)):
        expected = [*range(end - length, end), *[end - 1] * (max(got.lengths) - length)]
        np.testing.assert_array_equal(film.qpos[e, :, 0], expected)
        assert film.live[e].sum() == length
    with pytest.raises(ValueError, match="no poses"):
        to_film(got.replace(poses={}))


class Explodes(Wrapper):
    """Diverges where u < 1/2, at the first step."""

    def step(self, state, action):
        state = self.env.step(state, action)
        return state.replace(obs=jnp.where(state.data["u"] < 0.5, jnp.nan, state.obs))


def test_an_episode_that_diverged_is_never_kept():
    got = collect(NaNGuard(TimeLimit(Explodes(Draw()), 8)), LOW, None, 6, failures=True)
    np.testing.assert_array_equal(got.episode, np.flatnonzero(draws("train", 0, 40) >= 0.5)[:6])
    assert np.isfinite(got.obs["obs"]).all()


def test_actions_are_kept_as_the_environment_takes_them():
    got = collect(TimeLimit(Draw(), 8), policy.constant(jnp.array([7.0])), None, 2)
    np.testing.assert_array_equal(got.action, 1)


def test_it_gives_up_on_a_policy_that_fails_all_the_time(monkeypatch):
    monkeypatch.setattr(collection, "PATIENCE", 20)
    never = policy.constant(jnp.array([-1.0]))
    with pytest.raises(NoSuccess, match="24 episodes in a row failed, up to number 23"):
        collect(TimeLimit(Draw(), 8), never, None, 10, batch=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"poses": True}, "Draw has no poses"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        collect(TimeLimit(Draw(), 8), LOW, None, **{"episodes": 2, **options})


def test_an_endless_environment_is_refused():
    with pytest.raises(ValueError, match="wrap the environment in TimeLimit"):
        collect(Draw(), LOW, None, 2)


def test_watching_changes_nothing():
    env = TimeLimit(Draw(), 4)
    noisy = policy.uniform(1)
    run = lambda p: rollout(env, p, None, start(env, p, jax.random.key(0)), 4)[1]
    plain, seen = run(noisy), run(watched(noisy, lambda s: s.obs))
    np.testing.assert_array_equal(seen.action, plain.action)
    np.testing.assert_array_equal(seen.aux["seen"], plain.obs)
