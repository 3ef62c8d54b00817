"""DofbotReacher: hold a marker on the gripper at goal after goal."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs import scenery
from envs.robots import dofbot
from jaxrobo.env import Metric, PhysicsEnv, Spec, State
from jaxrobo.physics import PhysicsState
from jaxrobo.physics.kinematics import Chain, inverse
from jaxrobo.physics.rotations import quat_conjugate, quat_multiply
from jaxrobo.policy import Policy, scripted

JOINT_LIMITS = np.array([math.pi / 2, *[math.pi / 4] * 3, math.pi / 2])
"""The task moves each joint within +- this, rad; narrower than the robot's own limits."""

OBJECT_OFFSET = (0.0, 0.015, 0.1)
"""The marker relative to link5, in world axes at the zero pose, m."""

_PROFILES = {"isaac": math.inf, "servo": dofbot.SERVO_SPEED}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `DofbotReacher`; the defaults are those of the original's `DofbotReacher.yaml`.

    Attributes:
      profile: "isaac", the drive as the original simulates it: a first-order lag whose speed
        nothing limits; or "servo", the URDF's 1 rad/s.
      velocity_cap: joint speed limit in rad/s instead of the profile's.
      episode_steps: control steps an episode lasts. The original's episodeLength of 600 times out
        at a progress of 599.
      success_tolerance: a goal is reached within this distance, m.
      distance_scale: weight of the distance in the reward, 1/m.
      action_scale: weight of the squared action in the reward.
      goal_bonus: reward of a reached goal.
      relative_control: actions move the target instead of setting it.
      speed_scale: how far, with `relative_control`: rad/s at an action of 1.
      moving_average: weight of the new target against the previous one; 1 doesn't smooth.
      reset_noise: an episode starts within this share of the joint limits.
      upstream_lag: restores the original's order of events (see `DofbotReacher`).
    """

    profile: Literal["isaac", "servo"] = "isaac"
    velocity_cap: float | None = None
    episode_steps: int = 599
    success_tolerance: float = 0.05
    distance_scale: float = -10.0
    action_scale: float = -2e-4
    goal_bonus: float = 250.0
    relative_control: bool = False
    speed_scale: float = 20.0
    moving_average: float = 1.0
    reset_noise: float = 0.2
    upstream_lag: bool = False

    def __post_init__(self) -> None:
        if self.profile not in _PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}; valid: {', '.join(_PROFILES)}")
        if not 0 < self.moving_average <= 1:
            raise ValueError(f"moving_average must be in (0, 1], got {self.moving_average}")
        for name in ("episode_steps", "success_tolerance", "speed_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class DofbotReacher(PhysicsEnv):
    """Reach one goal after another with a marker 10 cm beyond the wrist of a Dofbot arm.

    Re-implements the task of OmniIsaacGymEnvs-DofbotReacher in its URDF mode (five joints): joint
    position targets at 60 Hz, two physics steps of 8.3 ms each; goals in four columns of 5 x 5 x 20
    cm around the base; `-10 * distance - 2e-4 * |action|^2 + 250 * reached` a step. A reached goal
    is replaced by a new one and the episode goes on. `metrics["goals"]` counts them.

    Observation `[26]`, clipped to +-5: joint positions scaled by the task's limits (5), 0.2 * joint
    velocities (5), goal position (3) and orientation (4), marker's orientation relative to the
    goal's (4), last action (5). Quaternions are wxyz. Action `[5]`: targets, scaled to the task's
    limits.

    Different from the original, on purpose:
      - Reward, success and the relative orientation use the pose after the step. The original uses
        the one from before it, and shows a new goal one step late; `upstream_lag=True` restores
        both. (It also rewards the first step of an episode by the last pose of the episode before;
        that isn't restored.)
      - The end of the time is a truncation that learners may bootstrap from; the original doesn't
        tell.
      - 26 numbers are observed and 5 controlled; the original pads them to 29 and 6.
      - The links have a realistic mass and the drives 1/100 of the original's gains, which leaves
        its lag of 0.0506 s (see `envs.robots.dofbot`); there is gravity, which sags the arm by less
        than 0.5 mrad.
      - The speed limit of the URDF, which PhysX doesn't enforce, is a choice (`profile`,
        `velocity_cap`).
      - Relative control, broken upstream for five joints, works, with the control step of 16.6 ms.
    """

    metric = Metric("goals", "count")

    def __init__(
        self, config: Config | None = None, engine: str = "auto", threads: int | None = None
    ) -> None:
        self.config = config or Config()
        cap = self.config.velocity_cap
        cap = _PROFILES[self.config.profile] if cap is None else cap
        model, visual_model = _models(cap, self.config.success_tolerance)
        super().__init__(
            model, substeps=2, engine=engine, threads=threads, visual_model=visual_model
        )
        self._marker = self.mj_model.site("marker").id
        self._hand = self.mj_model.body("link5").id
        self._limits = jnp.asarray(JOINT_LIMITS)
        self.chain = Chain.from_model(self.mj_model, tip="marker")

    @property
    def action_size(self) -> int:
        """Five joints."""
        return len(JOINT_LIMITS)

    @property
    def observation_spec(self) -> Spec:
        """26 numbers."""
        return Spec((26,))

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Starts near the zero pose, with a first goal."""
        key, pose_key, goal_key = jax.random.split(key, 3)
        noise = jax.random.uniform(pose_key, (5,), minval=-1.0, maxval=1.0)
        q = self.config.reset_noise * self._limits * noise
        pos, quat = sample_goal(goal_key)
        data = self.physics.init(
            qpos=q, ctrl=q, mocap_pos=pos[None], mocap_quat=quat[None], model=model
        )
        info = {
            "key": key,
            "goal_pos": pos,
            "goal_quat": quat,
            "goal_reached": jnp.zeros((), bool),
            "last_action": jnp.zeros(5),
        }
        metrics = dict.fromkeys(("goals", *(f"reward/{k}" for k in _REWARDS)), jnp.zeros(()))
        no = jnp.zeros((), bool)
        obs = self._observe(data, self._marker_quat(data), info)
        return State(data, obs, jnp.zeros(()), jnp.zeros(()), no, no, metrics, info)

    def step(self, state: State, action: jax.Array) -> State:
        """Moves the joint targets, and replaces the goal if it's reached."""
        lag = self.config.upstream_lag
        key, goal_key = jax.random.split(state.info["key"])
        info = {**state.info, "key": key}
        if lag:
            info = _new_goal(info, goal_key)
        action = jnp.clip(action, -1.0, 1.0)
        inputs = {
            "ctrl": self._target(state.data.ctrl, action),
            "mocap_pos": info["goal_pos"][None],
            "mocap_quat": info["goal_quat"][None],
        }
        data, _ = self.physics.step(state.data, inputs, self.substeps)
        judged = state.data if lag else data
        reached = self._success(judged, info)
        rewards = self._reward(judged, info, action, reached)
        info = {**info, "last_action": action, "goal_reached": reached}
        if not lag:
            info = _new_goal(info, goal_key)
        metrics = {"goals": reached.astype(jnp.result_type(float))}
        metrics |= {f"reward/{k}": v for k, v in rewards.items()}
        return state.replace(
            data=data,
            obs=self._observe(data, self._marker_quat(judged), info),
            reward=sum(rewards.values()),
            done=jnp.zeros(()),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            metrics={**state.metrics, **metrics},
            info=info,
        )

    def _target(self, previous: jax.Array, action: jax.Array) -> jax.Array:
        """Joint targets, rad, from an action in [-1, 1]."""
        c = self.config
        target = self._limits * action
        if c.relative_control:
            target = previous + c.speed_scale * self.dt * action
        target = c.moving_average * target + (1 - c.moving_average) * previous
        return jnp.clip(target, -self._limits, self._limits)

    def _reward(
        self, data: PhysicsState, info: dict[str, Any], action: jax.Array, reached: jax.Array
    ) -> dict[str, jax.Array]:
        c = self.config
        return {
            "distance": c.distance_scale * self._distance(data, info),
            "action": c.action_scale * jnp.sum(jnp.square(action)),
            "goal": c.goal_bonus * reached,
        }

    def _observe(
        self, data: PhysicsState, marker_quat: jax.Array, info: dict[str, Any]
    ) -> jax.Array:
        relative = quat_multiply(marker_quat, quat_conjugate(info["goal_quat"]))
        parts = (
            data.qpos / self._limits,
            0.2 * data.qvel,
            info["goal_pos"],
            info["goal_quat"],
            relative,
            info["last_action"],
        )
        return jnp.clip(jnp.concatenate(parts), -5.0, 5.0)

    def _success(self, data: PhysicsState, info: dict[str, Any]) -> jax.Array:
        return self._distance(data, info) <= self.config.success_tolerance

    def _distance(self, data: PhysicsState, info: dict[str, Any]) -> jax.Array:
        return jnp.linalg.norm(data.site_xpos[self._marker] - info["goal_pos"])

    def _marker_quat(self, data: PhysicsState) -> jax.Array:
        return data.xquat[self._hand]

    def expert(self) -> Policy:
        """Commands the joint angles that put the marker on the goal.

        Solves inverse kinematics at every step from two poses bent towards the goal: descent from
        where the arm happens to be may end folded against the limits. That finds a solution for the
        99.7 % of goals that are within reach.

        Raises:
          ValueError: with `relative_control`.
        """
        if self.config.relative_control:
            raise ValueError("the expert commands absolute targets; relative_control must be off")
        chain = self.chain.replace(lower=-self._limits, upper=self._limits)

        def act(carry: tuple, state: State, key: jax.Array) -> tuple[jax.Array, tuple]:
            del key
            goal = state.info["goal_pos"]
            solve = lambda q0: inverse(chain, goal, q0=q0, iterations=20)
            found = jax.vmap(solve)(_bent_towards(goal))
            return found.q[jnp.argmin(found.pos_error)] / self._limits, carry

        return scripted(act)


