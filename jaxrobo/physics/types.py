"""The physics interface: a state of one simulation, and the engine that advances it.

Everything here is written for ONE simulation; `jax.vmap` makes it a batch. The two engines are
`jaxrobo.physics.native` (MuJoCo's C engine) and `jaxrobo.physics.mjx` (MuJoCo XLA).
"""

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from mujoco.batch import MODEL_FIELDS

INPUTS = ("ctrl", "mocap_pos", "mocap_quat", "xfrc_applied")
"""What may be set from outside at every step; held, or one value a substep."""

EVOLVING = ("time", "qpos", "qvel", "act", "qacc_warmstart")
"""What a step changes, but for what is derived."""

WRITTEN = (*EVOLVING, *INPUTS, "eq_active")
"""What an engine is told in every call: all that a step depends on."""

STATE = ("qpos", "qvel", "act", "ctrl", "mocap_pos", "mocap_quat", "xfrc_applied", "eq_active")
"""What `Physics.init` accepts, all optional."""

CONSTANTS = (
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_M0",
    "tendon_length0",
    "tendon_invweight0",
    "actuator_length0",
    "actuator_acc0",
)
"""Model fields that `mj_setConst` derives from others and that the dynamics read."""

MAX_VALUE = 1e10
"""Positions and velocities beyond this have diverged (mjMAXVAL of MuJoCo)."""


@struct.dataclass
class PhysicsState:
    """The complete state of one simulation: the same state and inputs give the same next state.

    Attributes:
      time: simulated seconds since `init`. []
      qpos: joint positions, in MuJoCo's order; m, rad, wxyz. [nq]
      qvel: joint velocities; m/s, rad/s. [nv]
      act: actuator activations. [na]
      qacc_warmstart: last acceleration, from which the constraint solver starts. [nv]
      ctrl: control of the last step. [nu]
      mocap_pos: positions of the mocap bodies, m. [nmocap, 3]
      mocap_quat: orientations of the mocap bodies, wxyz. [nmocap, 4]
      xfrc_applied: Cartesian force and torque on each body, N, N m. [nbody, 6]
      eq_active: which equality constraints are active, bool. [neq]
      model: the model fields that this simulation has values of its own for, with the constants
        that MuJoCo derives from them; empty when all simulations share the model.
      xpos: body frame positions, m. [nbody, 3]
      xquat: body frame orientations, wxyz. [nbody, 4]
      site_xpos: site positions, m. [nsite, 3]
      site_xmat: site orientations. [nsite, 3, 3]
      sensordata: all sensors. Those of forces and accelerations are what the last inputs cause in
        this state; a model that has one costs one more solution of the constraints in every call.
        [nsensordata]
      diverged: whether the state or an input ever became non-finite or huge, bool. []

    `xpos` to `sensordata` are derived from the fields above them and always belong to this state.
    """

    time: jax.Array
    qpos: jax.Array
    qvel: jax.Array
    act: jax.Array
    qacc_warmstart: jax.Array
    ctrl: jax.Array
    mocap_pos: jax.Array
    mocap_quat: jax.Array
    xfrc_applied: jax.Array
    eq_active: jax.Array
    model: dict[str, jax.Array]
    xpos: jax.Array
    xquat: jax.Array
    site_xpos: jax.Array
    site_xmat: jax.Array
    sensordata: jax.Array
    diverged: jax.Array


DERIVED = ("xpos", "xquat", "site_xpos", "site_xmat", "sensordata")
"""Fields of `PhysicsState` that follow from the others."""


