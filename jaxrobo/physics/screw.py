"""A helical joint between two bodies that can be engaged and released.

A thread is too fine for contacts between primitive shapes. Instead a massless carrier sits in the
hole, on a slide and a hinge along its axis, coupled so that it climbs by the lead in one turn; a
weld ties the screw to the carrier while it is engaged:

    screw = Screw("thread", hole="top/top", part="leg/leg", lead=0.009375)
    screw.add_to(scene)
    joint = screw.bind(scene.compile())
    state = joint.update(state, engaged)  # before every control step
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrobo.physics.rotations import quat_conjugate, quat_multiply, quat_rotate
from jaxrobo.physics.scene import Scene
from jaxrobo.physics.types import PhysicsState

_IDENTITY = (1.0, 0.0, 0.0, 0.0)

# With these, and steps of 2 ms, a part stays within 0.15 mm of its helix.
_ARMATURE = 1e-3
_WELD = {"solref": (0.01, 1.0), "solimp": (0.999, 0.9999, 0.001, 0.5, 2.0)}
_COUPLING = {"solref": (0.004, 1.0), "solimp": (0.9999, 0.9999, 0.001, 0.5, 2.0)}


class Fit(NamedTuple):
    """How a part lies to the thread.

    Attributes:
      axial: distance along the axis from the nearest turn of the helix, m, within half a lead. []
      lateral: distance from the axis, m. []
      tilt: angle between the axes, rad. []
      height: along the axis from the thread's origin, m. []
      angle: about the axis from the thread's zero, on the nearest turn, rad. []
    """

    axial: jax.Array
    lateral: jax.Array
    tilt: jax.Array
    height: jax.Array
    angle: jax.Array


@dataclasses.dataclass(frozen=True)
class Screw:
    """A helical joint of a scene.

    Attributes:
      name: prefix of its carrier, joints and constraints.
      hole: the body that holds the thread.
      part: the body that is screwed in.
      lead: m a turn; positive is right-handed.
      pos: of the thread's frame in the hole's body, m; its z axis points out of the hole.
      quat: its orientation, wxyz.
      part_pos: of the part's body in the thread's frame where height and angle are zero, m.
      part_quat: its orientation, wxyz.
    """

    name: str
    hole: str
    part: str
    lead: float
    pos: Sequence[float] = (0.0, 0.0, 0.0)
    quat: Sequence[float] = _IDENTITY
    part_pos: Sequence[float] = (0.0, 0.0, 0.0)
    part_quat: Sequence[float] = _IDENTITY

    def add_to(self, scene: Scene) -> None:
        """Adds the carrier and its constraints, released.

        Raises:
          ValueError: if a body is unknown, or the lead is zero.
        """
        if not self.lead:
            raise ValueError("the lead of a screw must not be zero")
        bodies = {body.name: body for body in scene.spec.bodies}
        for body in (self.hole, self.part):
            if body not in bodies:
                raise ValueError(f"unknown body {body!r}; the scene has {sorted(bodies)}")
        carrier = bodies[self.hole].add_body(
            name=f"{self.name}/carrier",
            pos=self.pos,
            quat=self.quat,
            mass=1e-4,
            inertia=[1e-8] * 3,
            gravcomp=1,
            explicitinertial=True,
        )
        slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
        for kind, joint in (("slide", slide), ("turn", hinge)):
            carrier.add_joint(
                name=f"{self.name}/{kind}", type=joint, axis=[0, 0, 1], armature=_ARMATURE
            )
        scene.spec.add_equality(
            name=f"{self.name}/coupling",
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1=f"{self.name}/slide",
            name2=f"{self.name}/turn",
            data=[0, self.lead / (2 * math.pi), *[0] * 10],
            active=False,
            **_COUPLING,
        )
        scene.weld(
            f"{self.name}/weld",
            f"{self.name}/carrier",
            self.part,
            self.part_pos,
            self.part_quat,
            **_WELD,
        )

    def bind(self, mj_model: mujoco.MjModel) -> "HelicalJoint":
        """The joint in the compiled model. Raises KeyError if it was added to another scene."""
        slide, turn = (mj_model.joint(f"{self.name}/{kind}") for kind in ("slide", "turn"))
        weld, coupling = (mj_model.equality(f"{self.name}/{k}") for k in ("weld", "coupling"))
        return HelicalJoint(
            lead=self.lead,
            frame=(jnp.asarray(self.pos, float), jnp.asarray(self.quat, float)),
            offset=(jnp.asarray(self.part_pos, float), jnp.asarray(self.part_quat, float)),
            hole=mj_model.body(self.hole).id,
            part=mj_model.body(self.part).id,
            qpos=(int(slide.qposadr[0]), int(turn.qposadr[0])),
            dofs=(int(slide.dofadr[0]), int(turn.dofadr[0])),
            constraints=(weld.id, coupling.id),
        )


@struct.dataclass
class HelicalJoint:
    """A `Screw` in a compiled model; acts on the state of one simulation."""

    lead: float = struct.field(pytree_node=False)
    frame: tuple[jax.Array, jax.Array]
    offset: tuple[jax.Array, jax.Array]
    hole: int = struct.field(pytree_node=False)
    part: int = struct.field(pytree_node=False)
    qpos: tuple[int, int] = struct.field(pytree_node=False)
    dofs: tuple[int, int] = struct.field(pytree_node=False)
    constraints: tuple[int, int] = struct.field(pytree_node=False)

    def engaged(self, state: PhysicsState) -> jax.Array:
        """Whether the joint holds, bool. []."""
        return state.eq_active[self.constraints[0]]

    def fit(self, state: PhysicsState) -> Fit:
        """How the part lies to the thread, wherever the hole is."""
        pos, quat = _compose(state.xpos[self.hole], state.xquat[self.hole], *self.frame)
        # The frame of the part that meets the thread's: part = frame * offset.
        turn = quat_multiply(state.xquat[self.part], quat_conjugate(self.offset[1]))
        origin = state.xpos[self.part] - quat_rotate(turn, self.offset[0])
        inverse = quat_conjugate(quat)
        place = quat_rotate(inverse, origin - pos)
        relative = quat_multiply(inverse, turn)
        yaw = 2 * jnp.arctan2(relative[3], relative[0])
        pitch = self.lead / (2 * math.pi)
        angle = yaw + 2 * math.pi * jnp.round((place[2] / pitch - yaw) / (2 * math.pi))
        axis = quat_rotate(relative, jnp.array([0.0, 0.0, 1.0]))
        return Fit(
            axial=place[2] - pitch * angle,
            lateral=jnp.linalg.norm(place[:2]),
            tilt=jnp.arctan2(jnp.linalg.norm(axis[:2]), axis[2]),
            height=place[2],
            angle=angle,
        )

    def update(self, state: PhysicsState, engaged: jax.Array) -> PhysicsState:
        """Engages or releases the joint; to be called before every control step.

        When it engages, the carrier goes to the turn of the helix that is nearest to the part;
        while it is released, the carrier rests.

        Args:
          state: of one simulation.
          engaged: whether the joint is to hold, bool. []

        Returns:
          The state, whose derived quantities don't include the carrier's new place until the next
          `step` or `forward`.
        """
        angle = self.fit(state).angle
        height = self.lead / (2 * math.pi) * angle
        entry = jnp.where(engaged, jnp.stack([height, angle]), 0.0)
        keeps = engaged & self.engaged(state)
        qpos, dofs, constraints = map(np.array, (self.qpos, self.dofs, self.constraints))
        return state.replace(
            qpos=state.qpos.at[qpos].set(jnp.where(keeps, state.qpos[qpos], entry)),
            qvel=state.qvel.at[dofs].set(jnp.where(keeps, state.qvel[dofs], 0.0)),
            eq_active=state.eq_active.at[constraints].set(engaged),
        )


def _compose(
    pos: jax.Array, quat: jax.Array, inner_pos: jax.Array, inner_quat: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return pos + quat_rotate(quat, inner_pos), quat_multiply(quat, inner_quat)
