"""The loop on the host against what a simulator in numpy wrote down."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import host, simulations, training
from jaxrobo.data import Normaliser
from jaxrobo.env import Metric, Outcome, Spec
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import ppo, residual_ppo
from jaxrobo.learning.trainer import over_seeds
from jaxrobo.policy import chunked, gaussian, receding, scripted
from tests.outside import Walkers, assert_live_rows_are

pytestmark = pytest.mark.usefixtures("cache")
NOISY = gaussian(lambda params, obs: (params * jnp.ones(1), jnp.zeros(1)))
RIGHT = gaussian(lambda params, obs: (jnp.ones(1), jnp.zeros(1)), deterministic=True)
SMALL = ppo.Config(num_envs=4, horizon=16, minibatches=2, hidden=(16,))


def play(env, policy, steps, params=0.3, calls=2, **options):
    """Transitions of some calls, one after another."""
    state = host.start(env, policy, jax.random.key(0))
    parts = []
    for _ in range(calls):
        state, part = host.rollout(env, policy, params, state, steps, **options)
        parts.append(jax.device_get(part))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("tells_final", [True, False])
def test_live_transitions_are_what_happened(autoreset, tells_final):
    env = Walkers(autoreset=autoreset, tells_final=tells_final or autoreset == "next_step")
    batch = play(env, NOISY, 20)
    assert_live_rows_are(env.history, batch, env.tells_final)
    assert (~batch.live).any() == (autoreset == "next_step")


def test_sums_of_an_episode_are_whole_where_it_ends():
    env = Walkers()
    batch = play(env, NOISY, 30)
    done = batch.terminated | batch.truncated
    for i, history in enumerate(env.history):
        total, length, sums = 0.0, 0, []
        for _, _, reward, last, terminated, truncated in history:
            total, length = total + reward, length + 1
            if terminated or truncated:
                sums.append((total, length, last[0] > 1))
                total, length = 0.0, 0
        names = "reward", "length", "success"
        mine = np.stack([batch.episode[k][done[:, i], i] for k in names], axis=-1)
        np.testing.assert_allclose(mine, sums, atol=1e-5)


def test_without_auto_reset_every_call_starts_anew_and_simulations_idle():
    env = Walkers()
    batch = play(env, NOISY, 8, auto_reset=False)
    assert len(set(env.starts)) == 2
    for begin in (0, 8):
        for i in range(3):
            done = (batch.terminated | batch.truncated)[begin : begin + 8, i]
            length = np.argmax(done) + 1
            assert done[length - 1 :].all()
            expected = [True] * length + [False] * (8 - length)
            assert batch.live[begin : begin + 8, i].tolist() == expected


def test_a_plan_lasts_its_period_and_every_episode_begins_with_a_new_one():
    """A plan is the place where it's made, twice; the action so tells where that was."""
    policy = chunked(lambda params, obs, key: jnp.full((2, 1), obs[0]), 2, 1)
    batch = play(Walkers(), policy, 12)
    place, step = np.moveaxis(batch.obs, -1, 0)
    planned = step % 2 == 0
    np.testing.assert_allclose(batch.action[..., 0][planned], place[planned])
    before = np.roll(place, 1, axis=0)
    np.testing.assert_allclose(batch.action[1:, :, 0][~planned[1:]], before[1:][~planned[1:]])
    assert (step == 0).sum() > 3


