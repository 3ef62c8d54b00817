"""Settings that must be in place before any test imports jax or mujoco."""

import ctypes.util
import os
import sys

from hypothesis import settings

# The tests mean the same on every machine: CPU, even where there is an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"

# Rendering without a display. Without libEGL the name would make `import mujoco` itself fail.
if sys.platform == "linux" and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

# Compilation takes most of the time, and optimised code is not worth its price at these sizes.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

# The first example compiles, so a deadline would measure the compiler.
settings.register_profile("jaxrobo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("jaxrobo")
