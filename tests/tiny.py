"""An environment known in closed form, and an algorithm that is quick to compile."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrobo.env import Env, Metric, Spec, State, TimeLimit
from jaxrobo.learning.trainer import Trainer
from jaxrobo.policy import Policy
from jaxrobo.rollout import RolloutState, rollout, start


class Draw(Env):
    """Each episode draws u from [0, 1) and lasts 1 + floor(4 u) steps, which pay u + action.

    It's a success if its last step pays at least 1/2.
    """

    metric = Metric("success")

    def reset(self, key, model=None):
        u = jax.random.uniform(key)
        no = jnp.zeros((), bool)
        data = {"u": u, "step": jnp.zeros((), jnp.int32), "empty": jnp.zeros((0, 2))}
        metrics = {"success": jnp.zeros(())}
        return State(data, u[None], jnp.zeros(()), jnp.zeros(()), no, no, metrics)

    def step(self, state, action):
        u, step = state.data["u"], state.data["step"] + 1
        over = step > 4 * u
        return state.replace(
            data={**state.data, "step": step},
            reward=u + action[0],
            done=over.astype(jnp.float32),
            terminated=over,
            metrics={"success": (over & (u + action[0] >= 0.5)).astype(jnp.float32)},
        )

    @property
    def action_size(self):
        return 1

    @property
    def observation_spec(self):
        return Spec((1,))


@struct.dataclass
class TrainState:
    key: jax.Array
    params: dict[str, jax.Array]
    rollout: RolloutState


def make_trainer(rate: float = 0.1, inputs: Any = (), horizon: int = 8) -> Trainer:
    """A random walk of `w`, whose policy acts by `clip(w u)`; all of the state has a say in it."""
    env, num_envs = TimeLimit(Draw(), 8), 2

    def act(params, carry, observation, key):
        return jnp.clip(params["w"] * observation, -1, 1), carry, {}

    policy = Policy(act)

    def init(key, inputs):
        key, env_key = jax.random.split(key)
        rollouts = jax.vmap(lambda k: start(env, policy, k))(jax.random.split(env_key, num_envs))
        return TrainState(key, {"w": jnp.zeros(())}, rollouts)

    def collect(state, inputs):
        run = lambda s: rollout(env, policy, state.params, s, horizon)
        rollouts, batch = jax.vmap(run)(state.rollout)
        return state.replace(rollout=rollouts), batch

    def update(state, batch, inputs):
        key, noise_key = jax.random.split(state.key)
        w = state.params["w"] + rate * (batch.reward.mean() + jax.random.normal(noise_key))
        done = batch.terminated
        length = jnp.sum(jnp.where(done, batch.episode["length"], 0)) / done.sum()
        metrics = {"w": w, "nothing": jnp.nan, "episode/length": length}
        return state.replace(key=key, params={"w": w}), metrics

    def step(state, inputs):
        return update(*collect(state, inputs), inputs)

    return Trainer(
        init=init,
        collect=collect,
        update=update,
        step=jax.jit(step, donate_argnums=0),
        act=lambda deterministic: policy,
        learned=lambda state: state.params,
        inputs=inputs,
        env=env,
        config={"rate": rate, "horizon": horizon},
        steps_per_iteration=num_envs * horizon,
    )
