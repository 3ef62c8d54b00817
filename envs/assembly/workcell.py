"""Where assembly happens: a Panda at a table, with a U-shaped obstacle and the parts of a task.

The world's frame is that of the robot's base; the table is the plane z = 0. Dimensions, poses and
friction are those of FurnitureBench's simulation as used by robust-rearrangement
(furniture-bench commit 52e7c68, `furniture_bench/envs/furniture_rl_sim_env.py`, `config.py`).
"""

from collections.abc import Sequence

import mujoco
import numpy as np

from envs.robots import panda
from jaxrobo.physics.scene import Scene

TIMESTEP = 0.002
"""s; a 50th of a control step."""

FRICTION = {"table": 0.1, "tips": 1.0, "obstacle": 1.0}
"""Coefficients of what isn't a part: the table's, and PhysX's default."""

OBSTACLE_POS = (0.6815, 0.0, 0.015)
"""Centre of the front bar, m."""

_BARS = {
    "front": ((0.020, 0.350, 0.030), (0.0, 0.0)),
    "right": ((0.170, 0.020, 0.030), (-0.075, -0.175)),
    "left": ((0.170, 0.020, 0.030), (-0.075, 0.175)),
}
"""Size and place relative to the front bar, m."""

_GRIP = {"solref": (0.004, 1.0), "solimp": (0.99, 0.999, 0.0005, 0.5, 2.0), "condim": 4}
"""Contacts of the fingertips; they hold a part of 4 g as well as one of 150 g."""

_REST = {"solref": (0.005, 1.0), "solimp": (0.95, 0.99, 0.0005, 0.5, 2.0)}
"""Contacts that only carry weight."""


def friction_between(a: float, b: float) -> float:
    """The coefficient of a pair: PhysX takes the mean of the two."""
    return 0.5 * (a + b)


def build(stiffness: float = 1000.0, damping: float = 200.0, width: float = 0.07) -> Scene:
    """The workcell without parts.

    Bodies: the arm's, under `panda/`, and the mocap body `obstacle/obstacle`. Sensors: `ee_linvel`
    and `ee_angvel` of the end effector, in world axes. Groups: `tips` (to hold parts), `nails`
    (their ends), `table`, `obstacle`.

    Args:
      stiffness: position gain of the arm's joints, N m / rad.
      damping: velocity gain, N m s / rad.
      width: how far the hand opens, m.
    """
    scene = Scene(TIMESTEP)
    scene.attach(panda.load(stiffness, damping, width), "panda/")
    scene.attach(_table(), "table/")
    scene.attach(_obstacle(), "obstacle/", pos=OBSTACLE_POS)
    for kind in ("FRAMELINVEL", "FRAMEANGVEL"):
        scene.spec.add_sensor(
            name=f"ee_{kind.removeprefix('FRAME').lower()}",
            type=getattr(mujoco.mjtSensor, f"mjSENS_{kind}"),
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="panda/ee",
        )
    scene.group("tips", "panda/left_tip", "panda/right_tip")
    scene.group("table", "table/table")
    scene.group("obstacle", *(f"obstacle/{name}" for name in _BARS))
    for side in ("left", "right"):
        _add_nail(scene, side)
    scene.group("nails", "panda/left_nail", "panda/right_nail")
    rubber_on_wood = friction_between(FRICTION["tips"], FRICTION["table"])
    scene.pair("nails", "table", rubber_on_wood, **_REST)
    return scene


def add_part(
    scene: Scene,
    part: mujoco.MjSpec,
    name: str,
    friction: float,
    pos: Sequence[float],
    *,
    rests: str,
    bumps: str,
    held: str,
    free: bool = True,
) -> None:
    """Adds a part, and lets it collide with the table, the obstacle and the fingertips.

    Args:
      scene: the workcell; changed.
      part: the part, one body.
      name: its name in the scene: prefix `<name>/`.
      friction: the part's own coefficient.
      pos: where it starts, m.
      rests: its geom that meets the table.
      bumps: its geom that meets the obstacle.
      held: its geom that meets the fingertips.
      free: whether it moves; if not, it meets the fingertips alone.
    """
    scene.attach(part, f"{name}/", pos=pos, free=free)
    for geom, other in ((rests, "table"), (bumps, "obstacle")) if free else ():
        mean = friction_between(friction, FRICTION[other])
        scene.pair(f"{name}/{geom}", other, mean, **_REST)
    scene.pair("tips", f"{name}/{held}", friction_between(friction, FRICTION["tips"]), **_GRIP)


def _add_nail(scene: Scene, side: str) -> None:
    """A ball at the end of a fingertip, to meet the table: one contact instead of four."""
    tip = scene.spec.geom(f"panda/{side}_tip")
    radius = min(tip.size[:2])
    scene.spec.body(f"panda/{side}_finger").add_geom(
        name=f"panda/{side}_nail",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[radius, 0, 0],
        pos=np.add(tip.pos, [0, 0, tip.size[2] - radius]),
        mass=0,
        rgba=[0] * 4,
        group=3,
    )


def _table() -> mujoco.MjSpec:
    """The plane z = 0, shown as a slab."""
    spec = mujoco.MjSpec()
    plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
    spec.worldbody.add_geom(name="table", type=plane, size=[1, 1, 0.01], rgba=[0] * 4)
    spec.worldbody.add_geom(
        name="slab",
        type=box,
        pos=[0.3, 0, -0.015],
        size=[0.65, 0.4, 0.015],
        rgba=[0.62, 0.52, 0.42, 1],
        group=2,
    )
    return spec


def _obstacle() -> mujoco.MjSpec:
    """Three bars around the place of assembly, open towards the robot."""
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="obstacle", mocap=True)
    for name, (size, (x, y)) in _BARS.items():
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=np.array(size) / 2,
            pos=[x, y, 0],
            rgba=[0.30, 0.32, 0.36, 1],
        )
    return spec
