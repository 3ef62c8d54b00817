"""Settings that must be in place before any test imports jax or mujoco."""

import contextlib
import ctypes.util
import os
import signal
import sys
from importlib.metadata import version

import pytest
from hypothesis import settings

# The tests mean the same on every machine: CPU, even where there is an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"

# Rendering without a display. Without libEGL the name would make `import mujoco` itself fail.
if sys.platform == "linux" and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

# Of torch for GPUs. Imported after Mesa's driver, which brings another LLVM, it crashes.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# Compilation takes most of the time, and optimised code is not worth its price at these sizes.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters, and refuse the flag
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

# The first example compiles, so a deadline would measure the compiler.
settings.register_profile("jaxrobo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("jaxrobo")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiles each program once, here and in other processes, which take the yielded settings."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="session")
def hears_ctrl_c():
    """As in front: a shell makes what it starts in the background ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def interrupted(monkeypatch):
    """`with interrupted(after=3):` sends SIGINT once iteration 3 of a run is logged."""
    from jaxrobo import metrics

    write = metrics.Logs.write

    @contextlib.contextmanager
    def context(after):
        def interrupt(self, counters, values):
            write(self, counters, values)
            if counters["iteration"] == after:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(metrics.Logs, "write", interrupt)
            yield

    return context
