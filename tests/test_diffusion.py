"""Diffusion and flow matching on data for which the best network is known in closed form."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxrobo.diffusion import (
    FLOW_STEPS,
    add_noise,
    ddim_sample,
    ddim_steps,
    ddpm_sample,
    epsilon_loss,
    flow_loss,
    flow_sample,
    posterior,
    remove_noise,
    squared_cosine,
)
from jaxrobo.networks import ConditionalUNet1D

SCHEDULE = squared_cosine(100)
MEAN, STD = np.array([0.3, -0.5], np.float32), np.array([0.2, 0.1], np.float32)
SAMPLES = 4000


def best_epsilon(mean, std):
    """E[noise | noisy] of data from N(mean, std²)."""

    def predict(noisy, step):
        alpha = SCHEDULE.alphas_cumprod[step]
        variance = alpha * jnp.square(std) + 1 - alpha
        return jnp.sqrt(1 - alpha) * (noisy - jnp.sqrt(alpha) * mean) / variance

    return predict


def best_velocity(mean, std):
    """E[clean - noise | noisy] of data from N(mean, std²)."""

    def predict(noisy, step):
        time = step / FLOW_STEPS
        variance = jnp.square(time * std) + jnp.square(1 - time)
        gain = (time * jnp.square(std) - (1 - time)) / variance
        return mean + gain * (noisy - time * mean)

    return predict


EPSILON, VELOCITY = best_epsilon(MEAN, STD), best_velocity(MEAN, STD)
SAMPLERS = {
    "ddpm": lambda noise, key: ddpm_sample(SCHEDULE, EPSILON, noise, key, clip=False),
    "ddim, all": lambda noise, _: ddim_sample(SCHEDULE, EPSILON, noise, range(99, -1, -1)),
    "ddim, 16": lambda noise, _: ddim_sample(SCHEDULE, EPSILON, noise, ddim_steps(SCHEDULE, 16)),
    "flow, 100": lambda noise, _: flow_sample(VELOCITY, noise, 100),
}


def normal(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_schedule_equals_the_formula():
    """ᾱ(t) = f(t + 1) / f(0) until the cap of 0.999 on β bites, which it does in the last step."""
    f = lambda t: np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    alphas = f(np.arange(1, 100)) / f(0)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod[:-1], alphas, rtol=1e-6)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod[-1], alphas[-1] * 0.001, rtol=1e-4)
    np.testing.assert_allclose(SCHEDULE.betas[-1], 0.999, rtol=1e-7)
    betas = 1 - alphas / np.array([1, *alphas[:-1]])
    np.testing.assert_allclose(SCHEDULE.betas[:-1], betas, rtol=1e-4)
    assert SCHEDULE.steps == 100


def test_noise_added_at_once_is_distributed_as_noise_added_step_by_step():
    chain = jnp.full(SAMPLES, 0.7)
    for step in range(60):
        beta = SCHEDULE.betas[step]
        chain = jnp.sqrt(1 - beta) * chain + jnp.sqrt(beta) * normal(SAMPLES, step)
    once = add_noise(SCHEDULE, 0.7, normal(SAMPLES, 100), 59)
    assert stats.ks_2samp(chain, once).pvalue > 0.01
    alpha = float(SCHEDULE.alphas_cumprod[59])
    marginal = stats.norm(0.7 * np.sqrt(alpha), np.sqrt(1 - alpha))
    assert stats.kstest(np.asarray(once), marginal.cdf).pvalue > 0.01


@pytest.mark.parametrize("step", [0, 50, 98])
def test_removing_what_was_added(step):
    clean, noise = normal((4, 3)), normal((4, 3), 1)
    noisy = add_noise(SCHEDULE, clean, noise, step)
    got = remove_noise(SCHEDULE, noisy, noise, step)
    np.testing.assert_allclose(got, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", [1, 2, 50, 99])
def test_the_posterior_is_the_product_of_two_gaussians(step):
    """p(x_{t-1} | x_t, x_0) ~ N(x_t; sqrt(1 - β_t) x_{t-1}, β_t) N(x_{t-1}; sqrt(ᾱ) x_0, 1 - ᾱ)."""
    clean, noisy = np.array([0.3, -0.8]), np.array([1.2, 0.4])
    beta = float(SCHEDULE.betas[step])
    alpha = float(SCHEDULE.alphas_cumprod[step - 1])
    precision = (1 - beta) / beta + 1 / (1 - alpha)
    expected = np.sqrt(1 - beta) * noisy / beta + np.sqrt(alpha) * clean / (1 - alpha)
    mean, variance = posterior(SCHEDULE, clean, noisy, step)
    np.testing.assert_allclose(mean, expected / precision, rtol=1e-3)
    np.testing.assert_allclose(variance, 1 / precision, rtol=1e-3)


def test_before_the_first_step_the_sample_is_clean():
    mean, variance = posterior(SCHEDULE, jnp.array([0.3, -0.8]), jnp.array([1.2, 0.4]), 0)
    np.testing.assert_allclose(mean, [0.3, -0.8], rtol=1e-3)
    assert variance == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_gaussian_data_have_the_mean_and_deviation_that_the_steps_lead_to(name):
    """Every step is linear: it maps N(., v) to N(., a² v + b), from v = 1 to nearly the data's."""
    expected = {
        "ddpm": lambda: deviation(range(99, -1, -1), ddpm=True),
        "ddim, all": lambda: deviation(range(99, -1, -1)),
        "ddim, 16": lambda: deviation(ddim_steps(SCHEDULE, 16)),
        "flow, 100": lambda: STD,
    }[name]()
    np.testing.assert_allclose(expected, STD, rtol=0.3)
    keys = jax.random.split(jax.random.key(1), SAMPLES)
    got = np.asarray(jax.jit(jax.vmap(SAMPLERS[name]))(normal((SAMPLES, 2)), keys))
    np.testing.assert_allclose(got.mean(0), MEAN, atol=4 * STD.max() / np.sqrt(SAMPLES))
    np.testing.assert_allclose(got.std(0), expected, rtol=0.05)  # 4.5 standard errors


