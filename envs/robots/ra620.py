"""HIWIN RA620-1621: an industrial arm of six revolute joints that reaches 1.6 m.

Kinematics and limits are those of `ra620_1621.urdf`, as used by OmniIsaacGymEnvs-HiwinReacher
(`thirdparty/hiwin_ra620_1621_support`, commit 5346a61). It states no inertias; the links have the
placeholder of the KR120's URDF, 2 kg each. The geometry is our own. The zero pose points along +y.
"""

import math
from pathlib import Path

import numpy as np

from envs.robots.drives import loader

JOINTS = tuple(f"joint_{i}" for i in range(1, 7))

STIFFNESS = 1e5 * 180 / math.pi
"""Position gain of each joint, N m / rad: 1e5 N m / degree in the original."""

DAMPING = STIFFNESS
"""Damping of each joint, N m s / rad: the same number, so the lag of the drive is 1 s."""

MAX_SPEED = np.full(6, 2.018)
"""Velocity limits of the joints, rad/s."""

load = loader(Path(__file__).with_suffix(".xml"), JOINTS, STIFFNESS, DAMPING)
"""The arm with drives that lag by 1 s. Body `tool0` is its tool frame.

See `envs.robots.drives.loader`."""
