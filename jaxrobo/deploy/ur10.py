"""A UR10 (or UR5) through ROS 1 and `ur_robot_driver`.

As in `sim2real/ur10.py` of OmniIsaacGymEnvs-UR10Reacher (commit 8f3ea3f): trajectories of one point
to the scaled position controller, ten times a second. Unlike there, wrist 3 moves too, and no joint
is ever asked to move faster than `speed`, from wherever it is.

ROS is optional and imported when a robot is made: start Python in a shell that has sourced it.
"""

import math
import time
from typing import Any

import numpy as np

from jaxrobo.deploy.arm_server import REFUSED, Safety
from jaxrobo.deploy.robot import Robot, RobotError, leaves

CONTROLLER = "/scaled_pos_joint_traj_controller"

JOINTS = tuple(
    f"{name}_joint"
    for name in ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
)
"""The order of the kinematic chain; ROS sorts them by name."""

LIMITS = tuple(
    (math.radians(lower), math.radians(upper))
    for lower, upper in ((-135, 135), (-180, -60), (0, 180), (-180, 0), (-180, 0), (-180, 180))
)
"""Those of the original's safety variant, rad."""

_PERIOD = 0.1
"""Seconds between trajectories, as in the original."""

_BEHIND = 0.3
"""How far the arm may be behind, rad, or s at speeds above 1 rad/s; it obeys a trajectory late."""

_SENDING = 0.1
"""Seconds that ROS has to send the last trajectory. It sends in a thread of its own, can't be asked
whether it has, and drops what is left when the connection is closed."""


class Ur10(Robot):
    """A connection to the arm; see `Robot`.

    Attributes:
      limited: see `Robot`.
    """

    def __init__(
        self,
        *,
        limits: tuple[tuple[float, float], ...] = LIMITS,
        speed: float = 0.5,
        timeout: float = 2.0,
    ) -> None:
        """Waits until the driver says where the arm is; nothing is sent before.

        Args:
          limits: (lower, upper) of each joint, rad.
          speed: highest speed of a joint, rad/s.
          timeout: seconds without a word from the driver after which it's lost.

        Raises:
          RobotError: if there's no ROS, the driver is silent, or it names its joints otherwise.
          ValueError: if speed or timeout isn't positive.
        """
        for name, value in (("speed", speed), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        self.limited, self._limits = 0, limits
        self._speed, self._timeout, self._sent = speed, timeout, -math.inf
        self._measured: np.ndarray | None = None
        ros, graph, state, self._trajectory, self._point = _ros()
        self._duration = ros.Duration
        if not graph.is_master_online():  # `init_node` would wait for it for ever
            raise RobotError(
                f"no ROS master at {graph.get_master_uri()}: start ur_robot_driver first, or set "
                "ROS_MASTER_URI to where it runs"
            )
        ros.init_node("jaxrobo", anonymous=True, disable_signals=True)
        self._joints, self._heard = set(JOINTS), time.monotonic()
        self._state = ros.Subscriber(f"{CONTROLLER}/state", state, self._listen)
        self._command = ros.Publisher(f"{CONTROLLER}/command", self._trajectory, queue_size=1)
        try:
            while self._measured is None:
                self._check(time.monotonic())
                time.sleep(0.01)
        except BaseException:
            self.close()
            raise
        self._safety = Safety(tuple(self._measured), limits, speed, time.monotonic())

    @property
    def pose(self) -> np.ndarray:
        """See `Robot.pose`: `[6]`."""
        return np.array(self._safety.pose)

    def send(self, q: np.ndarray) -> np.ndarray:
        """See `Robot.send`: `[6]` -> `[6]`."""
        if np.shape(q) != (len(JOINTS),):
            raise ValueError(f"a UR10 has 6 joints, got an array of shape {np.shape(q)}")
        now = time.monotonic()
        self._check(now)
        behind = float(np.max(np.abs(self._safety.pose - self._measured)))
        if not behind <= _BEHIND * max(1.0, self._speed):
            raise RobotError(
                f"the arm doesn't follow, it's {behind:.2f} rad behind: is it stopped, paused or "
                "slowed on the pendant?"
            )
        status = self._safety.command(tuple(map(float, q)), now)
        if status == REFUSED:
            raise RobotError(f"joint angles {np.asarray(q)} aren't finite; the arm holds its pose")
        self.limited += leaves(q, self._limits)
        pose = self._safety.step(now)
        if now - self._sent >= _PERIOD:
            self._publish(pose)
            self._sent = now
        return np.array(pose)

    def stop(self) -> None:
        """See `Robot.stop`: holds where the arm is, not where it was to go; takes 0.1 s."""
        now = time.monotonic()
        self._check(now)
        self._safety.restart(tuple(self._measured), now)
        self._publish(self._safety.pose)
        time.sleep(_SENDING)

    def close(self) -> None:
        """See `Robot.close`."""
        self._state.unregister()
        self._command.unregister()

    def _listen(self, message: Any) -> None:
        """Called by ROS in a thread of its own."""
        angles = dict(zip(message.joint_names, message.actual.positions, strict=True))
        self._joints, self._heard = angles.keys(), time.monotonic()
        if self._joints >= set(JOINTS):
            self._measured = np.array([angles[name] for name in JOINTS])

    def _check(self, now: float) -> None:
        if now - self._heard > self._timeout:
            raise RobotError(
                f"{CONTROLLER}/state has been silent for {self._timeout} s: is ur_robot_driver "
                "running, and its program on the teach pendant?"
            )
        if not self._joints >= set(JOINTS):
            raise RobotError(
                f"{CONTROLLER}/state tells of {', '.join(self._joints)}, expected "
                f"{', '.join(JOINTS)}: start ur_robot_driver without a prefix"
            )

    def _publish(self, pose: tuple[float, ...]) -> None:
        """One point, as late as the slowest joint needs."""
        way = float(np.max(np.abs(np.subtract(pose, self._measured))))
        point = self._point(positions=list(pose))
        point.time_from_start = self._duration(max(way / self._speed, _PERIOD))
        self._command.publish(self._trajectory(joint_names=list(JOINTS), points=[point]))


def _ros() -> tuple[Any, Any, Any, Any, Any]:
    """What is needed of ROS: rospy, rosgraph and three messages. Raises RobotError without ROS."""
    try:
        import rosgraph
        import rospy
        from control_msgs.msg import JointTrajectoryControllerState
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
    except ImportError as error:
        raise RobotError(
            f"the UR10 is driven through ROS 1, which is missing here ({error}): run `source "
            "/opt/ros/noetic/setup.bash`, start ur_robot_driver, then this in the same shell"
        ) from error
    return rospy, rosgraph, JointTrajectoryControllerState, JointTrajectory, JointTrajectoryPoint
