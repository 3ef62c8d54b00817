"""A scripted expert of the reacher tasks: greedy inverse kinematics."""

import jax
import jax.numpy as jnp
import numpy as np

from envs.reacher.arm import Arm
from jaxrobo.env import State
from jaxrobo.physics.kinematics import Chain, inverse
from jaxrobo.policy import Policy, scripted

RESPONSE = 0.051
"""The expert makes up for a drive's lag as far as it's longer than this, s: the Dofbot's isn't."""

_ITERATIONS = 20

_STARTS = 15
"""Postures, besides the current one, from which solutions are looked for."""

_OFF = 100.0
"""A solution that is off by 1 cm is as bad as one that takes a lag longer, 1/m."""

_AT_LIMIT = 0.02
"""Keeps the time to a limit, which a drive approaches for ever, finite, rad."""


def greedy(arm: Arm, chain: Chain, lag: np.ndarray, moving_average: float) -> Policy:
    """Commands the joint angles that put the marker on the goal.

    Solves inverse kinematics at every step from several postures, as descent from where the arm
    happens to be may end folded against the limits. Then makes up for what slows the arm, as far as
    the limits, at which targets are clipped, allow: for the moving average; and for a lag longer
    than `RESPONSE`, by a target beyond the goal.

    Args:
      arm: the robot and its task.
      chain: its joints up to the marker, with the limits within which solutions are looked for.
      lag: of each drive, s. [n]
      moving_average: weight of a new target.
    """
    beyond = jnp.maximum(jnp.asarray(lag) / RESPONSE - 1.0, 0.0)
    middle, reach = jnp.asarray(arm.middle), jnp.asarray(arm.reach)

    def act(carry: tuple, state: State, key: jax.Array) -> tuple[jax.Array, tuple]:
        del key
        q = state.data.qpos
        aim = middle.at[chain.dof_adr].set(_solve(arm, chain, state.info["goal_pos"], q))
        target = jnp.clip(aim + beyond * (aim - q), middle - reach, middle + reach)
        command = (target - (1 - moving_average) * state.data.ctrl) / moving_average
        return jnp.clip((command - middle) / reach, -1.0, 1.0), carry

    return scripted(act)


def _solve(arm: Arm, chain: Chain, goal: jax.Array, q: jax.Array) -> jax.Array:
    """Angles of the chain's joints that put the marker on the goal, rad.

    Of the solutions found, the best; of equals, the one that the arm is soonest at (unless the arm
    has postures of its own to start from).
    """
    solve = jax.vmap(lambda q0: inverse(chain, goal, q0=q0, iterations=_ITERATIONS))
    if arm.postures is not None:
        found = solve(arm.postures(goal))
        return found.q[jnp.argmin(found.pos_error)]
    q = q[chain.dof_adr]
    spread = np.random.default_rng(0).random((_STARTS, len(chain.joint_names)))
    found = solve(jnp.vstack([q, chain.lower + spread * (chain.upper - chain.lower)]))
    lower, upper = jnp.asarray(arm.limits[chain.dof_adr]).T
    travel = jax.vmap(lambda to: jnp.max(_time(q, to, lower, upper)))(found.q)
    return found.q[jnp.argmin(_OFF * found.pos_error + travel)]


def _time(q: jax.Array, to: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """How long each joint takes at best, in lags.

    That is with the target at the limit L ahead: `log((L - q) / (L - to))`.
    """
    limit = jnp.where(to > q, upper, lower)
    return jnp.log((jnp.abs(limit - q) + _AT_LIMIT) / (jnp.abs(limit - to) + _AT_LIMIT))