class Physics(abc.ABC):
    """Advances a `PhysicsState`. Engines implement `_forward`, `_advance` and `_derive_constants`.

    Attributes:
      mj_model: the model, a private copy with MuJoCo's silent auto-reset turned off. A simulation
        that diverges keeps its non-finite numbers and says so in `PhysicsState.diverged`.
    """

    engine: str

    def __init__(self, mj_model: mujoco.MjModel) -> None:
        self.mj_model = copy.copy(mj_model)
        self.mj_model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self._check_supported()

    def init(
        self, *, model: Mapping[str, jax.Array] | None = None, **fields: jax.Array
    ) -> PhysicsState:
        """Makes the state of one simulation.

        Args:
          model: values of this simulation's own for fields of `MjModel`, each of the field's shape;
            a field of `MjOption` is named `opt.<field>`. The constants that MuJoCo derives from
            them are computed here, once, and travel in the state.
          **fields: any of `STATE`; those not given come from the model (`qpos0`, the pose of the
            mocap bodies, `eq_active0`; the rest is zero).

        Raises:
          ValueError: on an unknown field or a wrong shape.
        """
        given = {k: jnp.asarray(v) for k, v in fields.items()}
        defaults = self._defaults()
        _check_shapes("state field", given, {k: defaults[k].shape for k in STATE})
        model = {k: jnp.asarray(v) for k, v in (model or {}).items()}
        _check_shapes("model field", model, {k: self.model_field(k).shape for k in model})
        model = {k: v.astype(_dtype_of(self.model_field(k))) for k, v in model.items()}
        full = {k: given.get(k, v).astype(v.dtype) for k, v in defaults.items()}
        full["model"] = model | self._derive_constants(model) if model else {}
        state = PhysicsState(**full, **self._blank_derived(), diverged=jnp.zeros((), bool))
        return self.forward(state)

    def forward(self, state: PhysicsState) -> PhysicsState:
        """Recomputes what is derived, after an edit of the state."""
        return self._flag(state.replace(**self._forward(state)), {})

    def step(
        self,
        state: PhysicsState,
        inputs: Mapping[str, jax.Array] | None = None,
        substeps: int = 1,
        record: Sequence[str] = (),
        live: jax.Array | None = None,
    ) -> tuple[PhysicsState, dict[str, jax.Array]]:
        """Advances one simulation by `substeps` time steps of the model.

        Args:
          state: where to start.
          inputs: new values of any of `INPUTS`: of the field's own shape to be held throughout, or
            with a leading axis `substeps` to be applied one by one. What isn't given stays.
          substeps: number of physics steps, each of `mj_model.opt.timestep` seconds.
          record: names of sensors to return for every substep.
          live: whether to advance at all; where False the state stays as it is, what is recorded
            means nothing, and the native engine leaves it out (one is stepped if none advances). []

        Returns:
          The state after the last substep, and the recorded sensors, `[substeps, dim]` each, taken
          *after* each substep.

        Raises:
          ValueError: on an unknown input or sensor, a wrong shape, or `substeps < 1`.
        """
        if substeps < 1:
            raise ValueError(f"substeps must be at least 1, got {substeps}")
        inputs = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in (inputs or {}).items()}
        shapes = {k: getattr(state, k).shape for k in INPUTS}
        _check_shapes("input", inputs, shapes, substeps)
        slices = {name: self._sensor_slice(name) for name in record}
        new, sensors = self._advance(state, inputs, substeps, bool(slices), live)
        held = {k: v if v.ndim == len(shapes[k]) else v[-1] for k, v in inputs.items()}
        new = self._flag(new.replace(**held), inputs)
        if live is not None:
            new = jax.tree.map(lambda n, o: jnp.where(live, n, o), new, state)
        return new, {name: sensors[:, s] for name, s in slices.items()}

    def model_field(self, name: str) -> np.ndarray:
        """The model's values of a field that may vary between simulations.

        Raises:
          ValueError: on any other field.
        """
        if name not in MODEL_FIELDS:
            raise ValueError(f"unknown model field {name!r}: not a field of MjModel that can vary")
        owner, field = (
            (self.mj_model.opt, name[4:]) if name.startswith("opt.") else (self.mj_model, name)
        )
        return np.asarray(getattr(owner, field))

    @abc.abstractmethod
    def _check_supported(self) -> None:
        """Raises ValueError naming each feature of the model that this engine lacks."""

    @abc.abstractmethod
    def _derive_constants(self, model: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The model fields that `mj_setConst` would change, given fields of one simulation."""

    @abc.abstractmethod
    def _forward(self, state: PhysicsState) -> dict[str, jax.Array]:
        """The `DERIVED` fields of a state."""

    @abc.abstractmethod
    def _advance(
        self,
        state: PhysicsState,
        inputs: dict[str, jax.Array],
        substeps: int,
        record: bool,
        live: jax.Array | None,
    ) -> tuple[PhysicsState, jax.Array | None]:
        """The state after `substeps`, and `[substeps, nsensordata]` if `record`.

        Unless `live`, both may be anything.
        """

    def _defaults(self) -> dict[str, jax.Array]:
        """The state at the start of a simulation, without what is derived."""
        m = self.mj_model
        mocap = np.flatnonzero(m.body_mocapid >= 0)
        mocap = mocap[np.argsort(m.body_mocapid[mocap])]
        values = {
            "time": np.zeros(()),
            "qpos": m.qpos0,
            "qvel": np.zeros(m.nv),
            "act": np.zeros(m.na),
            "qacc_warmstart": np.zeros(m.nv),
            "ctrl": np.zeros(m.nu),
            "mocap_pos": m.body_pos[mocap],
            "mocap_quat": m.body_quat[mocap],
            "xfrc_applied": np.zeros((m.nbody, 6)),
        }
        full = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in values.items()}
        return full | {"eq_active": jnp.asarray(m.eq_active0, bool)}

    def _derived_shapes(self) -> dict[str, tuple[int, ...]]:
        m = self.mj_model
        return {
            "xpos": (m.nbody, 3),
            "xquat": (m.nbody, 4),
            "site_xpos": (m.nsite, 3),
            "site_xmat": (m.nsite, 3, 3),
            "sensordata": (m.nsensordata,),
        }

    def _blank_derived(self) -> dict[str, jax.Array]:
        return {k: jnp.zeros(shape) for k, shape in self._derived_shapes().items()}

    def _sensor_slice(self, name: str) -> slice:
        m = self.mj_model
        names = [m.sensor(i).name for i in range(m.nsensor)]
        if name not in names:
            raise ValueError(f"unknown sensor {name!r}; the model has {names}")
        start = int(m.sensor(name).adr[0])
        return slice(start, start + int(m.sensor(name).dim[0]))

    def _flag(self, state: PhysicsState, inputs: Mapping[str, jax.Array]) -> PhysicsState:
        """Marks a state whose numbers, or whose inputs, are not finite or beyond `MAX_VALUE`."""
        held = [getattr(state, k) for k in ("qpos", "qvel", "act", *INPUTS)]
        bad = [~jnp.all(jnp.abs(v) < MAX_VALUE) for v in (*held, *inputs.values())]
        return state.replace(diverged=state.diverged | jnp.any(jnp.stack(bad)))


def _dtype_of(field: np.ndarray) -> Any:
    return jnp.result_type(float) if field.dtype.kind == "f" else field.dtype


def _check_shapes(
    what: str,
    given: Mapping[str, jax.Array],
    expected: Mapping[str, tuple[int, ...]],
    substeps: int | None = None,
) -> None:
    for name, value in given.items():
        if name not in expected:
            raise ValueError(f"unknown {what} {name!r}; valid: {', '.join(expected)}")
        valid = [expected[name]]
        if substeps is not None:
            valid.append((substeps, *expected[name]))
        if value.shape not in valid:
            shapes = " or ".join(map(str, valid))
            raise ValueError(f"{what} {name!r} has shape {value.shape}, expected {shapes}")
