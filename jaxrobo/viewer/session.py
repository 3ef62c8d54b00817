"""What goes on behind the page: many simulations under a policy, one of them in somebody's hands.

Everything here is a pure function of a `Session`; no time passes, and nothing is shown.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrobo.env import Env, PhysicsEnv
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import RolloutState, restart, rollout, start
from jaxrobo.viewer.shapes import Part, poses

NOBODY = -1
"""The simulation taken over if none is."""

GOAL = "goal_pos"
"""The entry of `State.info`, `[3]` in m, that makes a goal one to drag."""

GOAL_BODY = "goal"
"""The body, if there is one, that is drawn at the goal."""

TIP = "marker"
"""The site whose distance from the goal is shown."""


@struct.dataclass
class Session:
    """`n` simulations.

    Attributes:
      rollout: each simulation under the policy. [n, ...]
      action: what each did last. [n, action_size]
      taken: the one that is taken over, or `NOBODY`. []
      manual: what that one does instead of what the policy says, in [-1, 1]. [action_size]
      steps: control steps since the start. []
    """

    rollout: RolloutState
    action: jax.Array
    taken: jax.Array
    manual: jax.Array
    steps: jax.Array


class Abilities(NamedTuple):
    """What can be done by hand in an environment.

    Attributes:
      joints: names of the joints that an action commands one by one; empty if actions are something
        else, and no simulation can be taken over.
      goals: there is a goal to drag.
    """

    joints: tuple[str, ...]
    goals: bool


@struct.dataclass
class Frame:
    """What a page shows of `n` simulations of `k` parts.

    Attributes:
      pos: where the parts' bodies are in the simulations' own coordinates, m. [n, k, 3]
      quat: how they're turned, wxyz. [n, k, 4]
      goal: positions of the goals, m; None if there are none. [n, 3]
      distance: of each tip from its goal, m; None if there's no such thing. [n]
      reward: of the last step. [n]
      episode: sums over the running episodes, as `RolloutState.episode` has them. [n]
      taken: see `Session`. []
      manual: see `Session`. [action_size]
    """

    pos: jax.Array
    quat: jax.Array
    goal: jax.Array | None
    distance: jax.Array | None
    reward: jax.Array
    episode: dict[str, jax.Array]
    taken: jax.Array
    manual: jax.Array


def abilities(env: Env) -> Abilities:
    """What can be done by hand in an environment.

    Raises:
      ValueError: if the environment has no MuJoCo model, and nothing can be shown.
    """
    if not isinstance(env.unwrapped, PhysicsEnv):
        raise ValueError(f"{type(env.unwrapped).__name__} can't be shown: it has no MuJoCo model")
    model = env.mj_model
    driven = ()
    if env.action_size == model.nu and _position_actuators(model).all():
        driven = tuple(model.joint(i).name for i in model.actuator_trnid[:, 0])
    info = jax.eval_shape(env.reset, jax.random.key(0)).info
    return Abilities(driven, GOAL in info)


def begin(env: Env, policy: Policy, num_envs: int, key: jax.Array) -> Session:
    """Starts `num_envs` simulations, none of them taken over.

    Raises:
      ValueError: if `num_envs` isn't positive.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    keys = jax.random.split(key, num_envs)
    return Session(
        rollout=jax.vmap(lambda k: start(env, policy, k))(keys),
        action=jnp.zeros((num_envs, env.action_size)),
        taken=jnp.asarray(NOBODY),
        manual=jnp.zeros(env.action_size),
        steps=jnp.zeros((), jnp.int32),
    )


def step(env: Env, policy: Policy, params: Params, session: Session) -> Session:
    """Advances all simulations by one control step.

    A simulation that is over starts anew when the next plan is due, at once if the policy doesn't
    plan. In one that is taken over the time limit doesn't count.
    """
    due = session.steps % policy.period == 0
    renew = lambda r: _renew(env, policy, params, r)
    state = jax.lax.cond(due, renew, lambda r: r, session.rollout)
    taken = jnp.arange(len(session.action)) == session.taken
    state = state.replace(env=_without_clock(state.env, taken))
    by_hand = _by_hand(policy)

    def advance(state: RolloutState, taken: jax.Array) -> Any:
        given = (params, taken, session.manual)
        return rollout(env, by_hand, given, state, 1, auto_reset=False)

    state, transition = jax.vmap(advance)(state, taken)
    return session.replace(
        rollout=state,
        action=jnp.clip(transition.action[:, 0], -1.0, 1.0),
        manual=jnp.zeros_like(session.manual) if _is_relative(env) else session.manual,
        steps=session.steps + 1,
    )


