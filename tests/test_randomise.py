import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo.randomise import Randomise, Uniform


def make(fields, engine="native"):
    return Randomise(envs.make("DofbotReacher", engine=engine), fields)


@pytest.mark.parametrize("engine", ["native", "mjx"])
def test_every_episode_has_fields_of_its_own_within_the_bounds(engine):
    env = make({"body_mass": Uniform(0.5, 2.0), "opt.gravity": Uniform(-1, 1, "shift")}, engine)
    model = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 64)).data.model
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


def test_a_draw_takes_effect_and_the_engines_agree():
    """With 1/100 of the gain the arm lags far behind its nominal self."""
    action = jnp.full(5, 0.8)

    def moved(env):
        step = jax.jit(env.step)
        state = jax.jit(env.reset)(jax.random.key(1))
        for _ in range(5):
            state = step(state, action)
        return np.asarray(state.data.qpos)

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
