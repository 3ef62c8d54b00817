"""Diffusion Policy on demonstrations of two minds: the same observation, +0.5 or -0.5."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data, diffusion
from jaxrobo.data import Trajectories
from jaxrobo.learning import diffusion_bc
from jaxrobo.networks import ConditionalUNet1D
from tests.learning.diagnostic_envs import Walk, endless

KEY = jax.random.key(0)
ENV = endless(8)
TINY = diffusion_bc.Config(
    horizon=4,
    action_horizon=2,
    widths=(16,),
    batch=32,
    gradient_steps=150,
    learning_rate=3e-3,
    warmup_steps=20,
    decay_steps=450,
    noise_levels=20,
    sampling_steps=5,
)
SAMPLES = 64


def demonstrations():
    """Eight episodes of 8 steps; half of them act by 0.5 all the time, half by -0.5."""
    signs = np.repeat(np.float32([1, -1] * 4), 8)
    no = np.zeros(64, bool)
    return Trajectories(
        obs={"obs": np.ones((64, 1), np.float32)},
        action=0.5 * signs[:, None],
        reward=np.zeros(64, np.float32),
        terminated=no,
        truncated=no,
        episode_ends=np.arange(8, 72, 8),
        success=np.ones(8, bool),
        episode=np.arange(8),
        metadata=data.describe(ENV),
    )


def make(**options):
    return diffusion_bc.make(ENV, demonstrations(), dataclasses.replace(TINY, **options))


def learn(trainer, iterations=3):
    state = jax.jit(trainer.init)(KEY, trainer.inputs)
    for _ in range(iterations):
        state, metrics = trainer.step(state, trainer.inputs)
    return jax.device_get(trainer.learned(state)), float(metrics["loss"])


@pytest.fixture(scope="module")
def diffused():
    """What diffusion learns."""
    return learn(make(ema_decay=0.95))[0]


def plans(trainer, params, carry=None, seed=1):
    """Plans `[SAMPLES, horizon]`, normalised, and the carries; fresh ones go in if None."""
    policy, obs = trainer.act(True), jnp.ones(1)

    def plan(carry, key):
        return policy.plan(params, carry, obs, key)

    keys = jax.random.split(jax.random.key(seed), SAMPLES)
    if carry is None:
        carry = jax.vmap(lambda key: policy.init(obs, key))(keys)
    carry = jax.jit(jax.vmap(plan))(carry, keys)
    return np.asarray(carry.plan[..., 0]), carry


def assert_two_modes(chunks):
    """Nearly all are near +-1, of one sign each, and both signs occur."""
    near = np.abs(np.abs(chunks) - 1).max(axis=1) < 0.25
    assert near.mean() > 0.85  # hundreds of gradient steps, and few to sample in
    assert np.median(np.abs(np.abs(chunks) - 1)) < 0.05
    signs = np.sign(chunks[near])
    assert (signs == signs[:, :1]).all()
    assert 0.2 < (signs[:, 0] > 0).mean() < 0.8


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_diffusion_finds_both_modes(diffused, sampler):
    trainer = make(sampler=sampler, sampling_steps=10)
    chunks, carry = plans(trainer, diffused)
    assert_two_modes(chunks)
    action, _, _ = trainer.act(True).act(diffused, jax.tree.map(lambda x: x[0], carry), None, None)
    np.testing.assert_allclose(action, 0.5 * np.clip(chunks[0, :1], -1, 1), rtol=1e-5)


def test_a_flow_finds_both_modes():
    trainer = make(objective="flow", sampling_steps=10)
    params, _ = learn(trainer)
    assert_two_modes(plans(trainer, params)[0])


# --- temperature ---------------------------------------------------------------------------------


def planned_by_hand(diffused, objective, factor):
    """What `plans` gives if its noise is multiplied by a factor."""
    network, schedule = ConditionalUNet1D(TINY.widths), diffusion.squared_cosine(20)
    predict = lambda x, step: network.apply(diffused["network"], x, step, jnp.zeros(1))

    def plan(key):
        noise = factor * jax.random.normal(jax.random.split(key)[0], (4, 1))
        if objective == "flow":
            return diffusion.flow_sample(predict, noise, 5)
        return diffusion.ddim_sample(schedule, predict, noise, (16, 12, 8, 4, 0))

    return jax.jit(jax.vmap(plan))(jax.random.split(jax.random.key(1), SAMPLES))[..., 0]


@pytest.mark.parametrize(
    ("objective", "temperature"), [("epsilon", 1.0), ("epsilon", 0.5), ("flow", 0.5)]
)
def test_plans_start_from_noise_times_the_temperature(diffused, objective, temperature):
    chunks, _ = plans(make(objective=objective, temperature=temperature), diffused)
    expected = planned_by_hand(diffused, objective, temperature)
    np.testing.assert_allclose(chunks, expected, atol=1e-4)


def test_without_noise_an_observation_has_one_plan(diffused):
    cold, hot = (np.ptp(plans(make(temperature=t), diffused)[0], axis=0) for t in (0.0, 1.0))
    assert (cold < 1e-5).all()
    assert (hot > 1).all()


def test_a_warm_start_has_the_temperature_too(diffused):
    """Without noise the second plan is that of the first alone, the same for all keys."""
    trainer = make(warm_start=WARM, temperature=0.0)
    _, carry = plans(trainer, diffused)
    again, _ = plans(trainer, diffused, carry.replace(index=carry.index + 2), seed=2)
    assert (np.ptp(again, axis=0) < 1e-5).all()


# --- warm starts ----------------------------------------------------------------------------------


WARM = 8  # of the steps 16, 12, 8, 4, 0


@pytest.fixture(scope="module")
def warm(diffused):
    """The first plans of episodes that start warm later, their carries after 2 steps, and all."""
    trainer = make(warm_start=WARM)
    chunks, carry = plans(trainer, diffused)
    return trainer, chunks, carry.replace(index=carry.index + 2)


def test_the_first_plan_is_the_cold_one(diffused, warm):
    cold, _ = plans(make(), diffused)
    np.testing.assert_allclose(warm[1], cold, atol=1e-5)


def test_later_plans_start_from_what_is_left_of_the_last(diffused, warm):
    """Noise is added to the plan shifted by 2, its last action repeated, and taken away again."""
    trainer, first, carry = warm
    second, _ = plans(trainer, diffused, carry, seed=2)
    network, schedule = ConditionalUNet1D(TINY.widths), diffusion.squared_cosine(20)
    condition = jnp.zeros(1)  # an observation that never varies, normalised

    def by_hand(previous, key):
        _, key = jax.random.split(key)
        noise = jax.random.normal(key, (4, 1))
        noisy = diffusion.add_noise(schedule, previous, noise, WARM)
        predict = lambda x, step: network.apply(diffused["network"], x, step, condition)
        return diffusion.ddim_sample(schedule, predict, noisy, (8, 4, 0))

    shifted = jnp.asarray(first)[:, jnp.array([2, 3, 3, 3]), None]
    keys = jax.random.split(jax.random.key(2), SAMPLES)
    expected = jax.jit(jax.vmap(by_hand))(shifted, keys)[..., 0]
    np.testing.assert_allclose(second, expected, atol=1e-4)
    same = np.sign(second[:, 0]) == np.sign(first[:, 3])
    assert same.mean() > 0.9  # it keeps to the mode that it chose


def test_a_new_episode_starts_cold(diffused, warm):
    trainer, first, _ = warm
    carry = trainer.act(True).init(jnp.ones(1), KEY)
    assert not carry.planned
    again, _ = plans(trainer, diffused, seed=1)
    np.testing.assert_array_equal(again, first)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "score"}, "unknown objective 'score'; valid: epsilon, flow"),
        ({"sampler": "heun"}, "unknown sampler 'heun'; valid: ddim, ddpm"),
        ({"noise_levels": 0}, "steps must be at least 1, got 0"),
        ({"sampling_steps": 0}, "sampling_steps must be at least 1, got 0"),
        ({"sampling_steps": 21}, "the number of steps must be in 1 .. 20, got 21"),
        ({"warm_start": 16}, "warm_start must be in 0 .. 15, below the first .*, got 16"),
        ({"warm_start": -1}, "warm_start must be in 0 .. 15, below the first .*, got -1"),
        ({"warm_start": 0, "sampling_steps": 1}, "warm_start needs at least 2 sampling_steps"),
        ({"warm_start": 4, "objective": "flow"}, "warm_start needs the objective 'epsilon' and"),
        ({"warm_start": 4, "sampler": "ddpm"}, "and the sampler 'ddim'"),
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0"),
        ({"temperature": math.nan}, "temperature must not be negative, got nan"),
        ({"temperature": 0.5, "sampler": "ddpm"}, "a temperature other than 1 needs the sampler"),
        ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\), got -0.1"),
        ({"action_horizon": 5}, "action_horizon must be at most horizon, 4, got 5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **options)


def test_a_horizon_that_the_network_cannot_halve_is_refused():
    with pytest.raises(ValueError, match=r"the horizon must be a multiple of 2 .*, got 5"):
        make(horizon=5, widths=(8, 16))


def test_demonstrations_of_another_environment_are_refused():
    with pytest.raises(data.DataError, match="env is 'Endless' there, 'Walk' here"):
        diffusion_bc.make(Walk(), demonstrations(), TINY)
