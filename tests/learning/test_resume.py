"""Every algorithm goes on bit for bit where it was stopped, and only with what it learned from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data, metrics, training
from jaxrobo.learning import bc, diffusion_bc, residual_ppo
from jaxrobo.training import RunError, restore_policy
from tests.learning.diagnostic_envs import Aim, aiming

pytestmark = pytest.mark.usefixtures("cache")
ENV = Aim()
SMALL = dict(horizon=2, action_horizon=2, batch=4, gradient_steps=2, warmup_steps=1, decay_steps=16)


@pytest.fixture(scope="module")
def demos():
    return data.collect(ENV, aiming(), (), 8)


def make(algo, demos):
    """A tiny trainer. Of demonstrations for the base policy too."""
    if algo == "bc":
        return bc.make(ENV, demos, bc.Config(**SMALL, hidden=(8,), ema_decay=0.5))
    if algo == "diffusion_bc":
        options = SMALL | {"widths": (8,), "sampling_steps": 1, "ema_decay": 0.5}
        return diffusion_bc.make(ENV, demos, diffusion_bc.Config(**options))
    base = make("bc", demos)
    policy, params = base.policy(base.init(jax.random.key(1), base.inputs))
    config = residual_ppo.Config(num_envs=2, horizon=4, epochs=2, minibatches=1, hidden=(8,))
    return residual_ppo.make(ENV, residual_ppo.Base(policy, params, params["normaliser"]), config)


def run(trainer, run_dir, iterations, **options):
    steps = trainer.steps_per_iteration
    budget = {"steps": iterations * steps, "evaluate_every": 2 * steps}
    return training.run(
        trainer, run_dir, **budget, evaluation_episodes=4, test_episodes=4, **options
    )


def bits(tree):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(x)).tobytes() for x in jax.tree.leaves(tree)]


def rows(run_dir):
    """The log without what depends on the clock."""
    lines = (run_dir / metrics.JSONL).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("algo", ["bc", "diffusion_bc", "residual_ppo"])
def test_a_run_goes_on_bitwise_and_refuses_other_sources(algo, demos, tmp_path):
    trainer = make(algo, demos)
    whole = run(trainer, tmp_path / "whole", 4)
    run(trainer, tmp_path / "half", 2)
    other = make(algo, demos.replace(action=0.9 * demos.action))
    with pytest.raises(RunError, match=r"half was started with other inputs \(a data set, a froz"):
        run(other, tmp_path / "half", 4, resume=True)
    resumed = run(make(algo, demos), tmp_path / "half", 4, resume=True)
    assert bits(resumed.state) == bits(whole.state)
    assert bits(resumed.params) == bits(whole.params)
    assert resumed.evaluation == whole.evaluation
    assert rows(tmp_path / "half") == rows(tmp_path / "whole")
    _, params = restore_policy(tmp_path / "half", trainer)
    assert bits(params) == bits(whole.params)
    first = trainer.init(jax.random.key(0), trainer.inputs)
    assert bits(first.params) != bits(resumed.state.params)  # something was learned


def test_two_seeds_of_a_residual_policy_share_a_base(demos, tmp_path):
    trainer = make("residual_ppo", demos)
    run(trainer, tmp_path, 1, seeds=2)
    policies = [restore_policy(tmp_path, trainer, "last", seed)[1] for seed in (0, 1)]
    assert bits(policies[0]["base"]) == bits(policies[1]["base"]) == bits(trainer.inputs.params)
    assert bits(policies[0]["residual"]) != bits(policies[1]["residual"])
