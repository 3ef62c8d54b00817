"""The native engine: MuJoCo's C engine on all CPU threads, called from inside jit."""

import collections
import contextlib
import copy
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import _callbacks
from mujoco.batch import Batch

from jaxrobo.physics._callback import host_call
from jaxrobo.physics.types import (
    CONSTANTS,
    DERIVED,
    EVOLVING,
    WRITTEN,
    Physics,
    PhysicsState,
)

_MAX_IDLE_KINDS = 16

BOUNDS = ("geom_aabb", "geom_rbound", "bvh_aabb")
"""Bounding volumes that `mj_setConst` derives and that collision detection reads."""

_FRAMES = {"geom_pos", "geom_quat", "site_pos", "site_quat", "body_ipos", "body_iquat"}
_SHAPES = _FRAMES | {"geom_size"}


class NativePhysics(Physics):
    """MuJoCo's C engine: a batch of simulations, however `vmap` made it, is one threaded call.

    Every call writes the whole state, so results don't depend on history, on the number of threads
    or on the size of the batch. Programs that contain it are skipped by JAX's persistent
    compilation cache and can't be differentiated.
    """

    engine = "native"

    def __init__(self, mj_model: mujoco.MjModel, threads: int | None = None) -> None:
        """Prepares the engine.

        Args:
          mj_model: the model.
          threads: CPU threads a call uses; the cores divided by the number of JAX devices if None.

        Raises:
          ValueError: if `threads` isn't positive, or the model has a feature that isn't supported.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        super().__init__(mj_model)
        self._pool = _BatchPool(self.mj_model, threads)
        # The stages that the derived fields need: velocities and forces only if a sensor does.
        needed = [int(mujoco.mjtStage.mjSTAGE_POS), *map(int, self.mj_model.sensor_needstage)]
        self._stage = max(needed)
        # Equal calls must be the same object to JAX. One cache an engine: a shared one would keep
        # every engine alive.
        self._host_forward = functools.cache(self._host_forward)
        self._host_step = functools.cache(self._host_step)
        self._host_set_const = functools.cache(self._host_set_const)
        self._of_the_live = functools.cache(_of_the_live)
        _log_warnings()

    @property
    def threads(self) -> int:
        """CPU threads that one call uses."""
        return self._pool.threads()

    def _check_supported(self) -> None:
        m = self.mj_model
        flag = mujoco.mjtEnableBit
        lacking = {
            "actuator or sensor delays": m.nhistory,
            "plugins": m.nplugin,
            "flexes": m.nflex,
            "sleeping": m.opt.enableflags & flag.mjENBL_SLEEP,
            "interprocess communication": m.opt.enableflags & flag.mjENBL_IPC,
        }
        if found := [name for name, count in lacking.items() if count]:
            raise ValueError(f"the native engine doesn't support {', '.join(found)}")

    def _forward(self, state: PhysicsState) -> dict[str, jax.Array]:
        written = self._nonempty(WRITTEN, state)
        names = tuple(written) + tuple(state.model)
        derived = self._derived_outputs(state)
        fn = self._host_forward(names, tuple(derived))
        out = host_call(fn, [*derived.values()], *written.values(), *state.model.values())
        return dict(zip(derived, out, strict=True))

    def _advance(
        self,
        state: PhysicsState,
        inputs: dict[str, jax.Array],
        substeps: int,
        record: bool,
        live: jax.Array | None,
    ) -> tuple[PhysicsState, jax.Array | None]:
        written = self._nonempty(WRITTEN, state) | {k: v for k, v in inputs.items() if v.size}
        stepped = tuple(k for k, v in inputs.items() if v.ndim > getattr(state, k).ndim and v.size)
        evolving = self._nonempty(EVOLVING, state)
        outputs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in evolving.items()}
        outputs |= self._derived_outputs(state)
        if record:
            shape = (substeps, self.mj_model.nsensordata)
            outputs["record"] = jax.ShapeDtypeStruct(shape, state.qpos.dtype)
        names = tuple(written) + tuple(state.model)
        fn = self._host_step(names, stepped, tuple(outputs), substeps)
        arguments = (*written.values(), *state.model.values())
        if live is None:
            out = host_call(fn, [*outputs.values()], *arguments)
        else:
            out = host_call(self._of_the_live(fn), [*outputs.values()], live, *arguments)
        new = dict(zip(outputs, out, strict=True))
        sensors = new.pop("record", None)
        return state.replace(**new), sensors

    def _derive_constants(self, model: dict[str, jax.Array]) -> dict[str, jax.Array]:
        fields = self._constant_fields(tuple(model))
        if not fields:
            return {}
        dtype = jnp.result_type(float)
        outs = [jax.ShapeDtypeStruct(self._constant_shape(k), dtype) for k in fields]
        fn = self._host_set_const(tuple(model), fields)
        return dict(zip(fields, host_call(fn, outs, *model.values()), strict=True))

    def _nonempty(self, names: tuple[str, ...], state: PhysicsState) -> dict[str, jax.Array]:
        return {k: v for k in names if (v := getattr(state, k)).size}

    def _derived_outputs(self, state: PhysicsState) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = self._derived_shapes()
        return {
            k: jax.ShapeDtypeStruct(shapes[k], state.qpos.dtype)
            for k in DERIVED
            if np.prod(shapes[k])
        }

    def _host_forward(self, names: tuple[str, ...], outputs: tuple[str, ...]) -> Callable:
        def forward(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            with self._pool.lend(len(arrays[0]), self._varied(names)) as batch:
                for name, value in zip(names, arrays, strict=True):
                    _slot(batch, name)[...] = value
                bound = [batch.bind(name) for name in outputs]
                batch.forward(stage=self._stage)
                dtype = arrays[0].dtype
                return tuple(
                    _like(b, dtype, self._derived_shapes()[k])
                    for k, b in zip(outputs, bound, strict=True)
                )

        return forward

    def _host_step(
        self,
        names: tuple[str, ...],
        stepped: tuple[str, ...],
        outputs: tuple[str, ...],
        substeps: int,
    ) -> Callable:
        record = "record" in outputs
        one_call = not stepped and not record
        shapes = self._derived_shapes()

        def step(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            n, dtype = len(arrays[0]), arrays[0].dtype
            rows = dict(zip(names, arrays, strict=True))
            with self._pool.lend(n, self._varied(names)) as batch:
                for name in names:
                    if name not in stepped:
                        _slot(batch, name)[...] = rows[name]
                bound = {k: batch.bind(k) for k in outputs if k != "record"}
                if one_call:
                    batch.step(nstep=substeps, stage=self._stage)
                else:
                    sensors = batch.bind("sensordata") if record else None
                    trace = np.empty((n, substeps, self.mj_model.nsensordata), dtype)
                    for i in range(substeps):
                        for name in stepped:
                            batch.bind(name)[...] = rows[name][:, i]
                        current = record or i == substeps - 1
                        batch.step(nstep=1, stage=self._stage if current else 0)
                        if record:
                            trace[:, i] = sensors
                    if record:
                        bound["record"] = trace
                return tuple(_like(bound[k], dtype, shapes.get(k)) for k in outputs)

        return step

    def _host_set_const(self, names: tuple[str, ...], fields: tuple[str, ...]) -> Callable:
        def set_const(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            # A Batch of its own: set_const expands every constant it derives, and needs the flags
            # that `_without_shortcuts` clears to refuse what the compiler's shortcuts don't allow.
            batch = Batch(self.mj_model, len(arrays[0]), self.threads)
            for name, value in zip(names, arrays, strict=True):
                batch.expand(name)[...] = value
            batch.set_const()
            return tuple(np.array(batch.expand(k), np.float64) for k in fields)

        return set_const

    @staticmethod
    def _varied(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(k for k in names if k not in WRITTEN)

    def _constant_fields(self, varied: tuple[str, ...]) -> tuple[str, ...]:
        if not set(varied) & {*mujoco.MjModel._setconst_inputs}:
            return ()
        constants = CONSTANTS + (BOUNDS if _SHAPES & {*varied} else ())
        return tuple(k for k in constants if np.prod(self._constant_shape(k)))

    def _constant_shape(self, name: str) -> tuple[int, ...]:
        if name == "bvh_aabb":  # those of the bodies vary, those of the meshes behind them don't
            return (int(self.mj_model.body_bvhnum.sum()), 6)
        return self.model_field(name).shape


class _BatchPool:
    """Lends a `Batch` to one caller at a time: shared between threads, a Batch corrupts results."""

    def __init__(self, mj_model: mujoco.MjModel, threads: int | None) -> None:
        self._mj_model = mj_model
        self._threads = threads
        self._lock = threading.Lock()
        self._free: collections.OrderedDict[tuple, list[Batch]] = collections.OrderedDict()

    def threads(self) -> int:
        """Threads of one call: with several devices, as many calls run at once."""
        return self._threads or max(1, _cores() // jax.local_device_count())

    @contextlib.contextmanager
    def lend(self, n: int, varied: tuple[str, ...]) -> Iterator[Batch]:
        """A Batch of `n` simulations with the fields `varied` expanded, for this caller alone."""
        key = (n, varied)
        with self._lock:
            idle = self._free.get(key)
            batch = idle.pop() if idle else None
        if batch is None:
            batch = Batch(_without_shortcuts(self._mj_model, varied), n, self.threads())
        # A diverged float64 may not fit a float32.
        with np.errstate(over="ignore", invalid="ignore"), unprofiled():
            yield batch  # an exception drops the Batch
        with self._lock:
            self._free.setdefault(key, []).append(batch)
            self._free.move_to_end(key)
            while len(self._free) > _MAX_IDLE_KINDS:
                self._free.popitem(last=False)


@contextlib.contextmanager
def unprofiled() -> Iterator[None]:
    """Stops MuJoCo's profiler (`mjData.timer`), whose clock takes half of a two-link arm's step.

    The clock is `mjcb_time`, which MuJoCo's Python package sets, and offers no way to clear.
    """
    if (clock := _profiler_clock()) is None or not (set_before := clock.value):
        yield
        return
    clock.value = None
    try:
        yield
    finally:
        clock.value = set_before


@functools.cache
def _profiler_clock() -> ctypes.c_void_p | None:
    """The pointer itself; None where the linker doesn't find it through what uses it (Windows)."""
    try:
        return ctypes.c_void_p.in_dll(ctypes.CDLL(_callbacks.__file__), "mjcb_time")
    except ValueError:
        return None


