"""Residual PPO over bases whose every action is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import bc, diffusion_bc, residual_ppo
from jaxrobo.learning.trainer import over_seeds
from jaxrobo.physics._callback import host_call
from jaxrobo.policy import Policy
from jaxrobo.rollout import rollout, start
from tests.learning.diagnostic_envs import Aim, Walk, aiming, best_aim

KEY = jax.random.key(0)
ENV = Aim()
TINY = residual_ppo.Config(num_envs=4, horizon=4, epochs=1, minibatches=1, hidden=(8,))


@pytest.fixture(scope="module")
def demos():
    return data.collect(ENV, aiming(), (), 40)


@pytest.fixture(scope="module")
def normaliser(demos):
    return data.fit(demos)


def bases(name, demos):
    """A base policy by name, untrained: what it does matters to nobody."""
    small = dict(action_horizon=2, gradient_steps=1, batch=4, decay_steps=1000)
    if name == "script":
        return residual_ppo.Base(aiming(0.3), (), data.fit(demos))
    if name == "mlp":
        trainer = bc.make(ENV, demos, bc.Config(horizon=3, obs_horizon=2, hidden=(8,), **small))
    else:
        config = diffusion_bc.Config(horizon=4, widths=(8,), sampling_steps=1, **small)
        trainer = diffusion_bc.make(ENV, demos, config)
    policy, params = trainer.policy(jax.jit(trainer.init)(KEY, trainer.inputs))
    # The last layer starts near zero; so that it says something:
    params["network"] = jax.tree.map(lambda x: x + 0.1, params["network"])
    return residual_ppo.Base(policy, params, params["normaliser"])


def play(policy, params, steps, episodes=3):
    """Transitions `[episodes, steps, ...]`."""
    run = lambda key: rollout(ENV, policy, params, start(ENV, policy, key), steps)[1]
    return jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(KEY, episodes)))


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["script", "mlp", "diffusion"])
def test_untrained_it_is_its_base(name, demos):
    """Bit for bit, over two episodes of 5 steps, the last of which cuts a plan of 2 short.

    Not jitted: a compiler rounds the same sum differently in different programs.
    """
    base = bases(name, demos)
    trainer = residual_ppo.make(ENV, base, TINY)
    policy, params = trainer.policy(trainer.init(KEY, trainer.inputs))
    assert policy.period == base.policy.period == (1 if name == "script" else 2)
    with jax.disable_jit():
        alone, corrected = play(base.policy, base.params, 12), play(policy, params, 12)
    np.testing.assert_array_equal(corrected.action, alone.action)
    np.testing.assert_array_equal(corrected.obs["place"], alone.obs["place"])
    np.testing.assert_array_equal(corrected.aux["base_action"], alone.action)
    assert not corrected.aux["residual_action"].any()
    assert len(np.unique(alone.action[alone.live])) > 10


def test_its_noise_is_scaled_too(demos, normaliser):
    base = bases("script", demos)
    trainer = residual_ppo.make(ENV, base, dataclasses.replace(TINY, scale=0.3))
    _, params = trainer.policy(trainer.init(KEY, trainer.inputs))
    batch = play(trainer.act(False), params, 10)
    drawn = batch.aux["residual_action"]
    half = (demos.action.max() - demos.action.min()) / 2
    added = batch.action - batch.aux["base_action"]
    np.testing.assert_allclose(added, 0.3 * half * drawn, rtol=1e-3, atol=1e-6)
    assert drawn.std() == pytest.approx(np.exp(-1), rel=0.5)  # of 30


def linear(demos, normaliser, scale, value_bias=0.0, **weights):
    """A linear policy over an expert that misses by 0.3: mean = weights . [place, time, a]."""
    base = residual_ppo.Base(aiming(0.3), (), normaliser)
    config = dataclasses.replace(TINY, scale=scale, hidden=())
    trainer = residual_ppo.make(ENV, base, config)
    state = trainer.init(KEY, trainer.inputs)
    kernel = jnp.array([[weights.get(k, 0.0)] for k in ("place", "time", "action")])
    mean = {"Dense_0": {"kernel": kernel, "bias": jnp.array([weights.get("bias", 0.0)])}}
    params = {"params": {**state.params["params"], "mean": mean}}
    return trainer, state.replace(params=params)


def test_the_correction_is_in_units_of_the_normalised_action(demos, normaliser):
    """By hand: action = base + scale * (largest - smallest demonstrated) / 2 * mean."""
    trainer, state = linear(demos, normaliser, 0.2, bias=1.5, action=-2.0, place=0.5, time=0.25)
    batch = play(*trainer.policy(state), 5)
    low, high = demos.action.min(), demos.action.max()
    middle, half = (low + high) / 2, (high - low) / 2
    base = best_aim(batch.obs["place"], batch.obs["time"]) + 0.3
    small, large = demos.obs["place"].min(), demos.obs["place"].max()
    place = (batch.obs["place"] - (small + large) / 2) / ((large - small) / 2)
    time = batch.obs["time"] / 2 - 1
    mean = 1.5 - 2 * (base - middle) / half + 0.5 * place + 0.25 * time
    np.testing.assert_allclose(batch.aux["base_action"], base, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.aux["residual_action"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.action, base + 0.2 * half * mean, rtol=1e-4, atol=1e-5)


def test_what_it_learns_from_is_what_it_did(demos, normaliser):
    """A first gradient step: the ratio of what is learned from to what was drawn is 1."""
    trainer, state = linear(demos, normaliser, 0.2, bias=0.5, action=-1.0, place=0.5)
    state, batch = jax.jit(trainer.collect)(state, trainer.inputs)
    _, metrics = jax.jit(trainer.update)(state, batch, trainer.inputs)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0
    assert float(metrics["policy_loss"]) == pytest.approx(0, abs=1e-5)  # mean of the advantages
    spread = np.asarray(batch.aux["residual_action"] - batch.aux["mean"])
    assert 0.1 < spread.std() < 1  # exp(-1) = 0.37


def test_a_biased_base_is_corrected(normaliser):
    """It misses by 0.3: -5 * 0.09 an episode, and no success. The best is 0, and always one."""
    base = residual_ppo.Base(aiming(0.3), (), normaliser)
    config = residual_ppo.Config(
        scale=0.5,
        num_envs=32,
        horizon=10,
        epochs=4,
        minibatches=4,
        discount=0.5,
        learning_rate=1e-2,
        critic_learning_rate=1e-2,
        hidden=(16,),
    )
    trainer = residual_ppo.make(ENV, base, config)
    state = trainer.init(KEY, trainer.inputs)
    for _ in range(30):
        state, _ = trainer.step(state, trainer.inputs)
    after = evaluate(ENV, *trainer.policy(state), episodes=32)
    assert after["reward"].mean > -0.01
    assert after["success"].mean > 0.9


# --- when it plans --------------------------------------------------------------------------------


def counting(calls):
    """A base of plans of 2 steps, which acts by 0.01 times their number in the episode.

    The host notes of how many simulations each planning is.
    """

    def note(x):
        calls.append(len(x))
        return (x,)

    def plan(params, carry, obs, key):
        (count,) = host_call(note, [jax.ShapeDtypeStruct((), jnp.float32)], carry + 1)
        return count

    act = lambda params, carry, obs, key: (0.01 * carry[None], carry, {})
    return Policy(act, init=lambda obs, key: jnp.zeros(()), plan=plan, period=2)


def test_it_plans_once_a_period_for_all_seeds_and_simulations_at_once(normaliser):
    """Three seeds of 4 simulations, 8 steps in plans of 2; episodes last 5 and idle for one."""
    calls = []
    base = residual_ppo.Base(counting(calls), (), normaliser)
    config = dataclasses.replace(TINY, horizon=8)
    trainer = over_seeds(residual_ppo.make(ENV, base, config))
    state = trainer.init(jax.random.split(KEY, 3), trainer.inputs)
    _, batch = jax.block_until_ready(jax.jit(trainer.collect)(state, trainer.inputs))
    assert calls == [12] * 4
    planned = np.asarray(batch.aux["base_action"][..., 0]) / 0.01
    expected = np.array([1, 1, 2, 2, 3, 3, 1, 1])[None, :, None]  # [seeds, steps, simulations]
    np.testing.assert_allclose(planned, np.broadcast_to(expected, (3, 8, 4)), rtol=1e-5)
    calls.clear()
    state, _ = jax.block_until_ready(trainer.step(state, trainer.inputs))
    assert calls == [12] * 4  # none to learn from them


# --- refusals -------------------------------------------------------------------------------------


def refit(normaliser, **changes):
    """The normaliser with other widths; None leaves a name out."""
    resize = lambda values: (
        {k: np.ones(n, np.float32) for k, n in changes.items() if n is not None}
        | {k: v for k, v in values.items() if k not in changes}
    )
    return data.Normaliser(resize(normaliser.offset), resize(normaliser.scale))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 3}, "the base policy reads 'colour', which Aim doesn't show"),
        ({"place": None}, "the base policy has no units for 'place', which Aim shows"),
        ({"place": 2}, r"base policy's 'place' has shape \(2,\), expected \(1,\) for Aim"),
        ({"action": 7}, r"base policy's 'action' has shape \(7,\), expected \(1,\) for Aim"),
    ],
)
def test_a_base_of_something_else_is_refused(normaliser, changes, message):
    base = residual_ppo.Base(aiming(), (), refit(normaliser, **changes))
    with pytest.raises(ValueError, match=message):
        residual_ppo.make(ENV, base, TINY)


def test_a_base_of_another_environment_is_refused(normaliser):
    with pytest.raises(ValueError, match=r"reads '(place|time)', which Walk doesn't show"):
        residual_ppo.make(Walk(), residual_ppo.Base(aiming(), (), normaliser), TINY)


def test_a_horizon_that_cuts_plans_is_refused(normaliser):
    base = residual_ppo.Base(counting([]), (), normaliser)
    config = dataclasses.replace(TINY, horizon=5)
    with pytest.raises(ValueError, match="horizon must be a multiple of the 2 steps that a plan"):
        residual_ppo.make(ENV, base, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"action_repeat": 2}, "the base acts in every step: action_repeat must be 1, got 2"),
        ({"shared_trunk": True, "critic_learning_rate": None}, "shared_trunk must be False"),
        ({"minibatches": 3}, r"must divide num_envs \* horizon / action_repeat = 16, got 3"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **options)