def deviation(steps, ddpm=False):
    """Of what a sampler returns for data from N(MEAN, STD²) and the best network."""
    alphas = np.append(np.asarray(SCHEDULE.alphas_cumprod, np.float64), 1.0)
    variance, added = np.ones(2), 0.0
    for step, following in zip(steps, [*steps[1:], -1], strict=True):
        now, then = alphas[step], alphas[following]
        marginal = now * STD.astype(float) ** 2 + 1 - now
        clean, noise = np.sqrt(now) * STD**2 / marginal, np.sqrt(1 - now) / marginal
        gain = np.sqrt(then) * clean + np.sqrt(1 - then) * noise
        if ddpm:
            beta = 1 - now / then
            gain = (np.sqrt(then) * beta * clean + np.sqrt(1 - beta) * (1 - then)) / (1 - now)
            added = beta * (1 - then) / (1 - now)
        variance = gain**2 * variance + added
    return np.sqrt(variance)


@pytest.fixture(scope="module")
def diffusers():
    """What data_diffusers/make.py stored of diffusers' schedulers."""
    with np.load(Path(__file__).parent / "data_diffusers" / "reference.npz") as arrays:
        return dict(arrays)


def wrong(noisy, step):
    """As in data_diffusers/make.py: its estimates of clean samples leave [-1, 1] often."""
    return 0.6 * noisy + 0.3 * jnp.sin(3 * noisy + 0.1 * step)


