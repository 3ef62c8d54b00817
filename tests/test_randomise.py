import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo.env import Env, Spec, State, TimeLimit, vectorise
from jaxrobo.randomise import Latency, ObservationNoise, Randomise, Uniform, weakened


def make(fields, engine="native"):
    return Randomise(envs.make("DofbotReacher", engine=engine), fields)


@pytest.mark.parametrize("engine", ["native", "mjx"])
def test_every_episode_has_fields_of_its_own_within_the_bounds(engine):
    env = make({"body_mass": Uniform(0.5, 2.0), "opt.gravity": Uniform(-1, 1, "shift")}, engine)
    keys = jax.random.split(jax.random.key(0), 64)
    model = jax.vmap(env.draw)(keys)
    nominal = env.mj_model
    factor = np.asarray(model["body_mass"])[:, 1:] / nominal.body_mass[1:]
    assert 0.5 <= factor.min() < 0.6
    assert 1.9 < factor.max() <= 2.0
    assert len(np.unique(factor[:, 0])) == 64
    np.testing.assert_allclose(
        np.asarray(model["body_inertia"])[:, 1:] / nominal.body_inertia[1:],
        np.broadcast_to(factor[..., None], (*factor.shape, 3)),
        rtol=1e-5,
    )
    shift = np.asarray(model["opt.gravity"]) - nominal.opt.gravity
    assert np.abs(shift).max() <= 1
    assert shift.std() == pytest.approx(1 / np.sqrt(3), rel=0.15)


def test_a_reset_draws():
    env = make({"body_mass": Uniform(0.5, 2.0)})
    keys = jax.random.split(jax.random.key(0), 2)
    mass = jax.jit(jax.vmap(env.reset))(keys).data.model["body_mass"]
    assert len(np.unique(mass[:, 1])) == 2


def test_a_draw_takes_effect_and_the_engines_agree():
    """With 1/100 of the gain the arm lags far behind its nominal self."""
    action = jnp.full(5, 0.8)

    @functools.partial(jax.jit, static_argnums=0)
    def moved(env):
        start = env.reset(jax.random.key(1))
        return jax.lax.fori_loop(0, 5, lambda _, s: env.step(s, action), start).data.qpos

    weak = {"actuator_gainprm": Uniform(0.01, 0.01)}
    nominal = moved(make({}))
    native, mjx = moved(make(weak)), moved(make(weak, "mjx"))
    np.testing.assert_allclose(native, mjx, atol=1e-4)
    assert np.abs(native - nominal).max() > 0.2


