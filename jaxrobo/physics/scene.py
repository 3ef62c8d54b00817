"""Composes robots and parts into one model whose contacts are all explicit pairs.

scene = Scene(timestep=0.002)
scene.attach(panda.load(), "panda/")
scene.attach(peg(), "peg/", pos=(0.4, 0, 0.01), free=True)
scene.group("tips", "panda/left_tip", "panda/right_tip")
scene.pair("tips", "peg/box", friction=1.0)
scene.contact_sensor("touch", "tips", "peg/box")
model = scene.compile()
"""

import itertools
from collections.abc import Sequence

import mujoco
import numpy as np

_IDENTITY = (1.0, 0.0, 0.0, 0.0)

_DEFAULT_FRICTION = (1.0, 0.005, 0.0001)
"""MuJoCo's: sliding, torsional (m), rolling (m)."""

_FOUND = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
_FOUND_AND_FORCE = _FOUND | 1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE)
_NET_FORCE = 3
"""The reduction that MJCF calls "netforce"."""


class Scene:
    """A model in the making.

    No two geoms collide unless `pair` says so, with the friction that it says: MuJoCo's own rule
    (masks, and the larger friction of the two) would make a scene depend on what else is in it, and
    every possible contact costs time and memory on an accelerator.

    Attributes:
      spec: the model so far; whatever this class doesn't cover may be edited in it.
    """

    def __init__(
        self,
        timestep: float,
        *,
        iterations: int = 20,
        ls_iterations: int = 20,
        impratio: float = 1.0,
    ) -> None:
        """Starts with an empty world.

        Args:
          timestep: of the physics, s.
          iterations: of the constraint solver, at most.
          ls_iterations: of its line search, at most.
          impratio: by how much friction is stiffer than the normal force; with more, less slips.

        Raises:
          ValueError: if the time step or an iteration count isn't positive.
        """
        counts = {"timestep": timestep, "iterations": iterations, "ls_iterations": ls_iterations}
        for name, value in counts.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.spec = mujoco.MjSpec()
        option = self.spec.option
        option.timestep, option.impratio = timestep, impratio
        option.iterations, option.ls_iterations = iterations, ls_iterations
        self._groups: dict[str, tuple[str, ...]] = {}

    def attach(
        self,
        part: mujoco.MjSpec | str,
        prefix: str,
        pos: Sequence[float] = (0.0, 0.0, 0.0),
        quat: Sequence[float] = _IDENTITY,
        *,
        parent: str | None = None,
        free: bool = False,
    ) -> None:
        """Puts a copy of a part into the scene, with everything that belongs to it.

        Args:
          part: a spec, or MJCF text; it stays as it is. Its options are ignored.
          prefix: put before every name of the part.
          pos: of the part's origin in its parent, m.
          quat: orientation, wxyz.
          parent: the body to attach to, as named in the scene; the world if None.
          free: whether the part moves freely; it then consists of one body and its children.

        Raises:
          ValueError: if the parent is unknown, the prefix is taken or empty, or a free part isn't
            one body or has a parent.
        """
        if not prefix:
            raise ValueError("a part needs a prefix: without it, names of two parts may collide")
        part = mujoco.MjSpec.from_string(part) if isinstance(part, str) else part.copy()
        host = self.spec.worldbody if parent is None else self.spec.body(parent)
        if host is None:
            raise ValueError(f"unknown body {parent!r}; the scene has {_names(self.spec.bodies)}")
        if free:
            if parent is not None:
                raise ValueError(f"a free part has no parent, {prefix!r} was given {parent!r}")
            if len(part.worldbody.bodies) != 1 or part.worldbody.geoms:
                raise ValueError(f"a free part is one body, {prefix!r} is not")
            part.worldbody.bodies[0].add_freejoint(name="free")
        taken = {*_names(self.spec.bodies)} & {prefix + name for name in _names(part.bodies)[1:]}
        if taken:
            raise ValueError(f"the scene has a body {min(taken)!r} already: give another prefix")
        frame = host.add_frame(pos=pos, quat=quat)
        self.spec.attach(part, prefix=prefix, frame=frame)

    def group(self, name: str, *geoms: str) -> None:
        """Names several geoms, or other groups, together.

        Raises:
          ValueError: if the name is taken or a geom is unknown.
        """
        if name in self._groups or name in _names(self.spec.geoms):
            raise ValueError(f"the name {name!r} is taken")
        self._groups[name] = tuple(itertools.chain.from_iterable(map(self.geoms, geoms)))

    def geoms(self, name: str) -> tuple[str, ...]:
        """The geoms of a group, or the geom of that name. Raises ValueError if there is neither."""
        if name in self._groups:
            return self._groups[name]
        known = [n for n in _names(self.spec.geoms) if n]
        if name not in known:
            raise ValueError(f"unknown geom or group {name!r}; valid: {[*self._groups, *known]}")
        return (name,)

    def pair(
        self,
        a: str,
        b: str,
        friction: float | Sequence[float],
        *,
        condim: int = 3,
        solref: Sequence[float] | None = None,
        solimp: Sequence[float] | None = None,
    ) -> None:
        """Lets every geom of `a` collide with every geom of `b`.

        Args:
          a: a geom or a group.
          b: another.
          friction: coefficient of sliding; or sliding, torsional (m) and rolling (m).
          condim: 1 frictionless, 3 with sliding friction, 4 with torsional, 6 with rolling.
          solref: time constant (s) and damping ratio of the contact; MuJoCo's if None.
          solimp: its impedance; MuJoCo's if None.

        Raises:
          ValueError: on an unknown name, a negative friction, one of zero where `condim` asks for
            some, or a pair that is there already.
        """
        given = np.atleast_1d(np.asarray(friction, float))
        if given.shape not in ((1,), (3,)) or not np.all(given >= 0):
            raise ValueError(f"friction is one or three numbers, not negative; got {friction}")
        slide, twist, roll = given if given.size == 3 else (given[0], *_DEFAULT_FRICTION[1:])
        if condim > 1 and slide == 0:
            raise ValueError(f"a pair without friction has condim=1, not {condim}")
        there = {frozenset((p.geomname1, p.geomname2)) for p in self.spec.pairs}
        for one, other in itertools.product(self.geoms(a), self.geoms(b)):
            if frozenset((one, other)) in there or one == other:
                raise ValueError(f"geoms {one!r} and {other!r} are one, or are paired already")
            pair = self.spec.add_pair(geomname1=one, geomname2=other, condim=condim)
            pair.friction = [slide, slide, twist, roll, roll]
            if solref is not None:
                pair.solref = solref
            if solimp is not None:
                pair.solimp = solimp

    def weld(
        self,
        name: str,
        a: str,
        b: str,
        pos: Sequence[float] = (0.0, 0.0, 0.0),
        quat: Sequence[float] = _IDENTITY,
        *,
        active: bool = False,
        torquescale: float = 1.0,
        solref: Sequence[float] = (0.02, 1.0),
        solimp: Sequence[float] = (0.9, 0.95, 0.001, 0.5, 2.0),
    ) -> None:
        """Holds body `b` at a pose in body `a`, whenever `PhysicsState.eq_active` says so.

        Args:
          name: of the constraint; `mj_model.equality(name).id` is its index in `eq_active`.
          a: a body, as named in the scene; "world" too.
          b: another.
          pos: of the origin of `b` in `a`, m.
          quat: orientation of `b` in `a`, wxyz.
          active: whether it holds at the start.
          torquescale: metres by which an angle (rad) is weighted against a distance.
          solref: time constant (s) and damping ratio of the constraint.
          solimp: its impedance.

        Raises:
          ValueError: on an unknown body.
        """
        for body in (a, b):
            if body not in (known := _names(self.spec.bodies)):
                raise ValueError(f"unknown body {body!r}; the scene has {known}")
        self.spec.add_equality(
            name=name,
            type=mujoco.mjtEq.mjEQ_WELD,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            name1=a,
            name2=b,
            active=active,
            data=[0, 0, 0, *pos, *quat, torquescale, 1],
            solref=solref,
            solimp=solimp,
        )

    def contact_sensor(self, name: str, a: str, b: str, *, force: bool = False) -> None:
        """Watches what `a` does to `b`; `contacts.ContactSensor` reads it.

        Args:
          name: of the sensor. It has one part for each pair of geoms, `<name>/0` and so on.
          a: a geom or a group.
          b: another.
          force: whether to measure the force too. That solves the constraints once more in every
            call of the engine.

        Raises:
          ValueError: on an unknown geom, or if two of them can't collide.
        """
        pairs = {frozenset((p.geomname1, p.geomname2)) for p in self.spec.pairs}
        for i, (one, other) in enumerate(itertools.product(self.geoms(a), self.geoms(b))):
            if frozenset((one, other)) not in pairs:
                raise ValueError(f"geoms {one!r} and {other!r} never touch: pair them first")
            self.spec.add_sensor(
                name=f"{name}/{i}",
                type=mujoco.mjtSensor.mjSENS_CONTACT,
                objtype=mujoco.mjtObj.mjOBJ_GEOM,
                objname=one,
                reftype=mujoco.mjtObj.mjOBJ_GEOM,
                refname=other,
                intprm=[_FOUND_AND_FORCE, _NET_FORCE, 1] if force else [_FOUND, 0, 1],
            )

    def compile(self, visual: bool = True) -> mujoco.MjModel:
        """The model. Nothing in it collides but the pairs.

        Args:
          visual: whether to keep what is only to be seen. The physics is the same without, and a
            little faster; `PhysicsEnv` takes both models.
        """
        for geom in self.spec.geoms:
            geom.contype = geom.conaffinity = 0
        self.spec.compiler.discardvisual = not visual
        return self.spec.compile()


def _names(elements: Sequence) -> list[str]:
    return [element.name for element in elements]
