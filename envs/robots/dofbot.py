"""The Yahboom Dofbot: a desktop arm of five revolute joints.

Kinematics and limits are those of the manufacturer's URDF, as used by
OmniIsaacGymEnvs-DofbotReacher (`thirdparty/dofbot_info/urdf/dofbot.urdf`, commit 7ed46b3); the
geometry is our own.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import mujoco

from envs.robots.drives import add_drives

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


FINGER = "finger"
"""The joint that `gripper=True` adds, of the left finger."""

GRIPPER_LAG = 10 / 1000
"""Lag of the wrist and the finger with `gripper=True`, s.

NVIDIA's `dofbot.usd` drives its wrist with 1000 N m / degree and 10 N m s / degree.
"""


def load(velocity_cap: float | Sequence[float] = math.inf, gripper: bool = False) -> mujoco.MjSpec:
    """The arm with a position drive in each joint: a first-order lag of 0.0506 s behind its target.

    Args:
      velocity_cap: highest speed of all joints or of each, rad/s.
      gripper: adds a sixth joint, `FINGER`, and drives it and the wrist as NVIDIA's `dofbot.usd`
        does. Of the file's six joints of the fingers, which are not public, it's the one that the
        original's task commands.

    Raises:
      ValueError: if a cap isn't positive.
    """
    spec = mujoco.MjSpec.from_file(str(Path(__file__).with_suffix(".xml")))
    if not gripper:
        add_drives(spec, JOINTS, STIFFNESS, DAMPING, velocity_cap)
        return spec
    _add_finger(spec)
    damping = [DAMPING] * 4 + [STIFFNESS * GRIPPER_LAG] * 2
    add_drives(spec, (*JOINTS, FINGER), STIFFNESS, damping, velocity_cap)
    return spec


def _add_finger(spec: mujoco.MjSpec) -> None:
    """Lets the left finger turn about its root, from -30 to 60 degrees as in NVIDIA's file."""
    fixed = spec.geom("left_finger")
    root = fixed.pos - [0.0, 0.0, fixed.size[2]]
    look = {k: getattr(fixed, k) for k in ("type", "mass", "material", "contype", "conaffinity")}
    look |= {"pos": fixed.pos - root, "size": fixed.size.copy()}
    spec.delete(fixed)
    finger = spec.body("link5").add_body(name="finger_link", pos=root)
    finger.add_joint(name=FINGER, axis=[0, 1, 0], range=[-math.pi / 6, math.pi / 3])
    finger.add_geom(name="left_finger", **look)