def test_what_the_caller_gives_wins():
    env = make({"body_mass": Uniform(0.5, 2.0)})
    mass = jnp.asarray(env.mj_model.body_mass) * 3
    state = env.reset(jax.random.key(0), {"body_mass": mass})
    np.testing.assert_array_equal(state.data.model["body_mass"], mass)
    inertia = state.data.model.get("body_inertia", env.mj_model.body_inertia)
    np.testing.assert_allclose(inertia, env.mj_model.body_inertia)  # what goes with the draw isn't


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body_weight": Uniform(1, 2)}, "unknown model field 'body_weight'"),
        ({"geom_type": Uniform(1, 2)}, "geom_type"),
        (
            {"body_mass": Uniform(1, 2), "body_inertia": Uniform(1, 2)},
            "'body_inertia' follows 'body_mass'",
        ),
        ({"body_mass": Uniform(1, 2, "shift")}, "only 'scale'"),
        ({"geom_friction": Uniform(1, 2)}, "'geom_friction' changes nothing.*'pair_friction'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(fields)


def test_bad_distributions_are_refused():
    with pytest.raises(ValueError, match="low must not exceed high, got 2 and 1"):
        Uniform(2, 1)
    with pytest.raises(ValueError, match="unknown operation 'add'"):
        Uniform(1, 2, "add")


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_randomisation_can_be_weakened(strength):
    fields = {"body_mass": Uniform(2.0, 2.0), "opt.gravity": Uniform(1.0, 1.0, "shift")}
    env = weakened(TimeLimit(make(fields), 10), strength)
    assert env.time_limit == 10
    model, nominal = env.reset(jax.random.key(0)).data.model, env.mj_model
    factor = 1 + strength
    np.testing.assert_allclose(model["body_mass"], factor * nominal.body_mass, rtol=1e-6)
    np.testing.assert_allclose(model["body_inertia"], factor * nominal.body_inertia, rtol=1e-6)
    np.testing.assert_allclose(model["opt.gravity"], nominal.opt.gravity + strength, rtol=1e-6)


def test_delays_and_noise_can_be_weakened():
    env = ObservationNoise(Latency(Counter(), (4, 4), (8, 8)), 0.5, 0.5)
    info = weakened(env, 0.25).reset(jax.random.key(0)).info
    assert (info["latency"]["action_steps"], info["latency"]["observation_steps"]) == (1, 2)
    assert info["observation_noise"]["std"] == 0.125
    assert env.reset(jax.random.key(0)).info["observation_noise"]["std"] == 0.5  # as it was


class Counter(Env):
    """Counts from 0; the reward is the action that acts. `still` is of another kind."""

    def reset(self, key, model=None):
        no = jnp.zeros((), bool)
        obs = {"count": jnp.zeros(1), "still": jnp.zeros(2)}
        return State(jnp.zeros(()), obs, jnp.zeros(()), jnp.zeros(()), no, no)

    def step(self, state, action):
        obs = {"count": state.obs["count"] * 0 + state.data + 1, "still": jnp.zeros(2)}
        no = jnp.zeros((), bool)
        return state.replace(data=state.data + 1, obs=obs, reward=action[0], truncated=no)

    @property
    def action_size(self):
        return 1

    @property
    def observation_spec(self):
        return {"count": Spec((1,)), "still": Spec((2,), kind="points")}


def played(env, key, steps=6):
    """What acts and what is seen, when actions count 10, 11, 12, ..."""
    state, rewards, seen = env.reset(key), [], []
    seen.append(float(state.obs["count"][0]))
    for i in range(steps):
        state = env.step(state, jnp.array([10.0 + i]))
        rewards.append(float(state.reward))
        seen.append(float(state.obs["count"][0]))
    return rewards, seen, state


@pytest.mark.parametrize("late", [0, 1, 3, 2.0])
def test_latency_delays_actions_and_observations(late):
    env = Latency(Counter(), action=(late, late), observation=(late, late))
    rewards, seen, _ = played(env, jax.random.key(0))
    assert rewards == [10 + max(0, i - late) for i in range(6)]
    assert seen == [max(0, i - late) for i in range(7)]


def test_latencies_are_drawn_apart_for_every_episode():
    env = Latency(Counter(), action=(1, 3), observation=(0, 1))
    drawn = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), 200)).info["latency"]
    pairs = np.stack([drawn["action_steps"], drawn["observation_steps"]], -1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    assert found.tolist() == [[a, o] for a in (1, 2, 3) for o in (0, 1)]
    assert counts.min() > 15


def test_latency_survives_automatic_resets():
    """Nothing of one episode shows in the next."""
    env = vectorise(TimeLimit(Latency(Counter(), (1, 1), (1, 1)), 3), 2)
    state, seen, rewards = env.reset(jax.random.key(0)), [], []
    for i in range(6):
        state = env.step(state, jnp.full((2, 1), 10.0 + i))
        seen.append(float(state.obs["count"][0, 0]))
        rewards.append(float(state.reward[0]))
    assert seen == [0, 1, 0, 0, 1, 0]
    assert rewards == [10, 10, 11, 13, 13, 14]


def test_noise_has_the_episodes_deviation_and_leaves_other_kinds_alone():
    env = ObservationNoise(Counter(), 0.2, 0.4)
    many = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000))
    std = np.asarray(many.info["observation_noise"]["std"])
    assert 0.2 <= std.min() < 0.21 < 0.39 < std.max() <= 0.4
    ratio = np.asarray(many.obs["count"][:, 0]) / std
    assert ratio.std() == pytest.approx(1, abs=0.06)
    assert ratio.mean() == pytest.approx(0, abs=0.07)
    rewards, seen, state = played(env, jax.random.key(2))
    off = np.array(seen) - np.arange(7)
    assert rewards == [10, 11, 12, 13, 14, 15]
    assert len(np.unique(off)) == 7
    assert 0 < abs(off).max() < 4 * 0.4
    assert not state.obs["still"].any()


def test_bad_delays_and_noise_are_refused():
    with pytest.raises(ValueError, match=r"action latency must be whole .*, got \(2, 1\)"):
        Latency(Counter(), action=(2, 1))
    with pytest.raises(ValueError, match=r"observation latency must be whole .*, got \(0, 1.5\)"):
        Latency(Counter(), observation=(0, 1.5))
    with pytest.raises(ValueError, match=r"observation noise must be .*, got \(-1, 0\)"):
        ObservationNoise(Counter(), -1, 0)
    with pytest.raises(ValueError, match="Latency: the environment has one already"):
        Latency(TimeLimit(Latency(Counter(), (1, 1)), 5), observation=(2, 2))
    with pytest.raises(ValueError, match="ObservationNoise: the environment has one"):
        ObservationNoise(ObservationNoise(Counter(), 0, 1), 0, 1)
