"""Position drives that follow their targets with a first-order lag."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import mujoco
import numpy as np


def add_drives(
    spec: mujoco.MjSpec,
    joints: Sequence[str],
    stiffness: float | Sequence[float],
    damping: float | Sequence[float],
    velocity_cap: float | Sequence[float] = math.inf,
) -> None:
    """Gives each joint a position drive, named like it: a lag of `damping / stiffness` seconds.

    The joint's damping carries the whole drive torque, so that limiting the torque to
    `damping * velocity_cap` limits the speed: `qvel = clip((target - qpos) / lag, -cap, cap)`, if
    the inertia is small against the damping times the lag. It mustn't be too small: MuJoCo takes an
    acceleration `stiffness * error / inertia` beyond 1e10 for divergence. Stiff drives of light
    wrists want an armature.

    Args:
      spec: the robot; changed.
      joints: names of the joints.
      stiffness: position gain of all joints or of each, N m / rad.
      damping: of all joints or of each, N m s / rad.
      velocity_cap: highest speed of all joints or of each, rad/s.

    Raises:
      ValueError: if a cap isn't positive, or there are more or fewer caps than joints.
    """
    if np.shape(velocity_cap) not in ((), (len(joints),)):
        raise ValueError(
            f"velocity_cap is one number or {len(joints)}, one a joint; got {velocity_cap}"
        )
    if not np.all(np.greater(velocity_cap, 0)):
        raise ValueError(f"velocity_cap must be positive, got {velocity_cap}")
    values = [np.broadcast_to(v, len(joints)) for v in (stiffness, damping, velocity_cap)]
    for name, kp, kd, cap in zip(joints, *values, strict=True):
        spec.joint(name).damping = [kd, 0, 0]
        drive = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        drive.set_to_position(kp=kp)
        if math.isfinite(cap):
            drive.forcerange = [-kd * cap, kd * cap]


def loader(
    xml: Path,
    joints: Sequence[str],
    stiffness: float | Sequence[float],
    damping: float | Sequence[float],
) -> Callable[..., mujoco.MjSpec]:
    """A function that loads a robot with a position drive in each joint.

    It takes the highest speed of all joints or of each, rad/s, by default none, and raises
    ValueError if it isn't positive. For the other arguments see `add_drives`.
    """

    def load(velocity_cap: float | Sequence[float] = math.inf) -> mujoco.MjSpec:
        spec = mujoco.MjSpec.from_file(str(xml))
        add_drives(spec, joints, stiffness, damping, velocity_cap)
        return spec

    return load