def _of_the_live(fn: Callable) -> Callable:
    """A host function that is called with the rows whose first argument is true; zeros elsewhere.

    With a half, a quarter, ... of the rows, some of them twice, so that few sizes of Batch occur.
    """

    def call(live: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        rows, size = np.flatnonzero(live), len(live)
        if len(rows) == 0:
            rows = np.zeros(1, np.int64)
        while (size + 1) // 2 >= len(rows) and size > 1:
            size = (size + 1) // 2
        if size == len(live):
            return fn(*arrays)
        some = fn(*(x[np.resize(rows, size)] for x in arrays))
        full = [np.zeros((len(live), *x.shape[1:]), x.dtype) for x in some]
        for whole, part in zip(full, some, strict=True):
            whole[rows] = part[: len(rows)]
        return tuple(full)

    return call


def _slot(batch: Batch, name: str) -> np.ndarray:
    return batch.bind(name) if name in WRITTEN else batch.expand(name)


def _like(bound: np.ndarray, dtype: np.dtype, shape: tuple[int, ...] | None) -> np.ndarray:
    copied = bound.astype(dtype)
    return copied if shape is None else copied.reshape(len(copied), *shape)


def _without_shortcuts(mj_model: mujoco.MjModel, varied: tuple[str, ...]) -> mujoco.MjModel:
    """A model whose "same frame as the body (or its inertia)" flags don't hide poses that vary."""
    if not _FRAMES & {*varied}:
        return mj_model
    model = copy.copy(mj_model)
    for flags in (model.body_sameframe, model.geom_sameframe, model.site_sameframe):
        flags[:] = 0
    return model


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _log_warnings() -> None:
    """Sends MuJoCo's warnings to `logging`, not to a file in the user's folder; once."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(logging.getLogger("mujoco").info)
