"""What all assembly tasks share: the workcell's environment, as robust-rearrangement has it."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.assembly.goals import Pair, assembled, error
from envs.assembly.workcell import OBSTACLE_POS
from envs.robots import panda
from jaxrobo.control import POSE_MODES, differential_ik_target, grip, pose_target
from jaxrobo.env import Metric, PhysicsEnv, Spec, State
from jaxrobo.physics import PhysicsState
from jaxrobo.physics.kinematics import Chain, Pose
from jaxrobo.physics.rotations import (
    matrix_to_quat,
    matrix_to_sixd,
    quat_conjugate,
    quat_multiply,
    quat_rotate,
    wxyz_to_xyzw,
)

CONTROL_RATE = 10.0
"""Hz."""

TAG_POS = np.array([0.3015, 0.0, 0.0])
TAG_QUAT = np.array([0.0, 1.0, 1.0, 0.0]) / np.sqrt(2)
"""The AprilTag in whose frame parts are observed, in the frame of the robot's base: m, wxyz. Its x
axis is the robot's y, its y axis the robot's x, and its z axis points down."""

MAX_OBSERVED = 3.0
"""Observations are clipped to +- this."""


_FINE = np.repeat([1e-4, 2e-3], 3)
"""What is small where a fit is tight: m and rad."""


@dataclasses.dataclass(frozen=True)
class Randomness:
    """How much an episode's start varies; each is drawn uniformly from +- the value.

    Attributes:
      joints: of the arm, rad.
      obstacle: along x and y, m.
      part: of each part along x and y, m.
      yaw: of each part, rad.
    """

    joints: float
    obstacle: float
    part: float
    yaw: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssemblyConfig:
    """Options of every assembly task.

    Attributes:
      action: "pos": actions are poses in the frame of the robot's base; "delta": changes of the
        current one.
      randomness: how much starts vary.
      terminate_on_success: whether the episode ends when all is assembled. If not it goes on,
        without reward, until its time is up.
      perturbation: probability that a part is kicked in a step; the perturbed episodes of the
        original's other tasks have 0.01.
      observe_errors: whether `pair_errors` is observed as well, which says nothing new, but what a
        small network would need long to work out: tenths of a millimetre.
    """

    action: Literal["pos", "delta"] = "pos"
    randomness: Literal["low", "med", "high", "wide"] = "low"
    terminate_on_success: bool = dataclasses.field(default=False, metadata={"of_task": False})
    perturbation: float = dataclasses.field(default=0.0, metadata={"of_task": False})
    observe_errors: bool = False

    def __post_init__(self) -> None:
        for name, valid in (("action", POSE_MODES), ("randomness", ("low", "med", "high", "wide"))):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; valid: {', '.join(valid)}"
                )
        if not 0 <= self.perturbation <= 1:
            raise ValueError(f"perturbation is a probability, got {self.perturbation}")


class AssemblyEnv(PhysicsEnv):
    """A Panda that assembles parts at a table.

    Action `[10]`, ten times a second, clipped to +-1: position of the end effector, m; rotation as
    the first two rows of its matrix; gripper, above zero closed (see `control.grip`). Differential
    inverse kinematics turns the pose into joint targets, which the drives follow with a lag of 0.2
    s.

    With `action="delta"` the pose is a change of the current one (see `control.pose_target`).

    Observation, clipped to +-3: `robot_state` `[16]`, of the end effector in the frame of the
    robot's base: position (3), rotation as 6D (6), linear (3) and angular velocity (3); opening of
    the hand (1). `parts_poses` `[7 (P + 1)]`, in the frame of an AprilTag: position and quaternion,
    **xyzw**, of every part and of the obstacle's front bar. With `observe_errors`, `pair_errors`
    `[6 pairs]` too: how the first part of each pair must still move and turn to meet the second
    (`goals.error`), each number x as sign(x) log(1 + |x| / x0), x0 = 0.1 mm and 2 mrad, not
    clipped.

    Reward: 1 in the step in which a pair is assembled for the first time, whatever becomes of it.
    The episode is a success when all pairs have been; `info["success"]` says so from then on, so
    that what comes after can be masked.

    Of the robot, only the fingertips meet the parts, and their ends the table; nothing of it meets
    the obstacle. In the original all of the fingers, the hand and the arm collide.

    The joint targets are solved with a damping of 0.01 and within the joint limits; the original's
    are neither. Quaternions have the sign that keeps them continuous over an episode.
    """

    metric = Metric("success", beside=("length_of_success",))

    def __init__(
        self,
        models: tuple[mujoco.MjModel, mujoco.MjModel],
        parts: Sequence[str],
        pairs: Sequence[Pair],
        config: AssemblyConfig,
        engine: str,
        threads: int | None,
    ) -> None:
        """Prepares the task.

        Args:
          models: a workcell with the parts, as the physics sees it and as pictures show it.
          parts: bodies of the parts, in the order in which they are observed.
          pairs: what belongs together, by index into `parts`.
          config: the options.
          engine: of the physics.
          threads: of the native engine.
        """
        model, visual_model = models
        substeps = round(1 / (CONTROL_RATE * model.opt.timestep))
        super().__init__(model, substeps, engine, threads, visual_model)
        self.config, self.pairs = config, tuple(pairs)
        self.chain = Chain.from_model(model, tip="panda/ee")
        self._hand = model.site("panda/ee").id
        self._parts = np.array([model.body(name).id for name in parts])
        self._part_qpos = [_first(model.body(name).jntadr, model.jnt_qposadr) for name in parts]
        self._part_dofs = [_first(model.body(name).jntadr, model.jnt_dofadr) for name in parts]
        self._arm = np.array([model.joint(f"panda/{j}").qposadr[0] for j in panda.JOINTS])
        self._fingers = np.array([model.joint(f"panda/{j}").qposadr[0] for j in panda.FINGERS])
        self._width = float(model.jnt_range[model.joint("panda/finger_joint1").id, 1]) * 2
        self._velocity = np.r_[_sensor(model, "ee_linvel"), _sensor(model, "ee_angvel")]

    @abc.abstractmethod
    def _place_parts(self, key: jax.Array) -> Pose:
        """Where the parts start: positions `[P, 3]`, m, and orientations `[P, 4]`, wxyz."""

    @property
    @abc.abstractmethod
    def start_randomness(self) -> Randomness:
        """How much the start varies, by `config.randomness`."""

    @property
    def action_size(self) -> int:
        """A pose of nine numbers, and the gripper."""
        return 10

    @property
    def observation_spec(self) -> dict[str, Spec]:
        """See the class."""
        spec = {
            "robot_state": Spec((16,)),
            "parts_poses": Spec((7 * (len(self._parts) + 1),)),
        }
        errors = {"pair_errors": Spec((6 * len(self.pairs),))}
        return spec | errors if self.config.observe_errors else spec

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Starts near FurnitureBench's pose, with an open hand."""
        key, arm_key, obstacle_key, part_key = jax.random.split(key, 4)
        vary = self.start_randomness
        uniform = lambda k, n: jax.random.uniform(k, (n,), minval=-1.0, maxval=1.0)
        arm = panda.HOME + vary.joints * uniform(arm_key, 7)
        shift = jnp.append(vary.obstacle * uniform(obstacle_key, 2), 0.0)
        parts = self._place_parts(part_key)
        qpos = jnp.asarray(self.mj_model.qpos0, jnp.result_type(float))
        qpos = qpos.at[self._arm].set(arm).at[self._fingers].set(self._width / 2)
        for i, address in enumerate(self._part_qpos):
            if address is not None:
                place = jnp.concatenate([parts.pos[i], parts.quat[i]])
                qpos = qpos.at[address + np.arange(7)].set(place)
        data = self.physics.init(
            qpos=qpos,
            ctrl=jnp.append(arm, panda.GRIP_FORCE),
            mocap_pos=(jnp.array(OBSTACLE_POS) + shift)[None],
            model=model,
        )
        no = jnp.zeros((), bool)
        info = {
            "key": key,
            "last_grip": -jnp.ones(()),
            "assembled": jnp.zeros(len(self.pairs), bool),
            "success": no,
        }
        metrics = {"success": jnp.zeros(())}
        return State(data, self._observe(data), jnp.zeros(()), jnp.zeros(()), no, no, metrics, info)

    def step(self, state: State, action: jax.Array) -> State:
        """Follows the action for a tenth of a second, and looks what is assembled.

        When the episode is over, nothing moves any more.
        """
        key, kick_key = jax.random.split(state.info["key"])
        action = jnp.clip(action, -1.0, 1.0)
        data = state.data
        live = state.done == 0
        if self.config.perturbation:
            data = self._kick(data, kick_key, live)
        ctrl, last_grip = self._control(data, action, state.info["last_grip"])
        data, _ = self.physics.step(data, {"ctrl": ctrl}, self.substeps, live=live)
        now = state.info["assembled"] | self._assembled(data)
        won = jnp.any(now & ~state.info["assembled"])
        success = jnp.all(now)
        first = success & ~state.info["success"]
        over = success if self.config.terminate_on_success else jnp.zeros((), bool)
        number = lambda flag: flag.astype(jnp.result_type(float))
        info = {**state.info, "key": key, "last_grip": last_grip}
        return state.replace(
            data=data,
            obs=self._observe(data),
            reward=number(won),
            done=number(over),
            terminated=over,
            truncated=jnp.zeros((), bool),
            metrics={**state.metrics, "success": number(first)},
            info={**info, "assembled": now, "success": success},
        )

    def hand_pose(self, data: PhysicsState) -> Pose:
        """The end effector in the frame of the robot's base."""
        return Pose(data.site_xpos[self._hand], matrix_to_quat(data.site_xmat[self._hand]))

    def part_pose(self, data: PhysicsState, part: int) -> Pose:
        """A part in the frame of the robot's base."""
        body = self._parts[part]
        return Pose(data.xpos[body], data.xquat[body])

    def opening(self, data: PhysicsState) -> jax.Array:
        """Between the fingertips, m. []."""
        return jnp.sum(data.qpos[self._fingers])

    def _control(
        self, data: PhysicsState, action: jax.Array, last_grip: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Joint targets and the force on the fingers; and what `grip` remembers."""
        target = pose_target(self.config.action, action[:9], self.hand_pose(data))
        joints = differential_ik_target(self.chain, data.qpos[self._arm], target)
        closing, last_grip = grip(last_grip, action[9])
        return jnp.append(joints, -panda.GRIP_FORCE * closing), last_grip

    def _assembled(self, data: PhysicsState) -> jax.Array:
        """Which pairs are together now. [pairs]."""
        poses = [self.part_pose(data, i) for i in range(len(self._parts))]
        return jnp.stack([assembled(p, *poses[p.a], *poses[p.b]) for p in self.pairs])

    def _observe(self, data: PhysicsState) -> dict[str, jax.Array]:
        hand = data.site_xmat[self._hand]
        robot = jnp.concatenate(
            [
                data.site_xpos[self._hand],
                matrix_to_sixd(hand),
                data.sensordata[self._velocity],
                self.opening(data)[None],
            ]
        )
        bar = Pose(data.mocap_pos[0], data.mocap_quat[0])
        parts = [self.part_pose(data, i) for i in range(len(self._parts))]
        poses = jnp.concatenate([in_tag_frame(pose) for pose in (*parts, bar)])
        clip = lambda x: jnp.clip(x, -MAX_OBSERVED, MAX_OBSERVED)
        seen = {"robot_state": clip(robot), "parts_poses": clip(poses)}
        if self.config.observe_errors:
            errors = jnp.stack([error(p, *parts[p.a], *parts[p.b]) for p in self.pairs])
            fine = errors / jnp.asarray(_FINE)
            seen["pair_errors"] = (jnp.sign(fine) * jnp.log1p(jnp.abs(fine))).reshape(-1)
        return seen

    def _kick(self, data: PhysicsState, key: jax.Array, live: jax.Array) -> PhysicsState:
        """Each part gets a sudden speed of up to 0.2 m/s and 2 rad/s now and then.

        The sizes are ours. The original's kick of a table's leg (23 g) at low randomness is up to
        0.2 N for 1/60 s, 0.14 m/s; those of Factory's parts it scales by 0.001, to almost nothing.
        """
        qvel = data.qvel
        for address, part_key in zip(
            self._part_dofs, jax.random.split(key, len(self._part_dofs)), strict=True
        ):
            if address is None:
                continue
            whether, speed, angle, spin = jax.random.uniform(part_key, (4,))
            turn = 2 * jnp.pi * angle
            kick = jnp.zeros(6).at[0].set(jnp.cos(turn)).at[1].set(jnp.sin(turn))
            kick = (0.2 * speed * kick).at[5].set(2.0 * (2 * spin - 1))
            kick = jnp.where(live & (whether < self.config.perturbation), kick, 0.0)
            qvel = qvel.at[address + np.arange(6)].add(kick)
        return data.replace(qvel=qvel)


def in_tag_frame(pose: Pose) -> jax.Array:
    """A pose in the base's frame as it is observed: position and quaternion, xyzw. [7]."""
    inverse = quat_conjugate(jnp.asarray(TAG_QUAT))
    pos = quat_rotate(inverse, pose.pos - TAG_POS)
    return jnp.concatenate([pos, wxyz_to_xyzw(quat_multiply(inverse, pose.quat))])


def _first(joint: np.ndarray, addresses: np.ndarray) -> int | None:
    """Where the coordinates of a body start; None if it doesn't move."""
    return int(addresses[joint[0]]) if joint[0] >= 0 else None


def _sensor(model: mujoco.MjModel, name: str) -> np.ndarray:
    sensor = model.sensor(name)
    return sensor.adr[0] + np.arange(sensor.dim[0])
