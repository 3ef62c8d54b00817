"""Our environments under brax: the same steps, new episodes, and its PPO learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers.training import EvalWrapper
from brax.training.agents.ppo import networks as ppo_networks

import envs
from jaxrobo.bridge.brax import BraxEnv, _replicate, train, wrap
from jaxrobo.env import TimeLimit
from jaxrobo.evaluation import evaluate
from jaxrobo.policy import Policy, constant, uniform
from jaxrobo.rollout import rollout, start
from tests.learning.diagnostic_envs import Corridor, Counting, Endless, Walk, endless
from tests.tiny import Draw

KEY = jax.random.key(0)


def actions(steps, *shape):
    return jax.random.uniform(jax.random.key(1), (steps, *shape), minval=-1.0, maxval=1.0)


def test_one_simulation_steps_as_ours_does():
    env = envs.make("DofbotReacher", engine="native", threads=1, episode_steps=3)
    adapter = BraxEnv(env)
    assert (adapter.observation_size, adapter.action_size, adapter.backend) == (26, 5, "native")
    ours, theirs = env.reset(KEY), adapter.reset(KEY)
    assert set(theirs.metrics) == set(ours.metrics)
    theirs.metrics["reward"] = theirs.reward  # as brax's EvalWrapper does
    for action in actions(3, 5):
        ours, theirs = env.step(ours, action), adapter.step(theirs, action)
        np.testing.assert_array_equal(theirs.obs, ours.obs)
        np.testing.assert_array_equal(theirs.pipeline_state.data.qpos, ours.data.qpos)
        assert (theirs.reward, theirs.done) == (ours.reward, ours.done)
        assert set(theirs.metrics) == {*ours.metrics, "reward"}
        assert all(theirs.metrics[k] == v for k, v in ours.metrics.items())
    assert theirs.done == 1


def one_by_one(env, key, actions):
    """What `wrap` is to show of one simulation: a loop that resets where an episode ends."""
    key, reset_key = jax.random.split(key)
    state, length, total, moved = env.reset(reset_key), 0, 0.0, 0.0
    for action in actions:
        state, length = env.step(state, action), length + 1
        total, moved = total + state.reward, moved + state.metrics["moved"]
        truncated = not state.terminated and (state.truncated or length == 4)
        done = bool(state.terminated) or bool(truncated)
        seen = {"reward": state.reward, "done": done, "truncation": truncated, "steps": length}
        seen |= {"sum_reward": total, "moved": moved}
        if done:
            key, reset_key = jax.random.split(key)
            state, length, total, moved = env.reset(reset_key), 0, 0.0, 0.0
        yield {**seen, "obs": state.obs}


@pytest.mark.parametrize("time_limit", [3, 9])
def test_a_batch_is_each_simulation_alone_with_new_episodes(time_limit):
    env = TimeLimit(Walk(), time_limit)
    batch = wrap(BraxEnv(env), episode_length=4)
    keys, acts = jax.random.split(KEY, 5), 2 * actions(12, 5, 1)
    state, step = jax.jit(batch.reset)(keys), jax.jit(batch.step)
    with jax.disable_jit():
        expected = [list(one_by_one(env, k, acts[:, i])) for i, k in enumerate(keys)]
    dones = 0
    for t in range(12):
        state = step(state, acts[t])
        sums = state.info["episode_metrics"]
        seen = {"obs": state.obs, "reward": state.reward, "done": state.done}
        seen |= {k: state.info[k] for k in ("truncation", "steps")}
        seen |= {k: sums[k] for k in ("sum_reward", "moved")}
        for name, value in seen.items():
            np.testing.assert_allclose(value, [e[t][name] for e in expected], rtol=1e-6)
        np.testing.assert_array_equal(state.info["episode_done"], state.done)
        np.testing.assert_array_equal(sums["length"], state.info["steps"])
        dones += int(state.done.sum())
    kinds = {(e[t]["done"], bool(e[t]["truncation"])) for e in expected for t in range(12)}
    assert kinds == {(False, False), (True, False), (True, True)}


def test_peg_hole_is_paid_as_in_a_rollout_of_ours():
    """An expert's success ends its episode; the time ends that of one who acts at random."""
    options = dict(terminate_on_success=True, episode_steps=120)
    env = envs.make("PegHole", engine="native", threads=1, **options)
    keys = jax.random.split(KEY, 2)
    batch = wrap(BraxEnv(env), episode_length=env.time_limit)
    state, step = jax.jit(batch.reset)(keys), jax.jit(batch.step)
    runs = [
        own_rollout(env, policy, jax.random.split(key)[1])
        for policy, key in zip((env.expert(), uniform(10)), keys, strict=True)
    ]
    action, ours = jax.tree.map(lambda *x: np.stack(x, 1), *runs)
    seen = []
    for t in range(env.time_limit):
        state = step(state, np.clip(action[t], -1, 1))
        row = {"reward": state.reward, "done": state.done, "truncation": state.info["truncation"]}
        seen.append(row | {k: state.metrics[k] for k in ("success", "diverged")})
    seen = jax.tree.map(lambda *x: np.stack(x), *seen)
    live = ours.pop("live")
    for name, value in ours.items():
        np.testing.assert_allclose(seen[name][live], value[live], err_msg=name)
    length = live.sum(0)
    last = lambda name: [seen[name][n - 1, i] for i, n in enumerate(length)]
    assert length[0] < length[1] == env.time_limit
    assert (last("reward"), last("done"), last("truncation")) == ([1, 0], [1, 1], [0, 1])


