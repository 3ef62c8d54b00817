"""A run that learns from data goes on bit for bit where it was stopped, and only with these data.

tests/experiments/test_refine.py shows the same of residual PPO.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data, metrics, training
from jaxrobo.learning import bc, diffusion_bc
from jaxrobo.training import RunError, restore_policy
from tests.learning.diagnostic_envs import Aim, aiming

pytestmark = pytest.mark.usefixtures("cache")
ENV = Aim()
SMALL = dict(horizon=2, action_horizon=2, batch=4, gradient_steps=2, warmup_steps=1, decay_steps=16)


@pytest.fixture(scope="module")
def demos():
    return data.collect(ENV, aiming(), (), 8)


def mlp(demos):
    return bc.make(ENV, demos, bc.Config(**SMALL, hidden=(8,), ema_decay=0.5))


def diffusion(demos):
    config = diffusion_bc.Config(**SMALL, widths=(8,), sampling_steps=2, warm_start=1)
    return diffusion_bc.make(ENV, demos, config)


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


@pytest.mark.parametrize("make", [mlp, diffusion])
def test_a_run_goes_on_bitwise_and_refuses_other_demonstrations(make, demos, tmp_path):
    trainer = make(demos)
    whole = run(trainer, tmp_path / "whole", 4)
    run(trainer, tmp_path / "half", 2)
    other = make(demos.replace(action=0.9 * demos.action))
    with pytest.raises(RunError, match=r"half was started with other inputs \(a data set, a froz"):
        run(other, tmp_path / "half", 4, resume=True)
    resumed = run(make(demos), tmp_path / "half", 4, resume=True)
    assert bits(resumed.state) == bits(whole.state)
    assert bits(resumed.params) == bits(whole.params)
    assert resumed.evaluation == whole.evaluation
    assert rows(tmp_path / "half") == rows(tmp_path / "whole")
    _, params = restore_policy(tmp_path / "half", trainer)
    assert bits(params) == bits(whole.params)
    first = trainer.init(jax.random.key(0), trainer.inputs)
    assert bits(first.params) != bits(resumed.state.params)  # something was learned