def test_histories_dont_reach_into_the_episode_before():
    policy = receding(lambda params, seen, previous, key: seen[:1, :1], 1, 1, 1, obs_horizon=2)
    batch = play(Walkers(), policy, 12)
    place, step = np.moveaxis(batch.obs, -1, 0)
    first = step == 0
    np.testing.assert_allclose(batch.action[..., 0][first], place[first])
    before = np.roll(place, 1, axis=0)
    np.testing.assert_allclose(batch.action[..., 0][~first], before[~first])


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("where", ["obs", "reward", "final_obs", "metrics"])
def test_an_episode_whose_numbers_arent_finite_is_cut_short(where, autoreset):
    """In its third step; what the simulator does until it starts the next is ignored."""

    class Broken(Walkers):
        steps = 0

        def advance(self, action):
            outcome, self.steps = super().advance(action), self.steps + 1
            if self.steps != (6 if where == "final_obs" else 3):
                return outcome
            bad = jax.tree.map(lambda x: x.at[1].set(jnp.nan), getattr(outcome, where))
            return outcome._replace(**{where: bad})

    env = Broken(autoreset=autoreset)
    batch = play(env, RIGHT._replace(act=still), 20, calls=1)  # episodes of six steps
    assert all(np.isfinite(x).all() for x in (batch.obs, batch.next_obs, batch.reward))
    sound = autoreset == "next_step" and where == "final_obs"  # which nobody reads then
    third = 5 if where == "final_obs" else 2
    assert batch.truncated[third].tolist() == [third == 5, True, third == 5]
    assert batch.live[: third + 1].all()
    assert batch.episode["diverged"][third].tolist() == [0, not sound, 0]
    if where != "final_obs":
        assert not batch.live[third + 1 : 6, 1].any()
    wait = autoreset == "next_step"
    np.testing.assert_allclose(batch.obs[6 + wait, :, 1], 0)  # all start the next together
    assert batch.live[6 + wait : 12 + wait].all()
    assert not batch.episode["diverged"][6 + wait :].any()


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_an_episode_doesnt_begin_with_another_ones_place(autoreset):
    """If a number of its first observation isn't finite: that one is zero, the others stay."""

    class Broken(Walkers):
        def advance(self, action):
            outcome = super().advance(action)
            first = outcome.obs[:, 1] == 0
            return outcome._replace(obs=outcome.obs.at[:, 0].set(jnp.where(first, jnp.nan, 0.25)))

    batch = play(Broken(autoreset=autoreset), RIGHT._replace(act=still), 20, calls=1)
    begins = batch.live & (batch.obs[..., 1] == 0)
    assert begins[1:].sum() > 3
    np.testing.assert_array_equal(batch.obs[1:, :, 0][begins[1:]], 0)
    ends = batch.live & (batch.terminated | batch.truncated)
    np.testing.assert_array_equal(batch.obs[..., 1][ends], 5)


def test_a_number_that_isnt_finite_doesnt_spoil_the_training():
    class Broken(Walkers):
        def advance(self, action):
            outcome = super().advance(action)
            return outcome._replace(final_obs=outcome.final_obs.at[1].set(jnp.nan))

        def start(self, seed):
            return super().start(seed).at[2].set(jnp.inf)

    trainer = ppo.make(Broken(4), SMALL)
    state, metrics = trainer.step(trainer.init(jax.random.key(0), ()), ())
    learned = state.params, state.observation_stats
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned))
    assert metrics["episode/diverged"] > 0


def test_policies_that_read_the_physics_are_refused():
    expert = scripted(lambda carry, state, key: (state.data.qpos[:1], carry))
    env = Walkers()
    with pytest.raises(TypeError, match=r"physics state \(qpos\), which Walkers keeps to itself"):
        play(env, expert, 1)
    with pytest.raises(TypeError, match="Walkers has no pure step"):
        env.step(None, None)
    with pytest.raises(TypeError, match="Walkers has no pure reset"):
        env.reset(jax.random.key(0))


def test_evaluation_runs_whole_episodes_from_seeds_of_their_own():
    env = Walkers(num_envs=4)
    estimates = evaluate(env, RIGHT, 0.0, episodes=10)
    again = evaluate(Walkers(num_envs=4), RIGHT, 0.0, episodes=10)
    assert estimates == again
    assert len(set(env.starts)) == 3  # four at a time
    assert estimates["success"].mean == 1.0  # always to the right
    whole = [row for history in env.history for row in history]
    assert 2 < estimates["length"].mean < 6
    assert len(whole) >= 10 * estimates["length"].mean
    assert evaluate(env, RIGHT, 0.0, "test", episodes=10) != estimates


def test_episodes_that_dont_end_are_an_error():
    env = Walkers()
    env.time_limit = 2
    with pytest.raises(RuntimeError, match=r"3 of 3 episodes of Walkers didn't end within .* 2 st"):
        evaluate(env, NOISY._replace(act=still), 0.0, episodes=3)
    env.time_limit = None
    with pytest.raises(ValueError, match="an episode needs an end: give Walkers a time_limit"):
        evaluate(env, RIGHT, 0.0)


