"""The Yahboom Dofbot: a desktop arm of five revolute joints.

Kinematics and limits are those of the manufacturer's URDF, as used by
OmniIsaacGymEnvs-DofbotReacher (`thirdparty/dofbot_info/urdf/dofbot.urdf`, commit 7ed46b3); the
geometry is our own.
"""

import math
from pathlib import Path

import mujoco

JOINTS = tuple(f"joint{i}" for i in range(1, 6))

STIFFNESS = 1048 * 180 / math.pi / 100
"""Position gain of each joint, N m / rad.

The original's drive (1048 N m / degree), divided by 100 like `DAMPING`: there the links weigh 1e-6
kg, so that only the ratio of the two matters. Ours have a real mass, negligible at this stiffness.
"""

DAMPING = 53 * 180 / math.pi / 100
"""Damping of each joint, N m s / rad. `DAMPING / STIFFNESS` = 0.0506 s is the lag of the drive."""

SERVO_SPEED = 1.0
"""Velocity limit of every joint in the URDF, rad/s."""


def load(velocity_cap: float = math.inf) -> mujoco.MjSpec:
    """The arm with a position drive in each joint: a first-order lag of 0.0506 s behind its target.

    The joint's damping carries the whole drive torque, so that limiting the torque to
    `DAMPING * velocity_cap` limits the speed: `qvel = clip((target - qpos) / lag, -cap, cap)`.

    Args:
      velocity_cap: highest speed of a joint, rad/s.

    Raises:
      ValueError: if the cap isn't positive.
    """
    if not velocity_cap > 0:
        raise ValueError(f"velocity_cap must be positive, got {velocity_cap}")
    spec = mujoco.MjSpec.from_file(str(Path(__file__).with_suffix(".xml")))
    for name in JOINTS:
        spec.joint(name).damping = [DAMPING, 0, 0]
        drive = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        drive.set_to_position(kp=STIFFNESS)
        if math.isfinite(velocity_cap):
            drive.forcerange = [-DAMPING * velocity_cap, DAMPING * velocity_cap]
    return spec
