"""brax's environments under ours: the same steps, ends that are told apart, and PPO learns."""

import textwrap
from types import SimpleNamespace

import brax.envs
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.envs import base
from brax.envs.fast import Fast
from brax.envs.wrappers.training import VmapWrapper
from flax import struct

from jaxrobo import checkpoint, policy
from jaxrobo.bridge import from_brax
from jaxrobo.bridge.from_brax import FromBrax
from jaxrobo.env import Metric, Spec, vectorise
from jaxrobo.rendering import record

# brax doesn't maintain its environments, as it tells whoever makes one, and as MuJoCo tells it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Brax System:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data`:DeprecationWarning"),
]

KEY = jax.random.key(0)
BALL = "<mujoco><worldbody><body><joint type='slide'/><geom size='1'/></body></worldbody></mujoco>"


@struct.dataclass
class Ball:
    """A pipeline state: where the ball is. [1]"""

    q: jax.Array


class Untidy(base.Env):
    """A ball moves by its action, and the episode ends beyond 1.

    As untidy as the protocol allows: a step writes into its argument, gives Python's numbers, other
    dtypes, and entries that a reset doesn't have.
    """

    action_size, observation_size, backend = 1, 1, "none"
    dt = 0.5
    sys = SimpleNamespace(mj_model=mujoco.MjModel.from_xml_string(BALL))

    def reset(self, rng):
        ball, no = Ball(0.1 * jax.random.uniform(rng, (1,))), jnp.zeros((), jnp.int32)
        return base.State(ball, ball.q, no, no, {"moved": no}, {"rng": rng, "key": KEY})

    def step(self, state, action):
        x = state.pipeline_state.q + action
        state.metrics.update(moved=jnp.abs(action[0]), late=jnp.where(x[0] > 0.5, 1, 0))
        state.info["last"] = {"action": action}
        return state.replace(pipeline_state=Ball(x), obs=x, reward=1, done=x[0] > 1)


def run(env, state, actions):
    """States after each action, stacked."""
    step = jax.jit(env.step)
    states = []
    for action in actions:
        state = step(state, action)
        states.append(state)
    assert step._cache_size() == 1  # states of resets and of steps are of the same types
    return jax.tree.map(lambda *x: np.stack(x), *map(plain, states))


