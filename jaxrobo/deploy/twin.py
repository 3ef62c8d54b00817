"""The simulated robot whose joints the real one follows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.env import Env
from jaxrobo.policy import Params, Policy


class Twin:
    """One simulation under a policy that goes on for ever.

    The real robot is sent the simulated joint angles, neither the policy's actions nor its targets,
    as in `sim2real` of OmniIsaacGymEnvs-DofbotReacher: so the policy sees what it saw in training,
    and the robot does what the simulated one does, as fast as it's allowed to.

    Attributes:
      state: of the simulation.
      metric: the sum of the task's metric so far.
      dt: seconds that a step simulates.
    """

    def __init__(self, env: Env, policy: Policy, params: Params, key: jax.Array) -> None:
        """Starts an episode without an end, and compiles its step.

        Args:
          env: of any wrappers; only the environment inside is used, which must have physics.
          policy: what acts.
          params: its parameters.
          key: draws the start, and all that is random later.
        """
        env, self._policy, self._params = env.unwrapped, policy, params
        key, reset_key, init_key = jax.random.split(key, 3)
        self.state = jax.jit(env.reset)(reset_key)
        self.metric, self.dt, self._steps = 0.0, env.dt, 0
        self._carry = policy.init(policy.observe(self.state), init_key)
        name = env.metric.name

        def plan(params: Params, state: Any, carry: Any, key: jax.Array) -> tuple:
            key, plan_key = jax.random.split(key)
            return policy.plan(params, carry, policy.observe(state), plan_key), key

        def step(params: Params, state: Any, carry: Any, key: jax.Array) -> tuple:
            key, act_key = jax.random.split(key)
            action, carry, _ = policy.act(params, carry, policy.observe(state), act_key)
            state = env.step(state, jnp.clip(action, -1.0, 1.0))  # as rollouts do
            return state, carry, key, state.data.qpos, state.metrics[name]

        self._key = key
        example = params, self.state, self._carry, key
        self._plan = jax.jit(plan).lower(*example).compile()
        self._step = jax.jit(step).lower(*example).compile()
        jax.block_until_ready(self._step(*example))  # the engine starts its threads

    @property
    def pose(self) -> np.ndarray:
        """The joint angles now, `[n]`, rad."""
        return np.asarray(self.state.data.qpos)

    def step(self) -> np.ndarray:
        """Acts for one control step, and returns the joint angles, `[n]`, rad."""
        if self._steps % self._policy.period == 0:
            self._carry, self._key = self._plan(self._params, self.state, self._carry, self._key)
        self._steps += 1
        self.state, self._carry, self._key, pose, metric = self._step(
            self._params, self.state, self._carry, self._key
        )
        self.metric += float(metric)
        return np.asarray(pose)