def look(env: Env, looks: list[Part], session: Session) -> Frame:
    """What can be seen and read of all simulations now.

    Goals are drawn where they are, not where the last step left them.
    """
    state = session.rollout.env
    data, goal, distance = state.data, state.info.get(GOAL), None
    body = mujoco.mj_name2id(env.mj_model, mujoco.mjtObj.mjOBJ_BODY, GOAL_BODY)
    tip = mujoco.mj_name2id(env.mj_model, mujoco.mjtObj.mjOBJ_SITE, TIP)
    if goal is not None and body >= 0:
        data = data.replace(xpos=data.xpos.at[:, body].set(goal))
    if goal is not None and tip >= 0:
        distance = jnp.linalg.norm(data.site_xpos[:, tip] - goal, axis=-1)
    pos, quat = poses(looks, data)
    return Frame(
        pos=pos,
        quat=quat,
        goal=goal,
        distance=distance,
        reward=state.reward,
        episode=session.rollout.episode,
        taken=session.taken,
        manual=session.manual,
    )


def take_over(env: Env, session: Session, index: int) -> Session:
    """Takes over a simulation, which goes on with its last action, or stands still if that moves.

    Raises:
      ValueError: if there's no such simulation.
    """
    check(session, index)
    manual = jnp.zeros_like(session.manual) if _is_relative(env) else session.action[index]
    return session.replace(taken=jnp.asarray(index), manual=manual)


def give_back(session: Session) -> Session:
    """Gives what is taken over back to the policy."""
    return session.replace(taken=jnp.asarray(NOBODY))


def nudge(session: Session, joint: int, by: float) -> Session:
    """Adds to one number of the action by hand; does nothing if none is taken over."""
    moved = jnp.clip(session.manual.at[joint].add(by), -1.0, 1.0)
    return session.replace(manual=jnp.where(session.taken == NOBODY, session.manual, moved))


def command(session: Session, joint: int, value: float) -> Session:
    """Sets one number of the action by hand; does nothing if none is taken over."""
    moved = session.manual.at[joint].set(jnp.clip(value, -1.0, 1.0))
    return session.replace(manual=jnp.where(session.taken == NOBODY, session.manual, moved))


def move_goal(session: Session, index: int, pos: jax.Array) -> Session:
    """Moves the goal of a simulation. The policy sees it after the next step.

    Args:
      session: of an environment with a goal.
      index: which simulation.
      pos: where to, in the simulation's own coordinates, m. [3]

    Raises:
      ValueError: if there's no such simulation, or it has no goal.
    """
    check(session, index)
    state = session.rollout.env
    if GOAL not in state.info:
        raise ValueError(f"the goal can't be moved: the environment's info has no {GOAL!r}")
    goals = state.info[GOAL].at[index].set(pos)
    state = state.replace(info={**state.info, GOAL: goals})
    return session.replace(rollout=session.rollout.replace(env=state))


def check(session: Session, index: int) -> None:
    """Raises ValueError if there's no such simulation."""
    if not 0 <= index < len(session.action):
        raise ValueError(f"there is no simulation {index}; valid: 0 to {len(session.action) - 1}")


def _is_relative(env: Env) -> bool:
    """Whether an action moves the joints' targets, instead of setting them."""
    return bool(getattr(getattr(env, "config", None), "relative_control", False))


def _position_actuators(model: mujoco.MjModel) -> np.ndarray:
    """Which actuators pull a joint to the position that they're told: force k (ctrl - q) - ..."""
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 1]
    return (
        (model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT)
        & (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE)
        & (model.actuator_dyntype != mujoco.mjtDyn.mjDYN_INTEGRATOR)
        & (gain != 0)
        & (bias == -gain)
    )


def _renew(env: Env, policy: Policy, params: Params, state: RolloutState) -> RolloutState:
    """Restarts what is over, and makes the next plan."""

    def one(state: RolloutState) -> RolloutState:
        state = restart(env, policy, state)
        key, plan_key = jax.random.split(state.key)
        carry = policy.plan(params, state.carry, policy.observe(state.env), plan_key)
        return state.replace(carry=carry, key=key)

    return jax.vmap(one)(state)


def _by_hand(policy: Policy) -> Policy:
    """Acts by hand where that's wanted; its parameters: the policy's, whether by hand, and how."""

    def act(given: tuple, carry: Any, observation: Any, key: jax.Array) -> tuple:
        params, taken, manual = given
        action, carry, aux = policy.act(params, carry, observation, key)
        return jnp.where(taken, manual, action), carry, aux

    return Policy(act, policy.init, observe=policy.observe)


def _without_clock(state: Any, taken: jax.Array) -> Any:
    """Sets the steps that `TimeLimit` counts back to zero where somebody plays."""
    if "steps" not in state.info:
        return state
    steps = jnp.where(taken, 0, state.info["steps"])
    return state.replace(info={**state.info, "steps": steps})