def still(params, carry, observation, key):
    return jnp.zeros(1), carry, {}


@pytest.mark.parametrize(("autoreset", "whole"), [("same_step", False), ("next_step", True)])
def test_ppo_learns_to_walk_to_the_right(autoreset, whole, tmp_path):
    env = Walkers(num_envs=8, autoreset=autoreset)
    config = ppo.Config(num_envs=8, horizon=16, hidden=(16,), whole_episodes=whole)
    trainer = ppo.make(env, config)
    budget = dict(steps=2560, evaluate_every=1280, evaluation_episodes=8, test_episodes=64)
    result = training.run(trainer, tmp_path, **budget)
    before = evaluate(env, *trainer.policy(trainer.init(jax.random.key(0), ())), episodes=64)
    assert result.evaluation[0]["reward"].low > before["reward"].high


class Counters(Walkers):
    """Many simulations that show small numbers of some type, and never end."""

    action_size, metric_names, metric = 1, (), Metric("reward", kind="count")

    def __init__(self, num_envs, dtype):
        self.num_envs, self.observation_spec = num_envs, Spec((1,), dtype)
        self.obs = jnp.arange(num_envs).reshape(-1, 1).astype(jnp.uint8).astype(dtype)

    def start(self, seed):
        return self.obs

    def advance(self, action):
        nothing = jnp.zeros(self.num_envs)
        return Outcome(self.obs, nothing, nothing > 0, nothing > 0, {}, self.obs)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float16])
def test_ppo_sums_small_types_without_loss(dtype):
    """A hundred thousand rows: more than uint8 counts to, or float16 (65,504)."""
    env = Counters(100_000, dtype)
    config = ppo.Config(num_envs=env.num_envs, horizon=1, minibatches=1, epochs=1, hidden=(1,))
    trainer = ppo.make(env, config)
    state, metrics = trainer.step(trainer.init(jax.random.key(0), ()), ())
    stats, seen = state.observation_stats, np.asarray(env.obs, np.float64)
    assert stats.count == len(seen)
    np.testing.assert_allclose(stats.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats.var, seen.var(0), rtol=1e-4)
    assert abs(metrics["policy_loss"]) < 1e-3  # advantages have a mean of zero


def test_a_residual_learns_on_top_of_a_base_that_acts_in_chunks():
    env = Walkers(4)
    still = chunked(lambda params, obs, key: jnp.zeros((2, 1)), 2, 1)
    units = {"obs": jnp.zeros(2), "action": jnp.zeros(1)}
    base = residual_ppo.Base(still, (), Normaliser(units, jax.tree.map(jnp.ones_like, units)))
    config = residual_ppo.Config(num_envs=4, horizon=16, minibatches=2, hidden=(16,), scale=1.0)
    trainer = residual_ppo.make(env, base, config)
    state = trainer.init(jax.random.key(0), trainer.inputs)
    assert evaluate(env, *trainer.policy(state), episodes=4)["length"].mean == 6  # as the base
    before = evaluate(env, *trainer.policy(state), episodes=64)["reward"]
    for _ in range(20):
        state, metrics = trainer.step(state, trainer.inputs)
    assert np.isfinite(metrics["policy_loss"])
    after = evaluate(env, *trainer.policy(state), episodes=64)["reward"]
    assert after.low > before.high


def test_a_run_goes_on_with_a_fresh_simulator(tmp_path):
    budget = dict(evaluate_every=64, evaluation_episodes=4, test_episodes=4)
    first = training.run(ppo.make(Walkers(4), SMALL), tmp_path, steps=64, **budget)
    learned, seen = jax.device_get((first.state.params, first.state.observation_stats))
    env, taken = Walkers(4), []
    trainer = ppo.make(env, SMALL)

    def collect(state, inputs):
        taken.append(jax.device_get((state.params, state.observation_stats)))
        return trainer.collect(state, inputs)

    again = trainer._replace(collect=collect)
    result = training.run(again, tmp_path, steps=192, resume=True, **budget)
    assert (result.steps, result.interrupted, len(taken)) == (192, False, 2)
    jax.tree.map(np.testing.assert_array_equal, taken[0], (learned, seen))
    policy, params = training.restore_policy(tmp_path, trainer)
    assert set(evaluate(env, policy, params, episodes=4)) >= {"success", "reward", "length"}