def plain(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


# --- an environment of brax -----------------------------------------------------------------------

LIMIT = 12


@pytest.fixture(scope="module")
def pendulum():
    """brax's inverted pendulum, and its functions."""
    env = brax.envs.get_environment("inverted_pendulum", backend="generalized")
    return env, jax.jit(env.reset), jax.jit(env.step)


def one_by_one(pendulum, key, action, steps):
    """What a simulation is to show: a loop around brax's functions that resets at each end."""
    _, reset, step = pendulum
    key, reset_key = jax.random.split(key)
    state, length = reset(jax.random.key_data(reset_key)), 0
    for _ in range(steps):
        state, length = step(state, action), length + 1
        terminated = bool(state.done)
        seen = {"reward": state.reward, "terminated": terminated, "final_obs": state.obs}
        seen["truncated"] = length == LIMIT and not terminated
        if terminated or seen["truncated"]:
            key, reset_key = jax.random.split(key)
            state, length = reset(jax.random.key_data(reset_key)), 0
        yield {**seen, "obs": state.obs, "qpos": state.pipeline_state.q, "steps": length}


@pytest.fixture(scope="module")
def batch(pendulum):
    """Two pendulums, of which one rests and one is pushed over, and 30 states of theirs."""
    env = FromBrax(pendulum[0], LIMIT)
    both = vectorise(env, 2)
    actions = jnp.tile(jnp.array([[0.0], [1.0]]), (30, 1, 1))
    first = jax.jit(both.reset)(KEY)
    return env, first, run(both, first, actions)


def test_steps_and_ends_are_those_of_brax(pendulum, batch):
    _, _, states = batch
    seen = {k: getattr(states, k) for k in ("obs", "reward", "terminated", "truncated")}
    seen |= {"final_obs": states.info["final_obs"], "qpos": states.data.qpos}
    ends = []
    for i, key in enumerate(jax.random.split(KEY, 2)):
        expected = list(one_by_one(pendulum, key, jnp.array([float(i)]), 30))
        for name, value in seen.items():
            each = np.array([e[name] for e in expected])
            np.testing.assert_allclose(value[:, i], each, rtol=1e-4, atol=1e-4, err_msg=name)
        ends.append([int(seen[k][:, i].sum()) for k in ("terminated", "truncated")])
        done = states.terminated[:, i] | states.truncated[:, i]
        np.testing.assert_array_equal(states.done[:, i], done)
    assert ends[0] == [0, 2]
    assert ends[1][0] >= 2
    assert ends[1][1] == 0


def test_what_is_known_of_it(batch):
    env, first, _ = batch
    assert (env.observation_spec, env.action_size) == (Spec((4,)), 1)
    assert (env.time_limit, env.metric) == (LIMIT, Metric("reward", "count"))
    assert env.dt == pytest.approx(0.04)
    assert env.mj_model.nq == first.data.qpos.shape[1] == 2


def test_a_checkpoint_holds_the_state_of_brax(batch, tmp_path):
    _, first, _ = batch
    checkpoint.save(tmp_path / "series", first, {})
    loaded, _ = checkpoint.load(tmp_path / "series", jax.eval_shape(lambda: first))
    jax.tree.map(np.testing.assert_array_equal, plain(loaded), plain(first))


def test_the_example_learns(monkeypatch):
    """With the lightest of brax's environments, whose best return is known.

    A point is accelerated by 1 m/s^2 while the action is positive, 0.02 s a step; the reward is its
    position: 4e-4 t (t + 1) / 2 after t steps of 100.
    """
    monkeypatch.setitem(brax.envs._envs, "inverted_pendulum", Fast)
    blocks = from_brax.__doc__.split("\n\n")
    example = [b for b in blocks if all(line.startswith("    ") for line in b.splitlines())]
    names = {"print": lambda *args: names.update(printed=args)}
    exec(textwrap.dedent("\n".join(example)), names)
    assert names["printed"][0].mean == pytest.approx(2e-4 * 100 * 101 * 102 / 3, rel=0.1)
    assert names["trainer"].step._cache_size() == 1


# --- states that don't fit each other -------------------------------------------------------------


def test_states_are_made_alike():
    env = FromBrax(Untidy(), 100, metric=Metric("late", "count"))
    first = env.reset(KEY)
    assert {k: v.dtype for k, v in first.metrics.items()} == dict.fromkeys(
        ("moved", "late", "diverged"), np.float32
    )
    assert (first.reward.dtype, first.done.dtype) == (np.float32, np.float32)
    state = first.replace(info={**first.info, "mine": jnp.array(7)})
    states = run(env, state, jnp.full((4, 1), 0.3))
    np.testing.assert_array_equal(states.reward, [1, 1, 1, 1])
    np.testing.assert_allclose(states.metrics["moved"], [0.3] * 4, rtol=1e-6)
    np.testing.assert_array_equal(states.metrics["late"], [0, 1, 1, 1])
    np.testing.assert_array_equal(states.terminated, [False, False, False, True])
    np.testing.assert_allclose(states.data.state.info["last"]["action"], [[0.3]] * 4, rtol=1e-6)
    np.testing.assert_array_equal(states.info["mine"], [7] * 4)


def test_a_step_leaves_its_argument_alone():
    env = FromBrax(Untidy(), 100)
    first = env.reset(KEY)
    before = jax.tree.map(np.array, plain(first))
    for _ in range(2):
        assert env.step(first, jnp.array([0.7])).metrics["moved"] == pytest.approx(0.7)
        jax.tree.map(np.testing.assert_array_equal, plain(first), before)


def test_keys_of_both_kinds_start_the_same_episode():
    env = FromBrax(Untidy(), 100)
    old = env.reset(jax.random.PRNGKey(3))
    assert env.reset(jax.random.key(3)).obs == old.obs == Untidy().reset(jax.random.PRNGKey(3)).obs


def test_numbers_that_are_not_finite_truncate():
    class Breaking(Untidy):
        """Says that it's done once its numbers are no longer finite, as Playground's do."""

        def step(self, state, action):
            state = super().step(state, action)
            bad = state.obs[0] > 0.5
            return state.replace(obs=jnp.where(bad, jnp.nan, state.obs), done=bad)

    env = FromBrax(Breaking(), 100)
    states = run(env, env.reset(KEY), jnp.full((2, 1), 0.3))
    np.testing.assert_array_equal(states.truncated, [False, True])
    np.testing.assert_array_equal(states.terminated, [False, False])
    np.testing.assert_array_equal(states.metrics["diverged"], [0, 1])
    assert np.isfinite(states.obs).all()


def test_films():
    """The ball is where the actions moved it, until the episode ends."""
    env = FromBrax(Untidy(), 3)
    seen = record(env, policy.constant(jnp.array([0.2])), (), jax.random.split(KEY, 2))
    assert seen.qpos.shape == (2, 4, 1)
    np.testing.assert_allclose(np.diff(seen.qpos, axis=1), 0.2, rtol=1e-5)
    assert env.visual_model.nq == 1
    with pytest.raises(ValueError, match="it has no MuJoCo model"):
        record(FromBrax(Fast(), 3), policy.constant(jnp.zeros(1)), (), KEY)


# --- what is seen, and what is refused ------------------------------------------------------------


def test_what_is_privileged_is_shown_only_if_asked_for():
    inner = Fast(asymmetric_obs=True, obs_mode="dict_pixels_state")
    env = FromBrax(inner, 10)
    assert env.observation_spec == Spec((2,))
    assert env.reset(KEY).obs.shape == (2,)
    env = FromBrax(inner, 10, observation=("privileged_state", "pixels/view_0"))
    spec = {"privileged_state": Spec((4,)), "pixels/view_0": Spec((4, 4, 3), kind="image")}
    assert env.observation_spec == spec
    state = env.step(env.reset(KEY), jnp.ones(1))
    assert {k: x.shape for k, x in state.obs.items()} == {k: s.shape for k, s in spec.items()}
    env = FromBrax(inner, 10, observation="pixels/view_1")
    assert env.observation_spec == Spec((4, 4, 3), kind="image")


def test_what_cannot_be_stepped_is_refused():
    with pytest.raises(ValueError, match=r"wrapped in AutoResetWrapper: give it bare"):
        FromBrax(brax.envs.create("fast"), 10)
    with pytest.raises(ValueError, match="wrapped in VmapWrapper"):
        FromBrax(VmapWrapper(Fast()), 10)
    with pytest.raises(ValueError, match="no 'camera'; valid: state"):
        FromBrax(Fast(obs_mode="dict_state"), 10, observation="camera")
    with pytest.raises(ValueError, match="one array: it has no entries like 'state'"):
        FromBrax(Fast(), 10, observation="state")
    with pytest.raises(ValueError, match="no metric 'success'; valid: reward, length, late, moved"):
        FromBrax(Untidy(), 10, metric=Metric("success"))
    with pytest.raises(ValueError, match="time limit must be at least 1 step and whole, got 0"):
        FromBrax(Fast(), 0)
    with pytest.raises(ValueError, match="no model fields, got body_mass"):
        FromBrax(Untidy(), 10).reset(KEY, {"body_mass": jnp.ones(2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(obs=jnp.zeros(2)), r"\.obs is .*\(1,\).* and .*\(2,\)"),
        (lambda s: s.replace(obs={"state": s.obs}), r"\.obs is .* and {'state'"),
        (lambda s: s.replace(metrics={"force": jnp.zeros(3)}), "'force' isn't a number"),
        (lambda s: s.replace(info=s.info | {"n" * len(s.info): 1}), "in every step"),
    ],
)
def test_states_that_cannot_be_made_alike_are_refused(change, message):
    class Changing(Untidy):
        def step(self, state, action):
            return change(super().step(state, action))

    with pytest.raises(ValueError, match=message):
        FromBrax(Changing(), 10)
