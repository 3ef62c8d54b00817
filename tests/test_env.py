"""The environment protocol and its wrappers, on environments whose trajectories are known."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.env import (
    ActionRepeat,
    AutoReset,
    Env,
    Metric,
    NaNGuard,
    PhysicsEnv,
    Spec,
    State,
    TimeLimit,
    Vectorised,
    batch_any,
    reset_done,
    vectorise,
)
from tests.learning.diagnostic_envs import (
    Corridor,
    Counting,
    Endless,
    Tasks,
    Walk,
    endless,
    first_state,
)
from tests.tiny import Draw

KEY = jax.random.key(0)
STAY = jnp.zeros(1)
RIGHT = jnp.ones(1)


class Fragile(Walk):
    """A walk that breaks where `|x| > 0.75`, in the way that `info["fault"]` says; 0 is sound."""

    faults = ("none", "obs", "reward", "data and metrics")

    def step(self, state, action):
        fault = state.info["fault"]
        state = super().step(state, action)
        broken = jnp.abs(state.data.x) > 0.75

        def spoil(tree, kind):
            spoilt = broken & (fault == self.faults.index(kind))
            return jax.tree.map(lambda x: jnp.where(spoilt, jnp.nan, x), tree)

        return state.replace(
            obs=spoil(state.obs, "obs"),
            reward=spoil(spoil(state.reward, "reward"), "data and metrics"),
            data=spoil(state.data, "data and metrics"),
            metrics=spoil(state.metrics, "data and metrics"),
        )


class Pendulum(PhysicsEnv):
    """A pendulum under torque; the observation is its angle."""

    action_size = 1
    observation_spec = Spec((1,))

    def __init__(self):
        xml = """<mujoco><worldbody><body><joint name="j" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05"/></body></worldbody>
        <actuator><motor joint="j"/></actuator></mujoco>"""
        super().__init__(mujoco.MjModel.from_xml_string(xml), substeps=5, engine="native")

    def reset(self, key, model=None):
        data = self.physics.init(qpos=jax.random.uniform(key, (1,)), model=model)
        return first_state(data, data.qpos)

    def step(self, state, action):
        data, _ = self.physics.step(state.data, {"ctrl": action}, self.substeps)
        no = jnp.zeros((), bool)
        return state.replace(
            data=data, obs=data.qpos, done=jnp.zeros(()), terminated=no, truncated=no
        )


@functools.partial(jax.jit, static_argnums=0)
def run(env, state, actions):
    """States after each action, stacked."""

    def step(state, action):
        state = env.step(state, action)
        return state, state

    return jax.lax.scan(step, state, actions)[1]


def assert_trees_equal(a, b):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)), a, b)


# --- time limit -----------------------------------------------------------------------------------


def test_time_limit_truncates_exactly_at_its_step():
    env = TimeLimit(Endless(), 5)
    assert env.time_limit == 5
    states = run(env, env.reset(KEY), jnp.zeros((5, 1)))
    np.testing.assert_array_equal(states.truncated, [False] * 4 + [True])
    np.testing.assert_array_equal(states.done, [0, 0, 0, 0, 1])
    assert not states.terminated.any()
    np.testing.assert_array_equal(states.info["steps"], [1, 2, 3, 4, 5])


def test_a_terminal_state_at_the_time_limit_is_not_truncated():
    env = TimeLimit(Corridor(1), 1)
    state = env.step(env.reset(KEY), STAY)
    assert (bool(state.terminated), bool(state.truncated), float(state.done)) == (True, False, 1.0)


@pytest.mark.parametrize("steps", [0, 2.5])
def test_time_limit_must_be_positive_and_whole(steps):
    with pytest.raises(ValueError, match=f"at least 1 step and whole, got {steps}"):
        TimeLimit(Walk(), steps)


# --- action repeat --------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_an_action_is_held_and_what_it_brings_adds_up(times):
    env, each = ActionRepeat(Walk(), times), Walk()
    state, single = env.reset(KEY), each.reset(KEY)
    assert state.metrics == {"moved": 0, "length": 0}
    for action in (jnp.full(1, 0.1), jnp.full(1, -0.2)):
        reward = 0.0
        for _ in range(times):
            single = each.step(single, action)
            reward += single.reward
        state = jax.jit(env.step)(state, action)
        np.testing.assert_allclose(state.obs, single.obs, rtol=1e-6)
        np.testing.assert_allclose(state.reward, reward, rtol=1e-6)
        np.testing.assert_allclose(state.metrics["moved"], times * abs(action[0]), rtol=1e-6)
        assert state.metrics["length"] == times


def test_an_action_ends_with_the_episode():
    env = ActionRepeat(Corridor(3), 2)
    state = env.step(env.step(env.reset(KEY), STAY), STAY)
    assert (state.obs[0], state.reward, state.done, state.metrics["length"]) == (3, 1, 1, 1)
    cut = ActionRepeat(endless(3), 2)
    state = cut.step(cut.step(cut.reset(KEY), STAY), STAY)
    assert (bool(state.truncated), state.reward, state.info["steps"]) == (True, 1, 3)
    assert cut.time_limit == 3


def test_limits_and_repeats_count_control_steps_in_any_order():
    """The walk carries all metrics along, also those of wrappers."""

    def steps(env):
        state, step = env.reset(KEY), jax.jit(env.step)
        for _ in range(100):
            state = step(state, STAY)
            if state.done:
                return int(state.info["steps"])
        raise AssertionError("it never ends")

    assert steps(TimeLimit(ActionRepeat(endless(600), 4), 10)) == 12
    assert steps(TimeLimit(ActionRepeat(endless(6), 4), 100)) == 6
    assert steps(ActionRepeat(TimeLimit(TimeLimit(Walk(), 9), 7), 4)) == 7
    nested = ActionRepeat(ActionRepeat(Walk(), 2), 3)
    assert nested.step(nested.reset(KEY), jnp.zeros(1)).metrics["length"] == 6
    assert (TimeLimit(nested, 5).steps_per_action, Walk().steps_per_action) == (6, 1)


def test_a_divergence_keeps_the_steps_of_an_action_that_were_made():
    class Broken(Walk):
        def step(self, state, action):
            return super().step(state, action).replace(reward=jnp.array(jnp.nan))

    env = NaNGuard(TimeLimit(ActionRepeat(Broken(), 3), 10))
    state = env.step(env.reset(KEY), jnp.zeros(1))
    assert (state.metrics["diverged"], state.metrics["length"], state.metrics["moved"]) == (1, 3, 0)


def test_an_action_lasts_a_step_at_least():
    with pytest.raises(ValueError, match="must last at least 1 step, got 0"):
        ActionRepeat(Walk(), 0)


# --- NaN guard ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken():
    """Two steps of six simulations, guarded; and one without faults or guard.

    At the second step the first three break in three ways, the fourth is untouched where they
    break, the fifth breaks in the step in which it would terminate, the sixth terminates.
    """
    x = jnp.array([-0.1, -0.1, -0.1, -0.1, 0.3, 0.3])
    actions = jnp.array([[-0.7]] * 4 + [[0.8]] * 2)
    fault = jnp.array([1, 2, 3, 0, 1, 0])

    def two_steps(env, x, fault, action):
        start = env.reset(KEY)
        start = start.replace(data=start.data.replace(x=x), info={"fault": fault})
        one = env.step(start, action)
        return one, env.step(one, action)

    guarded, plain = NaNGuard(Fragile()), Fragile()
    both = jax.vmap(lambda x, f, a: (two_steps(guarded, x, f, a), two_steps(plain, x, 0 * f, a)))
    return jax.jit(both)(x, fault, actions)


def test_broken_numbers_end_their_own_episode_and_are_counted(broken):
    (one, two), _ = broken
    assert not one.done.any()
    assert not one.metrics["diverged"].any()
    np.testing.assert_array_equal(two.metrics["diverged"], [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(two.truncated, [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(two.terminated, [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(two.done, [1, 1, 1, 0, 1, 1])
    bad = jnp.array([0, 1, 2, 4])
    np.testing.assert_array_equal(two.obs[bad], one.obs[bad])  # the last finite one
    assert not two.reward[bad].any()
    assert not two.metrics["moved"][bad].any()


def test_a_broken_simulation_leaves_its_neighbours_alone(broken):
    (_, two), (_, reference) = broken
    for name in ("obs", "reward", "terminated", "truncated", "done", "data"):
        pick = lambda s, name=name: jax.tree.map(lambda a: a[jnp.array([3, 5])], getattr(s, name))
        assert_trees_equal(pick(two), pick(reference))
    np.testing.assert_array_equal(two.metrics["moved"][3], reference.metrics["moved"][3])


def test_a_start_that_isnt_finite_shows_zeros():
    class Broken(Walk):
        def reset(self, key, model=None):
            state = super().reset(key, model)
            return state.replace(obs=jnp.array([jnp.nan, 1.0]))

    np.testing.assert_array_equal(NaNGuard(Broken()).reset(KEY).obs, [0.0, 1.0])

    class Whole(Walk):
        def reset(self, key, model=None):
            return super().reset(key, model).replace(obs=jnp.array([True, False]))

    assert NaNGuard(Whole()).reset(KEY).obs.dtype == bool


def test_a_metric_that_isnt_finite_ends_the_episode_too():
    class Broken(Walk):
        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(metrics={**state.metrics, "moved": jnp.array(jnp.inf)})

    env = NaNGuard(Broken())
    state = env.step(env.reset(KEY), jnp.zeros(1))
    assert (state.truncated, state.metrics["diverged"], state.metrics["moved"]) == (True, 1, 0)


def test_nan_in_one_physics_simulation_leaves_its_neighbours_alone():
    env = vectorise(NaNGuard(TimeLimit(Pendulum(), 50)), 4)
    start = env.reset(KEY)
    qpos = start.data.qpos.at[1].set(jnp.nan)
    torques = jnp.ones((4, 4, 1))
    good = run(env, start, torques)
    bad = run(env, start.replace(data=start.data.replace(qpos=qpos)), torques)
    np.testing.assert_array_equal(bad.metrics["diverged"], [[0, 1, 0, 0]] + [[0] * 4] * 3)
    np.testing.assert_array_equal(bad.truncated[0], [False, True, False, False])
    np.testing.assert_array_equal(bad.info["final_obs"][0, 1], start.obs[1])
    assert np.isfinite(bad.obs).all()
    assert not bad.data.diverged.any()  # the new episode is sound
    others = lambda tree: jax.tree.map(lambda a: a[:, jnp.array([0, 2, 3])], tree)
    assert_trees_equal(others(good), others(bad))


def test_a_bad_action_is_an_error_outside_jit_and_a_divergence_inside():
    env = NaNGuard(Walk())
    state = env.reset(KEY)
    with pytest.raises(ValueError, match=r"an action has shape \(2,\), expected \(1,\)"):
        env.step(state, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"an action has shape \(3, 1\), expected \(1,\)"):
        jax.jit(env.step)(state, jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"an action must be finite, got \[nan\]"):
        env.step(state, np.array([np.nan]))
    inside = jax.jit(env.step)(state, jnp.array([jnp.nan]))
    assert inside.truncated
    assert inside.metrics["diverged"] == 1
    assert env.step(state, np.array([1])).reward.dtype == jnp.float32  # integers will do


# --- automatic resets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walks():
    """A walk of 12 steps to the right, and one at half the speed, with automatic resets."""
    env = AutoReset(Walk())
    start = env.reset(KEY)
    return start, run(env, start, jnp.ones((12, 1))), run(env, start, 0.5 * jnp.ones((12, 1)))


def test_auto_reset_starts_the_next_episode_in_the_step_that_ends_one(walks):
    start, states, _ = walks
    np.testing.assert_array_equal(start.info["final_obs"], start.obs)
    states = jax.device_get(states.replace(info={"final_obs": states.info["final_obs"]}))
    x, resets = float(start.data.x), []
    for i in range(12):
        x += 0.5
        np.testing.assert_allclose(states.info["final_obs"][i], [x, 1.0], rtol=1e-6)
        np.testing.assert_allclose(states.reward[i], x, rtol=1e-6)
        assert states.terminated[i] == states.done[i] == (x > 1)
        if x > 1:
            resets.append(x := float(states.data.x[i]))
            assert -0.5 <= x <= 0.5
        np.testing.assert_allclose(states.obs[i], [x, 1.0], rtol=1e-6)
        assert states.metrics["moved"][i] == 1
    assert len(set(resets)) == len(resets) >= 4  # every episode starts from a key of its own


def test_an_episode_doesnt_depend_on_when_its_predecessor_ended(walks):
    """Keys advance from episode to episode, not from step to step."""
    _, fast, slow = walks
    assert jnp.argmax(slow.terminated) != jnp.argmax(fast.terminated)
    first = lambda states: states.data.x[jnp.argmax(states.terminated)]
    assert first(slow) == first(fast)


def test_an_episode_after_one_that_was_cut_short_is_not_cut_short_at_once():
    env = AutoReset(TimeLimit(Draw(), 3))  # whose step says nothing of truncation
    step, state, age = jax.jit(env.step), jax.jit(env.reset)(jax.random.key(0)), 0
    cut = []
    for _ in range(60):
        state, age = step(state, jnp.zeros(1)), age + 1
        if state.truncated:
            cut.append(age)
        age = 0 if state.done else age
    assert len(cut) > 1
    assert set(cut) == {3}


def test_truncation_resets_the_time_limit():
    env = AutoReset(endless(3))
    states = run(env, env.reset(KEY), jnp.zeros((7, 1)))
    np.testing.assert_array_equal(states.truncated, [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(states.info["steps"], [1, 2, 0, 1, 2, 0, 1])


def test_model_fields_given_at_reset_outlive_the_episode():
    env = vectorise(Walk(), 2)
    edges = jnp.array([1.0, 3.0])
    start = env.reset(KEY, {"edge": edges})
    states = run(env, start, jnp.ones((15, 2, 1)))
    np.testing.assert_array_equal(states.data.edge, jnp.tile(edges, (15, 1)))
    ended = states.terminated.sum(0)
    assert ended[0] > ended[1] >= 1


@pytest.mark.parametrize("seeds", [None, 3], ids=["one seed", "vmap over seeds"])
def test_resets_are_computed_only_in_steps_in_which_a_simulation_ends(seeds):
    env = Counting()
    batch = vectorise(env, 4)

    def seed(key, speeds):
        state = batch.reset(key)
        step = lambda s, _: ((s := batch.step(s, speeds[:, None])), s.terminated)
        return jax.lax.scan(step, state, length=20)[1]

    if seeds is None:
        ended = jax.jit(seed)(KEY, jnp.array([0.1, 0.2, 0.4, 0.8]))[None]
    else:
        speeds = jnp.linspace(0.05, 0.3, 12).reshape(3, 4)
        ended = jax.jit(jax.vmap(seed))(jax.random.split(KEY, 3), speeds)
    with_an_end = int(np.asarray(ended).any((0, 2)).sum())
    assert 3 < with_an_end < 20 < np.asarray(ended).size
    assert env.resets == [4 * (seeds or 1)] * (1 + with_an_end)


def test_reset_done_keeps_what_the_step_returned():
    env = Walk()
    state = env.step(env.reset(KEY), 3 * RIGHT)
    state = state.replace(info={"mine": jnp.array(7)})
    fresh = reset_done(env, state, jax.random.key(1))
    assert_trees_equal(fresh.data, env.reset(jax.random.key(1)).data)
    for name in ("reward", "done", "terminated", "truncated", "metrics", "info"):
        assert_trees_equal(getattr(fresh, name), getattr(state, name))
    running = env.step(env.reset(KEY), STAY)
    assert_trees_equal(reset_done(env, running, jax.random.key(1)), running)


def test_batch_any_is_one_number_for_the_whole_batch():
    flags = jnp.zeros((2, 3, 4), bool).at[1, 2, 0].set(True)
    nested = jax.vmap(jax.vmap(jax.vmap(batch_any)), out_axes=None)
    with pytest.raises(ValueError, match="out_axes"):
        jax.vmap(jnp.any, out_axes=None)(flags)  # what makes the next lines a proof
    nested = jax.vmap(jax.vmap(jax.vmap(batch_any, out_axes=None), out_axes=None), out_axes=None)
    for f in (nested, jax.jit(nested)):
        assert bool(f(flags)) is True
        assert bool(f(~flags & flags)) is False
    assert bool(batch_any(jnp.array(True))) is True
    mixed = jax.vmap(
        jax.vmap(batch_any, in_axes=0, out_axes=None), in_axes=(None,), out_axes=None, axis_size=5
    )
    assert bool(mixed(flags[1, 2])) is True

    def step(carry, flag):
        return carry + batch_any(flag), batch_any(flag)

    count, each = jax.vmap(lambda f: jax.lax.scan(step, 0, f), in_axes=1, out_axes=None)(flags[1])
    assert count == 1
    np.testing.assert_array_equal(each, [False, False, True])


# --- vectorised, and the protocol -----------------------------------------------------------------


def test_vectorised_refuses_wrong_numbers():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        Vectorised(Walk(), 0)
    env = vectorise(Walk(), 3)
    with pytest.raises(ValueError, match=r"actions have shape \(2, 1\), expected \(3, 1\)"):
        env.step(env.reset(KEY), jnp.zeros((2, 1)))


def test_simulations_of_a_batch_start_from_keys_of_their_own():
    state = Vectorised(Walk(), 8).reset(KEY)
    assert len({float(x) for x in state.data.x}) == 8
    assert state.obs.shape == (8, 2)


def test_wrappers_pass_everything_on():
    inner = Walk()
    inner.metric, inner.colour = Metric("moved", "count"), "red"
    env = vectorise(NaNGuard(TimeLimit(inner, 7)), 2)
    assert env.unwrapped is inner
    assert inner.unwrapped is inner
    assert (env.action_size, env.observation_size, env.time_limit) == (1, 2, 7)
    assert env.observation_spec == Spec((2,))
    assert env.metric == Metric("moved", "count")
    assert env.colour == "red"
    with pytest.raises(AttributeError, match="taste"):
        env.taste  # noqa: B018
    assert pickle.loads(pickle.dumps(env)).time_limit == 7
    assert copy.deepcopy(env).unwrapped.colour == "red"
    assert Tasks().observation_size == {"x": (1,), "task": (6,)}


def test_a_physics_env_knows_its_clock_and_engine():
    env = Pendulum()
    assert env.dt == pytest.approx(0.01)
    assert env.engine == "native"
    assert env.mj_model.nv == 1
    state = jax.jit(env.step)(env.reset(KEY), RIGHT)
    assert state.data.time == pytest.approx(env.dt)


def test_an_env_must_be_complete():
    class Half(Env):
        def reset(self, key, model=None):
            return State((), (), (), (), (), ())

    with pytest.raises(TypeError, match="abstract"):
        Half()