def own_rollout(env, policy, key):
    """Actions, and what came of them, of one episode that starts from `key`."""

    @jax.jit
    def run(key):
        begin = start(env, policy, key)
        state = env.reset(key)
        begin = begin.replace(env=state, carry=policy.init(policy.observe(state), key))
        return rollout(env, policy, (), begin, env.time_limit, auto_reset=False)[1]

    t = run(key)
    done = t.terminated | t.truncated
    per_step = lambda x: np.diff(np.asarray(x), prepend=0)
    metrics = {k: per_step(t.episode[k]) for k in ("success", "diverged")}
    seen = {"reward": t.reward, "done": done, "truncation": t.truncated, "live": t.live}
    return t.action, seen | metrics


def test_resets_are_computed_only_when_an_episode_ends():
    env = Counting()
    batch = wrap(BraxEnv(TimeLimit(env, 3)), episode_length=100)
    state = jax.jit(batch.reset)(jax.random.split(KEY, 4))
    rest = jnp.zeros((4, 1))
    final, _ = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (batch.step(s, rest), None), s, length=7)
    )(state)
    jax.block_until_ready(final)
    assert env.resets == [4, 4, 4]  # at the start, and after 3 and 6 steps


def test_an_end_doesnt_reach_into_the_next_episode():
    """Of a task that never says that it isn't cut short."""
    batch = wrap(BraxEnv(TimeLimit(Corridor(10), 3)), episode_length=100)
    step, state, seen = jax.jit(batch.step), batch.reset(KEY[None]), []
    for _ in range(6):
        state = step(state, jnp.zeros((1, 1)))
        seen.append((state.info["steps"][0], state.done[0], state.info["truncation"][0]))
    assert seen == [(1, 0, 0), (2, 0, 0), (3, 1, 1)] * 2


def test_an_action_is_repeated_until_the_episode_ends():
    batch = wrap(BraxEnv(Corridor(3)), episode_length=100, action_repeat=2)
    state = batch.reset(KEY[None])
    state = batch.step(state, jnp.zeros((1, 1)))
    assert (state.obs[0, 0], state.reward, state.done, state.info["steps"]) == (2, 0, 0, 2)
    state = batch.step(state, jnp.zeros((1, 1)))
    assert (state.obs[0, 0], state.reward, state.done) == (0, 1, 1)
    assert state.info["truncation"] == 0
    assert state.info["episode_metrics"]["length"] == 3
    rewards = wrap(BraxEnv(Endless()), episode_length=6, action_repeat=3)
    state = rewards.step(rewards.reset(KEY[None]), jnp.zeros((1, 1)))
    assert (state.reward, state.info["steps"]) == (3, 3)


