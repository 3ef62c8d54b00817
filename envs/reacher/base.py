"""What all reacher tasks share: hold a marker on the hand at goal after goal."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import mujoco

from envs import scenery
from envs.reacher.arm import Arm
from envs.reacher.expert import greedy
from jaxrobo.env import Env, Metric, PhysicsEnv, Spec, State
from jaxrobo.physics import PhysicsState
from jaxrobo.physics.kinematics import Chain
from jaxrobo.physics.rotations import quat_conjugate, quat_multiply
from jaxrobo.policy import Policy
from jaxrobo.randomise import Latency, ObservationNoise, Randomise, Uniform

PROFILES = ("isaac", "servo")

_Range = tuple[float, float]

_NOT_OF_TASK = {"of_task": False}
_SCALES = {
    "stiffness_scale": "actuator_gainprm",
    "damping_scale": "dof_damping",
    "mass_scale": "body_mass",
}
"""Options, and the model fields that they vary."""


def _range(low: float, high: float) -> Any:
    return dataclasses.field(default=(low, high), metadata=_NOT_OF_TASK)


@dataclasses.dataclass(frozen=True)
class ReacherConfig:
    """Options of every reacher task; the defaults are those of the original's `DofbotReacher.yaml`.

    The options from `stiffness_scale` on randomise what an episode is like: lower and upper bounds
    of a uniform draw for every episode, which `envs.make` puts into effect.

    Attributes:
      profile: "isaac", the drive as the original simulates it: a first-order lag whose speed
        nothing limits; or "servo", limited to the robot's own speeds.
      velocity_cap: joint speed limit in rad/s instead of the profile's.
      episode_steps: control steps an episode lasts. The original's episodeLength of 600 times out
        at a progress of 599.
      success_tolerance: a goal is reached within this distance, m.
      distance_scale: weight of the distance in the reward, 1/m.
      action_scale: weight of the squared action in the reward.
      goal_bonus: reward of a reached goal.
      relative_control: actions move the target instead of setting it.
      speed_scale: how far, with `relative_control`: rad/s at an action of 1.
      moving_average: weight of the new target against the previous one; 1 doesn't smooth. Targets
        that `relative_control` moves are never smoothed.
      reset_noise: an episode starts within this share of the joint limits.
      upstream_lag: restores the original's order of events (see `Reacher`).
      upstream_quirks: restores what makes the original another learning problem (see `Reacher`).
      stiffness_scale: factor on the position gain of each drive; above 1, its lag is shorter.
      damping_scale: factor on the damping of each drive; above 1, its lag is longer, and its speed
        limit lower.
      mass_scale: factor on the mass and inertia of each link.
      action_latency: control steps by which actions act late, whole numbers.
      observation_latency: control steps by which observations are late, whole numbers.
      observation_noise: standard deviation of the noise on each number that is observed.
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
    reset_noise: float = dataclasses.field(default=0.2, metadata=_NOT_OF_TASK)
    upstream_lag: bool = False
    upstream_quirks: bool = False
    stiffness_scale: _Range = _range(1.0, 1.0)
    damping_scale: _Range = _range(1.0, 1.0)
    mass_scale: _Range = _range(1.0, 1.0)
    action_latency: tuple[int, int] = _range(0, 0)
    observation_latency: tuple[int, int] = _range(0, 0)
    observation_noise: _Range = _range(0.0, 0.0)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}; valid: {', '.join(PROFILES)}")
        if not 0 < self.moving_average <= 1:
            raise ValueError(f"moving_average must be in (0, 1], got {self.moving_average}")
        for name in ("episode_steps", "success_tolerance", "speed_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in _SCALES:
            if not 0 < getattr(self, name)[0] <= getattr(self, name)[1]:
                raise ValueError(f"{name} must be 0 < low <= high, got {getattr(self, name)}")
        for name in ("action_latency", "observation_latency", "observation_noise"):
            if not 0 <= getattr(self, name)[0] <= getattr(self, name)[1]:
                raise ValueError(f"{name} must be 0 <= low <= high, got {getattr(self, name)}")


class Reacher(PhysicsEnv):
    """Reach one goal after another with a marker on the hand of an arm of n driven joints.

    Re-implements `tasks/shared/reacher.py` of OmniIsaacGymEnvs-DofbotReacher, which its siblings
    for UR10, Kuka and Hiwin share: joint position targets at 60 Hz, two physics steps of 8.3 ms
    each; `distance_scale * distance + action_scale * |action|^2 + goal_bonus * reached` a step. A
    reached goal is replaced by a new one and the episode goes on.

    `metrics["goals"]` counts goals; `metrics["final_distance"]` adds up to the last distance, m,
    and `metrics["action_change"]` to how far actions went to and fro, as a mean over the joints.

    Observation `[3 n + 11]`, clipped to +-5: joint positions scaled by the task's limits (n), 0.2 *
    joint velocities (n), goal position (3) and orientation (4), marker's orientation relative to
    the goal's (4), last action (n). Quaternions are wxyz. Action `[n]`: targets, scaled to the
    task's limits and smoothed by `moving_average`, or with `relative_control` how they move.

    Different from the original, on purpose; `upstream_quirks=True` restores the first three:
      - Reward, success and the relative orientation use the pose after the step. The original uses
        the one from before it, and shows a new goal one step late. `upstream_lag=True` restores
        these two alone. (It also rewards the first step of an episode by the last pose of the
        episode before; that isn't restored.)
      - The sixth joint obeys the sixth action. The original holds it in the middle of its range,
        and takes the sixth action, in the observation and the reward too, for 0.
      - An episode and its targets start within the task's joint limits; the original's start at a
        share of them (`reset_noise`) even where 0 isn't between them.
      - The end of the time is a truncation that learners may bootstrap from; the original doesn't
        tell. Whether it does is the learner's choice (`truncation_as_done` of PPO).
      - The links have a mass and the drives a finite strength, which leaves the original's lag (see
        the robots); there is gravity, which sags the arms by less than 0.5 mrad.
      - The speed limit of the robots, which PhysX doesn't enforce, is a choice (`profile`,
        `velocity_cap`).
      - Relative control moves by the control step of 16.6 ms, not by 1/60 s.
    """

    metric = Metric("goals", "count", ("length_per_goal", "final_distance", "action_change"))

    def __init__(self, arm: Arm, config: ReacherConfig, engine: str, threads: int | None) -> None:
        self.config = config
        self.arm = arm
        model, visual_model = _models(arm, config)
        super().__init__(
            model, substeps=2, engine=engine, threads=threads, visual_model=visual_model
        )
        self._marker = self.mj_model.site("marker").id
        self._hand = self.mj_model.body(arm.hand).id
        self._middle, self._limits = jnp.asarray(arm.middle), jnp.asarray(arm.reach)
        self._lower, self._upper = jnp.asarray(arm.limits).T
        self._lag = config.upstream_lag or config.upstream_quirks
        self._pinned = arm.pinned if config.upstream_quirks else None
        self.chain = Chain.from_model(self.mj_model, tip="marker")

    @property
    def action_size(self) -> int:
        """One number a joint."""
        return len(self.arm.limits)

    @property
    def observation_spec(self) -> Spec:
        """`3 n + 11` numbers."""
        return Spec((3 * self.action_size + 11,))

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Starts near the zero pose, with a first goal."""
        key, pose_key, goal_key = jax.random.split(key, 3)
        q = self._start(pose_key)
        pos, quat = self.arm.goals.sample(goal_key)
        data = self.physics.init(
            qpos=q,
            ctrl=q,
            mocap_pos=pos[None],
            mocap_quat=quat[None],
            model=model,
        )
        info = {
            "key": key,
            "goal_pos": pos,
            "goal_quat": quat,
            "goal_reached": jnp.zeros((), bool),
            "last_action": jnp.zeros(self.action_size),
            "distance": jnp.zeros(()),
        }
        names = ("goals", "final_distance", "action_change", *(f"reward/{k}" for k in _REWARDS))
        metrics = dict.fromkeys(names, jnp.zeros(()))
        no = jnp.zeros((), bool)
        obs = self._observe(data, self._marker_quat(data), info)
        return State(data, obs, jnp.zeros(()), jnp.zeros(()), no, no, metrics, info)

    def step(self, state: State, action: jax.Array) -> State:
        """Moves the joint targets, and replaces the goal if it's reached."""
        key, goal_key = jax.random.split(state.info["key"])
        info = {**state.info, "key": key}
        if self._lag:
            info = self._new_goal(info, goal_key)
        action = jnp.clip(action, -1.0, 1.0)
        if self._pinned is not None:
            action = action.at[self._pinned].set(0.0)
        inputs = {
            "ctrl": self._target(state.data.ctrl, action),
            "mocap_pos": info["goal_pos"][None],
            "mocap_quat": info["goal_quat"][None],
        }
        data, _ = self.physics.step(state.data, inputs, self.substeps)
        judged = state.data if self._lag else data
        distance = self._distance(judged, info)
        reached = distance <= self.config.success_tolerance
        rewards = self._reward(distance, action, reached)
        metrics = {
            "goals": reached.astype(jnp.result_type(float)),
            "final_distance": distance - info["distance"],
            "action_change": jnp.mean(jnp.abs(action - info["last_action"])),
            **{f"reward/{k}": v for k, v in rewards.items()},
        }
        info = {**info, "last_action": action, "goal_reached": reached, "distance": distance}
        if not self._lag:
            info = self._new_goal(info, goal_key)
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

    def expert(self) -> Policy:
        """A scripted expert, `envs.reacher.expert.greedy`.

        Raises:
          ValueError: with `relative_control`.
        """
        if self.config.relative_control:
            raise ValueError("the expert commands absolute targets; relative_control must be off")
        limits = self.arm.limits.copy()
        if self._pinned is not None:
            limits[self._pinned] = self.arm.middle[self._pinned]
        lower, upper = jnp.asarray(limits[self.chain.dof_adr]).T
        chain = self.chain.replace(lower=lower, upper=upper)
        m = self.mj_model
        lag = m.dof_damping / m.actuator_gainprm[:, 0]
        return greedy(self.arm, chain, lag, self.config.moving_average)

    def _start(self, key: jax.Array) -> jax.Array:
        """Joint positions at the start of an episode, rad."""
        noise = jax.random.uniform(key, self._limits.shape, minval=-1.0, maxval=1.0)
        q = self.config.reset_noise * self._limits * noise
        q = self.config.reset_noise * self._middle + q
        return q if self.config.upstream_quirks else jnp.clip(q, self._lower, self._upper)

    def _target(self, previous: jax.Array, action: jax.Array) -> jax.Array:
        """Joint targets, rad, from an action in [-1, 1]."""
        c = self.config
        if c.relative_control:
            target = previous + c.speed_scale * self.dt * action
        else:
            target = self._middle + self._limits * action
            target = c.moving_average * target + (1 - c.moving_average) * previous
        return jnp.clip(target, self._lower, self._upper)

    def _reward(
        self, distance: jax.Array, action: jax.Array, reached: jax.Array
    ) -> dict[str, jax.Array]:
        c = self.config
        return {
            "distance": c.distance_scale * distance,
            "action": c.action_scale * jnp.sum(jnp.square(action)),
            "goal": c.goal_bonus * reached.astype(distance.dtype),
        }

    def _observe(
        self, data: PhysicsState, marker_quat: jax.Array, info: dict[str, Any]
    ) -> jax.Array:
        relative = quat_multiply(marker_quat, quat_conjugate(info["goal_quat"]))
        parts = (
            (data.qpos - self._middle) / self._limits,
            0.2 * data.qvel,
            info["goal_pos"],
            info["goal_quat"],
            relative,
            info["last_action"],
        )
        return jnp.clip(jnp.concatenate(parts), -5.0, 5.0)

    def _distance(self, data: PhysicsState, info: dict[str, Any]) -> jax.Array:
        return jnp.linalg.norm(data.site_xpos[self._marker] - info["goal_pos"])

    def _marker_quat(self, data: PhysicsState) -> jax.Array:
        return data.xquat[self._hand]

    def _new_goal(self, info: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Replaces a goal that was reached."""
        pos, quat = self.arm.goals.sample(key)
        reached = info["goal_reached"]
        return {
            **info,
            "goal_pos": jnp.where(reached, pos, info["goal_pos"]),
            "goal_quat": jnp.where(reached, quat, info["goal_quat"]),
        }


_REWARDS = ("distance", "action", "goal")


def randomised(env: Env, config: ReacherConfig) -> Env:
    """The environment with the randomisation that the options ask for."""
    scales = {field: getattr(config, name) for name, field in _SCALES.items()}
    fields = {field: Uniform(*span) for field, span in scales.items() if span != (1, 1)}
    if fields:
        env = Randomise(env, fields)
    if any((*config.action_latency, *config.observation_latency)):
        env = Latency(env, config.action_latency, config.observation_latency)
    if any(config.observation_noise):
        env = ObservationNoise(env, *config.observation_noise)
    return env


_BLUE, _RED = (0.10, 0.45, 0.95), (0.92, 0.18, 0.20)


def _models(arm: Arm, config: ReacherConfig) -> tuple[mujoco.MjModel, mujoco.MjModel]:
    """The arm with the marker, the goal as a mocap body, and around it a ball of the tolerance.

    Nothing collides, so the first model, that of the physics, has no geoms: their poses would take
    an eighth of the time. The second has the looks as well.
    """
    cap = config.velocity_cap
    if cap is None:
        cap = arm.max_speed if config.profile == "servo" else math.inf
    spec = arm.load(cap)
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    hand = data.body(arm.hand).xmat.reshape(3, 3)
    box = mujoco.mjtGeom.mjGEOM_BOX
    size = [arm.cube] * 3
    marker = spec.body(arm.hand).add_site(name="marker", type=box, pos=hand.T @ arm.marker)
    marker.size, marker.rgba = size, [*_BLUE, 1.0]
    goal = spec.worldbody.add_body(name="goal", mocap=True)
    goal.add_geom(type=box, size=size, rgba=[*_RED, 1.0], contype=0, conaffinity=0)
    ball = goal.add_site(name="tolerance", size=[config.success_tolerance] * 3)
    ball.rgba = [*_RED, 0.15]
    spec.compiler.discardvisual = True
    model = spec.copy().compile()
    spec.compiler.discardvisual = False
    scenery.furnish(spec, target=arm.target, eye=arm.eye)
    return model, spec.compile()
