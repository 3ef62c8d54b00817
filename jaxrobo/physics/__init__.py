"""Physics: one simulator interface, two engines, and the geometry of robots."""

import jax
import mujoco

from jaxrobo.physics.native import NativePhysics
from jaxrobo.physics.types import Physics, PhysicsState

__all__ = ["ENGINES", "NativePhysics", "Physics", "PhysicsState", "make_physics"]

ENGINES = ("auto", "native", "mjx")


def make_physics(
    mj_model: mujoco.MjModel, engine: str = "auto", threads: int | None = None
) -> Physics:
    """Makes an engine for a model.

    Args:
      mj_model: the model.
      engine: "native" (MuJoCo's C engine on CPU threads), "mjx" (MuJoCo XLA, on the device), or
        "auto": "mjx" where JAX has an accelerator, "native" otherwise.
      threads: CPU threads of the native engine; each JAX device's share of the cores if None.

    Raises:
      ValueError: on an unknown engine, or a feature of the model that the engine lacks.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; valid: {', '.join(ENGINES)}")
    if engine == "auto":
        engine = "native" if jax.default_backend() == "cpu" else "mjx"
    if engine == "native":
        return NativePhysics(mj_model, threads)
    if threads is not None:
        raise ValueError("threads is an option of the native engine; mjx runs on the device")
    from jaxrobo.physics.mjx import MjxPhysics

    return MjxPhysics(mj_model)
