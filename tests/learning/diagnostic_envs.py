"""Environments without physics whose values, best actions and paths are known in closed form."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxrobo.env import Env, Spec, State, TimeLimit


def first_state(data, obs, metrics=()):
    no = jnp.zeros((), bool)
    metrics = dict.fromkeys(metrics, jnp.zeros(()))
    return State(data, obs, jnp.zeros(()), jnp.zeros(()), no, no, metrics, {})


class OneStep(Env):
    """Every episode is one step: the reward is a function of the observation and the action.

    Args:
      reward: `(obs, action) -> reward`.
      draw: `key -> obs`, an array or a dict of arrays.
    """

    time_limit = 1

    def __init__(self, reward, draw=lambda key: jnp.zeros(1)):
        self._reward, self._draw = reward, draw

    action_size = 1

    @property
    def observation_spec(self):
        obs = jax.eval_shape(self._draw, jax.random.key(0))
        return jax.tree.map(lambda x: Spec(x.shape), obs)

    def reset(self, key, model=None):
        del model
        return first_state((), self._draw(key))

    def step(self, state, action):
        yes = jnp.ones((), bool)
        reward = self._reward(state.obs, action)
        return state.replace(reward=reward, done=jnp.ones(()), terminated=yes)


class Corridor(Env):
    """`length` steps; the last one is rewarded with 1. The observation is the position."""

    action_size = 1
    observation_spec = Spec((1,))

    def __init__(self, length):
        self.time_limit = length
        self._length = length

    def reset(self, key, model=None):
        del key, model
        return first_state(jnp.zeros(()), jnp.zeros(1))

    def step(self, state, action):
        del action
        position = state.data + 1
        over = position >= self._length
        reward = over.astype(jnp.float32)
        return state.replace(
            data=position, obs=position[None], reward=reward, done=reward, terminated=over
        )


class Endless(Env):
    """A reward of 1 a step, for ever."""

    action_size = 1
    observation_spec = Spec((1,))

    def reset(self, key, model=None):
        del key, model
        return first_state((), jnp.ones(1))

    def step(self, state, action):
        del action
        no = jnp.zeros((), bool)
        return state.replace(reward=jnp.ones(()), done=jnp.zeros(()), terminated=no, truncated=no)


def endless(steps):
    """`Endless`, cut every `steps` steps."""
    return TimeLimit(Endless(), steps)


@struct.dataclass
class WalkData:
    """Where the walker is, and how far from the origin it falls off. [], []"""

    x: jax.Array
    edge: jax.Array


class Walk(Env):
    """A walk on a line, `x <- x + 0.5 a`, that ends beyond an edge; a reset draws `x`.

    The observation is `[x, edge]`, the reward `x`, the metric "moved" `|a|`. The edge is 1, or the
    field "edge" of the model.
    """

    action_size = 1
    observation_spec = Spec((2,))

    def reset(self, key, model=None):
        x = jax.random.uniform(key, minval=-0.5, maxval=0.5)
        edge = jnp.asarray((model or {}).get("edge", 1.0))
        return first_state(WalkData(x, edge), jnp.stack([x, edge]), ["moved"])

    def step(self, state, action):
        x, edge = state.data.x + 0.5 * action[0], state.data.edge
        over = jnp.abs(x) > edge
        return state.replace(
            data=WalkData(x, edge),
            obs=jnp.stack([x, edge]),
            reward=x,
            done=over.astype(jnp.float32),
            terminated=over,
            truncated=jnp.zeros((), bool),
            metrics={**state.metrics, "moved": jnp.abs(action[0])},
        )
