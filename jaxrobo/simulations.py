"""Many simulations under a policy: in one program, or stepped from the host (`HostEnv`)."""

import jax

from jaxrobo import host
from jaxrobo.env import Env, HostEnv
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import RolloutState, Transition
from jaxrobo.rollout import rollout as rollout_one
from jaxrobo.rollout import start as start_one


def start(env: Env, policy: Policy, key: jax.Array, num_envs: int) -> RolloutState:
    """The beginning of an episode in each simulation, `[num_envs, ...]`; pure.

    Raises:
      ValueError: if the simulator has another number of simulations.
      TypeError: if it keeps to itself what the policy reads.
    """
    if isinstance(env, HostEnv):
        check_num_envs(env, num_envs)
        return host.start(env, policy, key)
    return jax.vmap(lambda k: start_one(env, policy, k))(jax.random.split(key, num_envs))


def check_num_envs(env: HostEnv, num_envs: int) -> None:
    """Raises ValueError if the simulator has another number of simulations."""
    if env.num_envs != num_envs:
        name = type(env).__name__
        raise ValueError(f"num_envs is {num_envs}, but {name} has {env.num_envs} simulations")


def rollout(
    env: Env,
    policy: Policy,
    params: Params,
    states: RolloutState,
    steps: int,
    auto_reset: bool = True,
) -> tuple[RolloutState, Transition]:
    """`jaxrobo.rollout.rollout` in all simulations: the states, and transitions `[steps, N, ...]`.

    Pure, unless the environment is a `HostEnv`.
    """
    if isinstance(env, HostEnv):
        return host.rollout(env, policy, params, states, steps, auto_reset)
    run = lambda state: rollout_one(env, policy, params, state, steps, auto_reset=auto_reset)
    return jax.vmap(run, out_axes=(0, 1))(states)
