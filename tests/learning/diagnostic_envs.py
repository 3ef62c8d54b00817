"""Environments without physics whose values, best actions and paths are known in closed form."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxrobo.env import Env, Spec, State, TimeLimit
from jaxrobo.physics._callback import host_call
from jaxrobo.policy import scripted


def first_state(data, obs, metrics=()):
    no = jnp.zeros((), bool)
    metrics = dict.fromkeys(metrics, jnp.zeros(()))
    return State(data, obs, jnp.zeros(()), jnp.zeros(()), no, no, metrics, {})


class Tasks(Env):
    """Six tasks in one: every episode draws one of them, and the observation tells which.

    `x` is drawn from +-1, except for "delayed", where it's the number of steps made.
    """

    names = ("constant", "observed", "delayed", "target", "follow", "breaking")
    action_size = 1
    time_limit = 2

    @property
    def observation_spec(self):
        return {"x": Spec((1,)), "task": Spec((6,))}

    @staticmethod
    def observe(task, x):
        return {"x": jnp.reshape(x, 1), "task": jax.nn.one_hot(task, 6)}

    def reset(self, key, model=None):
        del model
        draw = jax.random.randint(key, (), 0, 12)
        task, x = draw // 2, 2.0 * (draw % 2) - 1
        x = jnp.where(task == 2, 0.0, x)
        return first_state((task, x), self.observe(task, x))

    def step(self, state, action):
        """Rewards: 1; x; 0 and then 1; -(a - 0.5)^2; -(a - 0.6 x)^2; the last isn't finite."""
        task, x = state.data
        missed = jnp.square(action[0] - jnp.array([0.5, 0.6 * x]))
        rewards = jnp.array([1.0, x, x, -missed[0], -missed[1], jnp.inf])
        over = (task != 2) | (x == 1)
        obs = self.observe(task, x + 1)
        return state.replace(
            data=(task, x + 1),
            obs={**obs, "x": jnp.where(task == 5, jnp.nan, obs["x"])},
            reward=rewards[task],
            done=over.astype(jnp.float32),
            terminated=over,
            truncated=jnp.zeros((), bool),
        )


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


class Counting(Walk):
    """A walk whose resets call the host, which notes how many simulations each call is for."""

    def __init__(self):
        self.resets = []

    def reset(self, key, model=None):
        state = super().reset(key, model)

        def note(x):
            self.resets.append(len(x))
            return (x,)

        # a function of the state, so that XLA can neither drop nor hoist it
        (x,) = host_call(note, [jax.ShapeDtypeStruct((), jnp.float32)], state.data.x)
        return state.replace(data=state.data.replace(x=x))


class Aim(Env):
    """Five steps at a place x in [-1, 1]; in step t, the action 0.6 x - 0.1 t is best.

    The reward is minus the squared distance from it. The last step's success is to be within 0.05.
    """

    action_size = 1
    observation_spec = {"place": Spec((1,)), "time": Spec((1,))}  # noqa: RUF012
    time_limit = 5

    def reset(self, key, model=None):
        del model
        x = jax.random.uniform(key, minval=-1.0, maxval=1.0)
        return first_state((x, jnp.zeros(())), self.observe(x, 0.0), ["success"])

    @staticmethod
    def observe(x, t):
        return {"place": jnp.reshape(x, 1), "time": jnp.reshape(t, 1).astype(jnp.float32)}

    def step(self, state, action):
        x, t = state.data
        missed = action[0] - best_aim(x, t)
        over = t + 1 >= self.time_limit
        return state.replace(
            data=(x, t + 1),
            obs=self.observe(x, t + 1),
            reward=-jnp.square(missed),
            done=over.astype(jnp.float32),
            truncated=over,
            metrics={**state.metrics, "success": (over & (jnp.abs(missed) < 0.05)) * 1.0},
        )


def best_aim(x, t):
    """The best action in `Aim`."""
    return 0.6 * x - 0.1 * t


def aiming(bias=0.0):
    """An expert of `Aim` that misses by `bias`."""
    return scripted(lambda carry, state, key: (best_aim(*state.data)[None] + bias, carry))