_REWARDS = ("distance", "action", "goal")


def sample_goal(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A goal position `[3]` in one of the four columns, m, and an orientation `[4]`, wxyz.

    With u uniform in (-1, 1): x and y are `0.05 u + 0.15 sign(u)`, z is `|0.2 u| + 0.15`; the
    orientation is a turn by `pi u` about x after one about y (`reset_target_pose` of the original).
    """
    u = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    xy = 0.05 * u[:2] + 0.15 * jnp.where(u[:2] < 0, -1.0, 1.0)
    pos = jnp.append(xy, jnp.abs(0.2 * u[2]) + 0.15)
    cx, cy = jnp.cos(jnp.pi / 2 * u[3:])
    sx, sy = jnp.sin(jnp.pi / 2 * u[3:])
    return pos, jnp.stack([cx * cy, sx * cy, cx * sy, sx * sy])


def _bent_towards(pos: jax.Array) -> jax.Array:
    """Poses `[2, 5]` that bend at the wrist, and at the shoulder, towards a point.

    The arm bends forwards (-y) or, for what is behind it, over its back.
    """
    way = jnp.where(pos[1] < 0, 1.0, -1.0)
    base = jnp.arctan2(way * pos[0], jnp.abs(pos[1]))
    wrist = jnp.stack([base, 0.0, 0.0, 0.7 * way, 0.0])
    shoulder = jnp.stack([base, 0.7 * way, 0.0, 0.0, 0.0])
    return jnp.stack([wrist, shoulder])


def _new_goal(info: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Replaces a goal that was reached."""
    pos, quat = sample_goal(key)
    reached = info["goal_reached"]
    return {
        **info,
        "goal_pos": jnp.where(reached, pos, info["goal_pos"]),
        "goal_quat": jnp.where(reached, quat, info["goal_quat"]),
    }


_CUBE, _RED = 0.0125, (0.92, 0.18, 0.20)


def _models(velocity_cap: float, tolerance: float) -> tuple[mujoco.MjModel, mujoco.MjModel]:
    """The arm with the marker, the goal as a mocap body, and around it a ball of the tolerance.

    Nothing collides, so the first model, that of the physics, has no geoms: their poses would take
    an eighth of the time. The second has the looks as well.
    """
    spec = dofbot.load(velocity_cap)
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    hand = data.body("link5").xmat.reshape(3, 3)
    box = mujoco.mjtGeom.mjGEOM_BOX
    spec.body("link5").add_site(
        name="marker",
        type=box,
        pos=hand.T @ OBJECT_OFFSET,
        size=[_CUBE] * 3,
        rgba=[0.10, 0.45, 0.95, 1.0],
    )
    goal = spec.worldbody.add_body(name="goal", mocap=True)
    goal.add_geom(type=box, size=[_CUBE] * 3, rgba=[*_RED, 1.0], contype=0, conaffinity=0)
    goal.add_site(name="tolerance", size=[tolerance] * 3, rgba=[*_RED, 0.15])
    spec.compiler.discardvisual = True
    model = spec.copy().compile()
    spec.compiler.discardvisual = False
    scenery.furnish(spec, target=[0.0, 0.0, 0.18], eye=[0.78, -0.45, 0.5])
    return model, spec.compile()
