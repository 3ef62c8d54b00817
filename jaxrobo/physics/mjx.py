"""The MJX engine: MuJoCo XLA, on the accelerator."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import mujoco
import numpy as np

from jaxrobo.physics._mjx import kinematics, mjx
from jaxrobo.physics._mjx_checks import IGNORED, colliding, unsupported
from jaxrobo.physics._mjx_constants import set_const
from jaxrobo.physics._mjx_contact import put_model
from jaxrobo.physics._mjx_sensors import sensors
from jaxrobo.physics._mjx_step import step
from jaxrobo.physics.types import (
    CONSTANTS,
    DERIVED,
    EVOLVING,
    WRITTEN,
    Physics,
    PhysicsState,
)

_NEEDS_NOMINAL = {
    "body_gravcomp": lambda m: np.any(m.body_gravcomp),
    "dof_frictionloss": lambda m: np.all(m.dof_frictionloss > 0),
    "tendon_frictionloss": lambda m: np.all(m.tendon_frictionloss > 0),
    "opt.density": lambda m: m.opt.density > 0 or m.opt.viscosity > 0,
    "opt.viscosity": lambda m: m.opt.density > 0 or m.opt.viscosity > 0,
    "opt.wind": lambda m: m.opt.density > 0 or m.opt.viscosity > 0,
}
"""Fields that MJX reads only if the model itself has the effect, and when it has."""

MAX_CONTACTS = 512
"""Each possible contact is computed in every step of every simulation, and its (mostly four) rows
of the constraint Jacobian are kept: with more, a batch of thousands fills an accelerator."""


P = ParamSpec("P")
R = TypeVar("R")


def _exactly(compute: Callable[P, R]) -> Callable[P, R]:
    """In full single precision: matrix products on an accelerator have three digits otherwise."""

    @functools.wraps(compute)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return compute(*args, **kwargs)

    return wrapped


class MjxPhysics(Physics):
    """MuJoCo XLA. Pure JAX: no callback, so programs can be exported, sharded and cached.

    Without contacts it agrees with the native engine to rounding. A constraint solver iterates on a
    batch until its slowest simulation has converged, so set `iterations` and `ls_iterations` of the
    model as low as the task allows. Derivatives in reverse mode need both to be 1 where there are
    constraints, for JAX can't go back through a loop whose length isn't known.
    """

    engine = "mjx"

    def __init__(self, mj_model: mujoco.MjModel) -> None:
        """Puts the model on the default device.

        Args:
          mj_model: the model.

        Raises:
          ValueError: naming the features of the model that MJX lacks, or if it has more than
            `MAX_CONTACTS`.
        """
        super().__init__(mj_model)
        try:
            with jax.ensure_compile_time_eval():  # the engine may be made inside a traced function
                model = put_model(self.mj_model)
                self._data = mjx.make_data(self.mj_model, impl="jax")
        except NotImplementedError as error:
            raise ValueError(f"the mjx engine doesn't support {error}") from error
        if self.contact_slots > MAX_CONTACTS:
            raise ValueError(
                f"the scene has {self.contact_slots} possible contacts for mjx, of "
                f"{', '.join(colliding(self.mj_model))}; at most {MAX_CONTACTS} are reasonable: "
                "pair fewer geoms, or stand-ins of simpler shape"
            )
        if not self.contact_slots:  # MJX fails on an elliptic cone that nothing touches
            model = model.tree_replace({"opt.cone": mjx.ConeType.PYRAMIDAL})
        self._model = model

    @property
    def contact_slots(self) -> int:
        """Contacts that each simulation has room for, and computes in every step."""
        return self._data._impl.ncon

    @property
    def constraint_rows(self) -> int:
        """Rows of the constraint solver, contacts, limits and equalities together."""
        return self._data._impl.efc_J.shape[0]

    def model_field(self, name: str) -> np.ndarray:
        """See `Physics.model_field`; MJX can vary fewer."""
        value = super().model_field(name)
        if name in IGNORED or not isinstance(self._device_field(name), jax.Array):
            raise ValueError(f"the mjx engine can't vary the model field {name!r}")
        if not _NEEDS_NOMINAL.get(name, lambda m: True)(self.mj_model):
            raise ValueError(f"the mjx engine can't vary {name!r} unless the model has it")
        return value

    def _check_supported(self) -> None:
        if found := unsupported(self.mj_model):
            raise ValueError(f"the mjx engine doesn't support {', '.join(found)}")

    @_exactly
    def _forward(self, state: PhysicsState) -> dict[str, jax.Array]:
        return self._derive(*self._unpack(state))

    @_exactly
    def _advance(
        self,
        state: PhysicsState,
        inputs: dict[str, jax.Array],
        substeps: int,
        record: bool,
        live: jax.Array | None,
    ) -> tuple[PhysicsState, jax.Array | None]:
        del live
        stepped = {k: v for k, v in inputs.items() if v.ndim > getattr(state, k).ndim}
        state = state.replace(**{k: v for k, v in inputs.items() if k not in stepped})
        model, data = self._unpack(state)

        def substep(state: PhysicsState, given: dict[str, jax.Array]):
            evolving = {k: getattr(state, k) for k in EVOLVING}
            after = step(model, data.replace(**evolving, **given))
            state = state.replace(**given, **{k: getattr(after, k) for k in EVOLVING})
            if record:
                state = state.replace(**self._derive(model, after))
            return state, state.sensordata if record else None

        state, trace = jax.lax.scan(substep, state, stepped, length=substeps)
        return state if record else state.replace(**self._forward(state)), trace

    @_exactly
    def _derive_constants(self, model: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if not {*model} & {*mujoco.MjModel._setconst_inputs}:
            return {}
        constants = set_const(self._with_fields(model), self._data)
        return {k: constants[k] for k in CONSTANTS if constants[k].size}

    def _unpack(self, state: PhysicsState) -> tuple[mjx.Model, mjx.Data]:
        written = {k: getattr(state, k) for k in WRITTEN}
        return self._with_fields(state.model), self._data.replace(**written)

    def _with_fields(self, fields: dict[str, jax.Array]) -> mjx.Model:
        known = {k: v for k, v in fields.items() if self._device_field(k) is not None}
        return self._model.tree_replace(known)

    def _derive(self, model: mjx.Model, data: mjx.Data) -> dict[str, jax.Array]:
        data = kinematics(model, data)
        if self.mj_model.nsensordata:
            data = sensors(model, data)
        return {k: getattr(data, k) for k in DERIVED}

    def _device_field(self, name: str) -> jax.Array | None:
        owner = self._model.opt if name.startswith("opt.") else self._model
        name = name.removeprefix("opt.")
        return getattr(owner, name) if name in {f.name for f in owner.fields()} else None
