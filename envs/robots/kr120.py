"""KUKA KR120 R2500 Pro: an industrial arm of six revolute joints that reaches 2.5 m.

Kinematics, limits, masses and inertias are those of `kr120r2500pro.urdf`, as used by
OmniIsaacGymEnvs-KukaReacher (`thirdparty/kuka_kr120_support`, commit 3c0cdf0); every link weighs 2
kg there, a placeholder. The geometry is our own. The zero pose points along +x.
"""

import math
from pathlib import Path

import numpy as np

from envs.robots.drives import loader

JOINTS = tuple(f"joint_a{i}" for i in range(1, 7))

STIFFNESS = 1e5 * 180 / math.pi
"""Position gain of each joint, N m / rad: 1e5 N m / degree in the original."""

DAMPING = STIFFNESS
"""Damping of each joint, N m s / rad: the same number, so the lag of the drive is 1 s."""

MAX_SPEED = np.array([2.72271363311] * 3 + [5.75958653158] * 2 + [10.7337748998])
"""Velocity limits of the joints, rad/s."""

load = loader(Path(__file__).with_suffix(".xml"), JOINTS, STIFFNESS, DAMPING)
"""The arm with drives that lag by 1 s. Body `tool0` is its flange.

See `envs.robots.drives.loader`."""