def test_the_schedule_is_that_of_diffusers(diffusers):
    np.testing.assert_allclose(SCHEDULE.betas, diffusers["betas"], rtol=1e-4)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod, diffusers["alphas_cumprod"], rtol=1e-4)
    noisy = jax.vmap(lambda *args: add_noise(SCHEDULE, *args))(
        diffusers["start"], diffusers["noise"][0], jnp.array([0, 33, 66, 99])
    )
    np.testing.assert_allclose(noisy, diffusers["noisy"], atol=1e-5)


@pytest.mark.parametrize("count", [4, 16])
def test_ddim_is_that_of_diffusers(diffusers, count):
    steps = ddim_steps(SCHEDULE, count)
    np.testing.assert_array_equal(steps, diffusers[f"ddim_steps_{count}"])
    got = jax.jit(lambda start: ddim_sample(SCHEDULE, wrong, start, steps))(diffusers["start"])
    np.testing.assert_allclose(got, diffusers[f"ddim_{count}"], atol=1e-4)


def test_ddpm_is_that_of_diffusers_with_the_same_noise(diffusers, monkeypatch):
    monkeypatch.setattr(jax.random, "split", lambda key, count: diffusers["noise"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: key)
    got = ddpm_sample(SCHEDULE, wrong, diffusers["start"], None)
    np.testing.assert_allclose(got, diffusers["ddpm"], atol=1e-4)


@pytest.mark.parametrize("steps", [(75, 50, 25, 0), ddim_steps(SCHEDULE, 16)])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_equals_its_equation(steps, clip):
    """In double precision, with a network that is wrong, so that estimates are clipped."""
    predict = lambda xp, noisy, step: 0.6 * noisy + 0.3 * xp.sin(3 * noisy + step)
    x = np.asarray(normal((5, 3)), np.float64)
    start = jnp.asarray(x, jnp.float32)
    f = lambda t: np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) ** 2 / f0
    f0 = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    for step, following in zip(steps, [*steps[1:], -1], strict=True):
        noise, now, then = predict(np, x, step), f(step + 1), f(following + 1)
        clean = (x - np.sqrt(1 - now) * noise) / np.sqrt(now)
        clean = clean.clip(-1, 1) if clip else clean
        x = np.sqrt(then) * clean + np.sqrt(1 - then) * noise
    sample = jax.jit(
        lambda s: ddim_sample(SCHEDULE, lambda *a: predict(jnp, *a), s, steps, clip=clip)
    )
    np.testing.assert_allclose(sample(start), x, rtol=2e-3, atol=2e-3)


def test_ddim_is_deterministic_in_any_batch():
    sample = jax.jit(jax.vmap(SAMPLERS["ddim, all"], (0, None)))
    noise = normal((8, 2))
    np.testing.assert_array_equal(sample(noise, None), sample(noise, None))
    np.testing.assert_allclose(sample(noise, None)[:3], sample(noise[:3], None), rtol=1e-5)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "flow"])
def test_one_datum_is_what_every_sampler_returns(method):
    datum = jnp.array([[0.3, -1.0], [1.0, 0.0]])
    epsilon, velocity = best_epsilon(datum, 0.0), lambda x, t: (datum - x) / (1 - t / FLOW_STEPS)
    noise = normal((2, 2))
    got = {
        "ddpm": lambda: ddpm_sample(SCHEDULE, epsilon, noise, jax.random.key(2)),
        "ddim": lambda: ddim_sample(SCHEDULE, epsilon, noise, (99, 30, 0)),
        "flow": lambda: flow_sample(velocity, noise, 5),
    }[method]()
    np.testing.assert_allclose(got, datum, atol=2e-3)


def test_a_warm_start_keeps_what_noise_has_not_hidden():
    """At the last step nearly all of the earlier sample, less of it the earlier the start."""
    earlier = MEAN + 3 * STD
    distance = {}
    for first in (0, 25, 75):
        start = add_noise(SCHEDULE, earlier, normal((SAMPLES, 2)), first)
        steps = range(first, -1, -1)
        sample = jax.vmap(lambda s, steps=steps: ddim_sample(SCHEDULE, EPSILON, s, steps))
        distance[first] = np.abs(sample(start).mean(0) - earlier) / STD
    assert np.all(distance[0] < 0.2)
    assert np.all(distance[0] < distance[25])
    assert np.all(distance[25] < distance[75])


