"""Parts that fit together, of primitive shapes.

Dimensions and masses are those of the meshes of FurnitureBench and NVIDIA's Factory as used by
robust-rearrangement (commit 41c99a0, furniture-bench commit 52e7c68); the geometry is our own.
"""

from collections.abc import Sequence

import mujoco

PEG_SIZE = (0.016, 0.010, 0.050)
"""Factory's rectangular peg, m."""

PEG_MASS = 0.004
"""kg, at 500 kg/m^3."""

HOLE_SIZE = (0.025, 0.025, 0.00899)
"""Factory's hole plate, m."""

HOLE_SLOT = (0.01622, 0.01016)
"""The slot through the plate, m: 0.11 and 0.08 mm of clearance a side."""

HOLE_MASS = 0.0021
"""kg, at 500 kg/m^3."""

FIT_SOLREF = (0.004, 1.0)
"""Time constant and damping ratio of contacts in a tight fit; for steps of at most 2 ms."""

FIT_SOLIMP = (0.999, 0.9999, 0.0005, 0.5, 2.0)
"""Impedance of contacts in a tight fit: 20 N press a part of 4 g in by a few micrometres."""

WALLS = ("left", "right", "near", "far")
"""The four boxes around a slot."""


def peg() -> mujoco.MjSpec:
    """The peg: body and geom `peg`; the origin is the centre of the bottom, z along the peg.

    Geom `core`, a capsule within, stands for the peg where its edges don't matter: with a box, it
    has half as many contacts.
    """
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="peg")
    _box(body, "peg", PEG_SIZE, (0, 0, PEG_SIZE[2] / 2), PEG_MASS, (0.85, 0.45, 0.20, 1))
    radius, half = PEG_SIZE[1] / 2, PEG_SIZE[2] / 2
    body.add_geom(
        name="core",
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        size=[radius, half - radius, 0],
        pos=[0, 0, half],
        mass=0,
        rgba=[0] * 4,
    )
    return spec


def hole() -> mujoco.MjSpec:
    """The plate: body `hole`, geoms `WALLS` around the slot, and `hole`, the plate as one box.

    The origin is the centre of the bottom. `hole` covers the slot: pair it with what must not
    enter (the table, fingers), and the walls with the peg.
    """
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="hole")
    x, y, z = HOLE_SIZE
    slot_x, slot_y = HOLE_SLOT
    side, end = (x - slot_x) / 2, (y - slot_y) / 2
    shapes = {
        "left": ((side, y, z), (-(slot_x + side) / 2, 0)),
        "right": ((side, y, z), ((slot_x + side) / 2, 0)),
        "near": ((slot_x, end, z), (0, -(slot_y + end) / 2)),
        "far": ((slot_x, end, z), (0, (slot_y + end) / 2)),
    }
    area = sum(size[0] * size[1] for size, _ in shapes.values())
    for name, (size, centre) in shapes.items():
        mass = HOLE_MASS * size[0] * size[1] / area
        _box(body, name, size, (*centre, z / 2), mass, (0.35, 0.50, 0.65, 1))
    _box(body, "hole", HOLE_SIZE, (0, 0, z / 2), 0.0, (0, 0, 0, 0))
    return spec


def table() -> mujoco.MjSpec:
    """A plane `table` at z = 0."""
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.01])
    return spec


def _box(
    body: mujoco.MjsBody,
    name: str,
    size: Sequence[float],
    centre: Sequence[float],
    mass: float,
    rgba: Sequence[float],
) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[s / 2 for s in size],
        pos=centre,
        mass=mass,
        rgba=rgba,
    )
