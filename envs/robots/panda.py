"""The Franka Emika Panda: an arm of seven revolute joints, and the Franka hand.

Kinematics, limits, masses and inertias are the manufacturer's `franka_description`
(github.com/frankaemika/franka_ros). The drives are those of FurnitureBench's simulation
(github.com/clvrai/furniture-bench, `furniture_bench/config.py`, `sim_config.py` and
`envs/furniture_sim_env.py`).

Gravity doesn't act on the arm, as there. Site `ee` is the end-effector frame (`k_ee_link` of its
`franka_panda.urdf`), between the fingertips, geoms `left_tip` and `right_tip`. The length of tendon
`gripper` is the opening between them, m.
"""

from pathlib import Path

import mujoco
import numpy as np

JOINTS = tuple(f"joint{i}" for i in range(1, 8))

FINGERS = ("finger_joint1", "finger_joint2")

HOME = np.array([-0.0263, 0.3759, 0.1249, -2.1383, -0.0943, 2.4965, 0.0192])
"""Where FurnitureBench starts from, rad. The hand points down, turned by 53 degrees."""

MAX_SPEED = np.array([2.175] * 4 + [2.61] * 3)
"""Velocity limits of the arm's joints, rad/s. The drives don't enforce them."""

GRIP_FORCE = 13.0
"""FurnitureBench's force on each finger, N: `-GRIP_FORCE` closes the hand, `GRIP_FORCE` opens."""

MAX_WIDTH = 0.08
"""Opening of the hand, m."""


def load(
    stiffness: float = 1000.0, damping: float = 200.0, width: float = MAX_WIDTH
) -> mujoco.MjSpec:
    """The arm with a position drive in each joint, and a force on the fingers.

    Controls: seven joint positions, rad, then the force on each finger, N, within `GRIP_FORCE`. The
    torque of a joint is `stiffness (target - q) - damping dq/dt`, within 87 N m (joints 1 to 4) or
    12 N m. Unless that limit acts, the arm follows with a lag of `damping / stiffness` seconds.

    Scenes take the Euler integrator and a time step below `0.8 / damping` seconds: 4 ms by default.
    The implicit integrators would make drives as stiff as these stable at any step, but by slowing
    the arm behind the back of the contact solver, which then flings what the hand holds. What makes
    them stable here is the joints' armature of 0.8 kg m^2. FurnitureBench has 0.01, and an engine
    that solves drives and contacts together. The armature adds 4 ms to the lag; its wrist, where
    12 N m limit it, accelerates by 15 rad/s^2, the manufacturer's limit for joint 5.

    FurnitureBench gives the fingers a joint friction, a coefficient that MuJoCo lacks; here they
    have a damping that keeps them within the 0.2 m/s of the URDF, and move together.

    Args:
      stiffness: position gain of each joint, N m / rad; FurnitureBench's by default.
      damping: velocity gain of each joint, N m s / rad; FurnitureBench's by default.
      width: how far the hand opens, m. FurnitureBench limits it: 0.065 m for tables and legs.

    Raises:
      ValueError: if a gain isn't positive, or the width isn't in (0, `MAX_WIDTH`].
    """
    for name, gain in (("stiffness", stiffness), ("damping", damping)):
        if not gain > 0:
            raise ValueError(f"{name} must be positive, got {gain}")
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"width must be in (0, {MAX_WIDTH}], got {width}")
    spec = mujoco.MjSpec.from_file(str(Path(__file__).with_suffix(".xml")))
    for name in JOINTS:
        drive = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        drive.set_to_position(kp=stiffness, kv=damping)
    for name in FINGERS:
        spec.joint(name).range = [0.0, width / 2]
    grip = spec.add_actuator(name="gripper", target="gripper", trntype=mujoco.mjtTrn.mjTRN_TENDON)
    grip.set_to_motor()
    grip.ctrlrange = [-GRIP_FORCE, GRIP_FORCE]
    return spec