def test_brax_evaluates_one_episode_of_each():
    batch = EvalWrapper(wrap(BraxEnv(TimeLimit(Walk(), 5)), episode_length=5))
    state, step = batch.reset(jax.random.split(KEY, 3)), jax.jit(batch.step)
    for _ in range(8):  # into the next episode, which must not count
        state = step(state, jnp.full((3, 1), 0.01))
    result = state.info["eval_metrics"]
    np.testing.assert_array_equal(result.episode_steps, [5, 5, 5])
    np.testing.assert_allclose(result.episode_metrics["moved"], [0.05] * 3, rtol=1e-6)
    np.testing.assert_array_equal(result.active_episodes, [0, 0, 0])


def networks(size):
    """A factory of brax's networks, of one hidden layer for the policy and one for the value."""
    sizes = {"policy_hidden_layer_sizes": (size,), "value_hidden_layer_sizes": (size,)}
    return functools.partial(ppo_networks.make_ppo_networks, **sizes)


def test_brax_ppo_learns():
    """`Draw` pays u + action: the best action is 1."""
    env = TimeLimit(Draw(), 8)
    make_policy, params, _ = train(
        env,
        16_384,
        num_envs=64,
        unroll_length=8,
        batch_size=16,
        num_minibatches=4,
        num_updates_per_batch=4,
        learning_rate=0.01,
        network_factory=networks(8),
        run_evals=False,
    )
    policy = make_policy(params, deterministic=True)
    action, _ = policy(jnp.linspace(0.0, 1.0, 11)[:, None], KEY)
    assert jnp.all(action > 0.8)
    assert not hasattr(jax, "device_put_replicated")


def test_brax_ppo_learns_to_reach():
    """Some seconds of training bring the Dofbot's hand nearer to its goals, and to some of them."""
    env = envs.make("DofbotReacher", engine="native", episode_steps=150)
    make_policy, params, _ = train(
        env,
        131_072,
        num_envs=128,
        unroll_length=16,
        batch_size=32,
        num_minibatches=4,
        num_updates_per_batch=8,
        discounting=0.95,
        learning_rate=1e-3,
        reward_scaling=0.1,
        max_grad_norm=1.0,
        normalize_observations=True,
        network_factory=networks(64),
        run_evals=False,
    )

    def act(params, carry, observation, key):
        return make_policy(params, deterministic=True)(observation, key)[0], carry, {}

    trained = evaluate(env, Policy(act), params, episodes=64)
    resting = evaluate(env, constant(jnp.zeros(5)), (), episodes=64)
    assert trained["goals"].low > 0.2 > 2 * resting["goals"].high
    # Minus the distance, and what goals pay.
    assert trained["reward"].low > 0.75 * resting["reward"].high


def test_jax_is_left_as_it_was_after_an_error():
    with pytest.raises(ZeroDivisionError):
        train(endless(3), 1, wrap_env_fn=lambda *args, **kwargs: 1 / 0)
    assert not hasattr(jax, "device_put_replicated")


def test_copies_for_devices():
    copies = _replicate({"a": jnp.arange(3.0), "b": 7}, jax.local_devices()[:1])
    np.testing.assert_array_equal(copies["a"], [[0, 1, 2]])
    np.testing.assert_array_equal(copies["b"], [7])


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="give episode_length, or a TimeLimit"):
        train(Walk(), 1)
    with pytest.raises(ValueError, match=r"jaxrobo\.randomise"):
        wrap(BraxEnv(Walk()), 10, randomization_fn=lambda model, rng: model)