def evaluated(env, state):
    evaluate(env, RIGHT, 0.0, episodes=3)
    return state


def interrupted(env, state):
    env.advance = stop
    with pytest.raises(KeyboardInterrupt):
        host.rollout(env, NOISY, 0.3, state, 4)
    del env.advance
    return state


def stop(action):
    raise KeyboardInterrupt


def gone_on(env, state):
    host.rollout(env, NOISY, 0.3, jax.tree.map(jnp.copy, state), 4)
    return state


@pytest.mark.parametrize("use", [evaluated, interrupted, gone_on])
def test_simulations_that_anything_else_has_moved_start_anew(use):
    env = Walkers()
    state = host.start(env, NOISY, jax.random.key(0))
    state, _ = host.rollout(env, NOISY, 0.3, state, 4)
    state = use(env, state)
    for history in env.history:
        history.clear()
    state, batch = host.rollout(env, NOISY, 0.3, state, 4)
    assert_starts(env, batch)
    begun = len(env.starts)
    host.rollout(env, NOISY, 0.3, state, 4)
    assert len(env.starts) == begun  # goes on


def assert_starts(env, batch):
    for i, history in enumerate(env.history):
        np.testing.assert_allclose(batch.obs[:, i], [row[0] for row in history])
        assert batch.obs[0, i, 1] == 0  # a new episode


def test_each_state_has_simulations_of_its_own():
    env = Walkers()
    first = host.start(env, NOISY, jax.random.key(0))
    host.rollout(env, NOISY, 0.3, first, 4)
    second = host.start(env, NOISY, jax.random.key(1))
    for history in env.history:
        history.clear()
    assert_starts(env, host.rollout(env, NOISY, 0.3, second, 4)[1])


def test_tickets_are_drawn():
    """A state from a checkpoint has that of another process, where as many rollouts were made."""
    env, tickets = Walkers(), []
    state = host.start(env, NOISY, jax.random.key(0))
    for _ in range(3):
        state, _ = host.rollout(env, NOISY, 0.3, state, 4)
        assert (state.env.info["ticket"] == env.ticket).all()
        tickets.append(env.ticket)
    assert np.ptp(tickets) > 1000


def test_simulations_arent_kept():
    env = Walkers()
    host.rollout(env, NOISY, 0.3, host.start(env, NOISY, jax.random.key(0)), 2)
    alive = weakref.ref(env)
    del env
    gc.collect()
    assert alive() is None


def test_what_cannot_be_run_outside_jax_is_refused(tmp_path):
    trainer = ppo.make(Walkers(4), SMALL)
    with pytest.raises(ValueError, match="Walkers trains one seed at a time"):
        over_seeds(trainer)
    with pytest.raises(training.RunError, match="seeds must be 1 with Walkers"):
        training.run(trainer, tmp_path, steps=64, evaluate_every=64, seeds=2)
    endless = Walkers(4)
    endless.time_limit = None
    with pytest.raises(training.RunError, match="an episode needs an end: Walkers has no time"):
        training.run(ppo.make(endless, SMALL), tmp_path, steps=64, evaluate_every=64)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="num_envs is 4, but Walkers has 3 simulations"):
        simulations.start(Walkers(3), NOISY, jax.random.key(0), 4)
    with pytest.raises(ValueError, match="num_envs is 4, but Walkers has 3 simulations"):
        ppo.make(Walkers(3), SMALL)
    with pytest.raises(ValueError, match="Walkers ends its episodes itself"):
        ppo.make(Walkers(4), dataclasses.replace(SMALL, training_episode_steps=5))
    with pytest.raises(ValueError, match="Walkers steps itself: action_repeat must be 1"):
        ppo.make(Walkers(4), dataclasses.replace(SMALL, action_repeat=2))


def test_nothing_is_compiled_twice():
    env = Walkers()
    state = host.start(env, NOISY, jax.random.key(0))
    state, _ = host.rollout(env, NOISY, 0.3, state, 8)
    state, _ = host.rollout(env, NOISY, 0.3, state, 8)
    programs = host._programs(env, NOISY, True)
    used = programs.begin, programs.act, programs.go_on, programs.absorb, programs.rows
    assert [program._cache_size() for program in used] == [1] * 5
