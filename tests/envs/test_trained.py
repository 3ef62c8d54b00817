"""The policies that come with the library."""

import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
from envs import trained
from experiments import train
from jaxrobo.rollout import rollout, start


def make(name):
    policy = trained.POLICIES[name]
    return envs.make(policy.env, "native", **policy.options)


@pytest.mark.parametrize("name", trained.POLICIES)
def test_a_policy_reaches_goals_where_it_was_trained(name):
    """In 100 steps, 32 arms reach about as many as they were said to."""
    env = make(name)
    policy, params = trained.load(name, env)

    @jax.jit
    def goals(params, keys):
        states = jax.vmap(lambda key: start(env, policy, key))(keys)
        run = lambda state: rollout(env, policy, params, state, 100)[1]
        return jax.vmap(run)(states).episode["goals"][:, -1]

    reached = np.mean(goals(params, jax.random.split(jax.random.key(0), 32)))
    assert reached > 0.5 * trained.POLICIES[name].goals * 100 / env.time_limit


@pytest.mark.parametrize("name", trained.POLICIES)
def test_its_command_trains_what_it_is_for(name):
    policy = trained.POLICIES[name]
    words = shlex.split(policy.command)
    assert words[:3] == ["python", "-m", "experiments.train"]
    _, task, _ = train.parse(words[3:])
    assert task == envs.config_class(policy.env)(**policy.options)
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
