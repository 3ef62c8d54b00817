"""The policies that come with the library."""

import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
from envs import trained
from experiments import train
from jaxrobo import data
from jaxrobo.rollout import rollout, start


def make(name):
    policy = trained.POLICIES[name]
    return envs.make(policy.env, "native", **policy.options)


@pytest.mark.parametrize("name", trained.POLICIES)
def test_a_policy_reaches_goals_where_it_was_trained(name):
    """64 arms reach as many as they were said to; from step 100 on, as the first goal is far."""
    env = make(name)
    policy, params = trained.load(name, env)

    @jax.jit
    def goals(params, keys):
        states = jax.vmap(lambda key: start(env, policy, key))(keys)
        run = lambda state: rollout(env, policy, params, state, 500)[1]
        return jax.vmap(run)(states).episode["goals"]

    sums = goals(params, jax.random.split(jax.random.key(0), 64))
    rate = np.mean(sums[:, 499] - sums[:, 99]) / 400
    assert rate == pytest.approx(trained.POLICIES[name].goals / env.time_limit, rel=0.15)


@pytest.mark.parametrize("name", trained.POLICIES)
def test_its_command_trains_what_it_is_for(name):
    policy = trained.POLICIES[name]
    words = shlex.split(policy.command)
    assert words[:3] == ["python", "-m", "experiments.train"]
    _, task, _ = train.parse(words[3:])
    own = envs.config_class(policy.env)(**policy.options)
    assert data.task_options(task) == data.task_options(own)
    assert trained.find(policy.env, task) == name
    assert Path(trained.__file__).with_name(f"{name}.npz").stat().st_size < 100_000


def test_other_options_have_no_policy_but_disturbances_may_differ():
    config = envs.config_class("DofbotReacher")
    assert trained.find("DofbotReacher", config(velocity_cap=2.0)) is None
    assert trained.find("PegHole", envs.config_class("PegHole")()) is None
    assert trained.find("DofbotReacher", config(action_latency=(0, 2))) == "dofbot"


def test_what_doesnt_fit_is_refused():
    with pytest.raises(ValueError, match="unknown policy 'dofbots'; valid: dofbot"):
        trained.load("dofbots", make("dofbot"))
    with pytest.raises(ValueError, match="the policy reads 26 numbers of obs"):
        trained.load("dofbot", envs.make("UR10Reacher", "native"))