def test_the_losses_of_the_best_networks():
    """The variance that remains. Noise: the mean over t of ᾱ s² / (ᾱ s² + 1 - ᾱ). Velocity: the
    integral over τ of s² / (τ² s² + (1 - τ)²), which is s π / 2.
    """
    keys = jax.random.split(jax.random.key(3), 20_000)
    clean = MEAN + STD * normal((len(keys), 2))
    alpha = np.asarray(SCHEDULE.alphas_cumprod, np.float64)[:, None]
    expected = np.mean(alpha * STD**2 / (alpha * STD**2 + 1 - alpha))
    loss = jax.vmap(lambda *args: epsilon_loss(SCHEDULE, EPSILON, *args))(clean, keys)
    np.testing.assert_allclose(loss.mean(), expected, rtol=0.05)
    loss = jax.vmap(lambda *args: flow_loss(VELOCITY, *args))(clean, keys)
    np.testing.assert_allclose(loss.mean(), np.mean(STD) * np.pi / 2, rtol=0.1)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(4, (75, 50, 25, 0)), (1, (0,)), (3, (66, 33, 0)), (100, tuple(range(99, -1, -1)))],
)
def test_ddim_steps(count, expected):
    assert ddim_steps(SCHEDULE, count) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_cosine(0), "steps must be at least 1, got 0"),
        (lambda: ddim_steps(SCHEDULE, 101), r"must be in 1 .. 100, got 101"),
        (lambda: ddim_steps(SCHEDULE, 0), r"must be in 1 .. 100, got 0"),
        (lambda: flow_sample(VELOCITY, MEAN, 0), "must be at least 1, got 0"),
        *(
            (lambda s=steps: ddim_sample(SCHEDULE, EPSILON, MEAN, s), "must fall, in 0 .. 99, got")
            for steps in ((), (0, 50), (50, 50, 0), (100, 0), (50, -1))
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
def test_a_small_unet_learns_two_chunks_by_their_conditions(objective):
    time = jnp.linspace(0, 3, 8)[:, None]
    chunks = 0.8 * jnp.stack([jnp.sin(time), jnp.cos(time)])
    conditions = jnp.eye(2)
    unet = ConditionalUNet1D((16, 32))
    network = lambda params, c: lambda x, t: unet.apply(params, x, t, c)
    params = jax.jit(unet.init)(jax.random.key(0), chunks[0], 0, conditions[0])
    updates = 800
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, updates))

    def loss(params, clean, condition, key):
        if objective == "flow":
            return flow_loss(network(params, condition), clean, key)
        return epsilon_loss(SCHEDULE, network(params, condition), clean, key)

    def update(carry, key):
        params, state = carry
        batch = jnp.arange(32) % 2
        each = jax.vmap(loss, (None, 0, 0, 0))
        mean = lambda p: each(p, chunks[batch], conditions[batch], jax.random.split(key, 32)).mean()
        change, state = optimiser.update(jax.grad(mean)(params), state)
        return (optax.apply_updates(params, change), state), None

    def sample(params, condition):
        if objective == "flow":
            return flow_sample(network(params, condition), normal((8, 1), 5), 16)
        steps = ddim_steps(SCHEDULE, 16)
        return ddim_sample(SCHEDULE, network(params, condition), normal((8, 1), 5), steps)

    carry = params, optimiser.init(params)
    keys = jax.random.split(jax.random.key(1), updates)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, keys))(carry)
    got = jax.jit(jax.vmap(sample, (None, 0)))(params, conditions)
    np.testing.assert_allclose(got, chunks, atol=0.1)
