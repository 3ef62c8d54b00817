"""Drawing MuJoCo scenes without a window, with whichever OpenGL backend this machine has."""

import contextlib
import ctypes
import ctypes.util
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np

_BACKENDS = ("egl", "osmesa", "glfw", "cgl")
_OFF = ("disable", "disabled", "off", "false", "0")
_INSTALL = (
    "on Debian or Ubuntu, `apt install libegl1 libegl-mesa0 libgl1-mesa-dri` or `libosmesa6` helps"
)


class RendererUnavailable(RuntimeError):
    """This machine has no way to draw; the message says what to install."""


class Canvas:
    """A picture outside of any window, that scenes are drawn into."""

    def __init__(self, model: mujoco.MjModel, gl: Any, width: int, height: int) -> None:
        self._gl = gl
        self._picture = mujoco.MjrRect(0, 0, width, height)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_rectangle(self._picture, 0.0, 0.0, 0.0, 1.0)  # its memory isn't blank
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._option = mujoco.MjvOption()

    def draw(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: mujoco.MjvCamera,
        rect: mujoco.MjrRect,
    ) -> None:
        """Draws into a part of the picture."""
        mujoco.mj_fwdPosition(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, None, camera, everything, self._scene)
        self._gl.make_current()  # another canvas may be in use
        mujoco.mjr_render(rect, self._scene, self._context)

    def read(self) -> np.ndarray:
        """The picture, `[height, width, 3]`, uint8."""
        pixels = np.empty((self._picture.height, self._picture.width, 3), np.uint8)
        self._gl.make_current()
        mujoco.mjr_readPixels(pixels, None, self._picture, self._context)
        return pixels[::-1]

    def close(self) -> None:
        """Frees what it holds in OpenGL."""
        self._gl.make_current()
        self._context.free()


@contextlib.contextmanager
def canvas(model: mujoco.MjModel, width: int, height: int) -> Iterator[Canvas]:
    """A canvas, and the OpenGL context that it needs.

    `mujoco.Renderer` takes the backend that mujoco was imported with: GLFW, which needs a display,
    unless MUJOCO_GL was set by then. Here the backend is chosen when it's needed.

    Args:
      model: the first of the models to draw; others must look the same but for sizes and poses.
      width: pixels.
      height: pixels.

    Raises:
      RendererUnavailable: if this machine can't draw.
    """
    backend = choose_backend()
    with contextlib.ExitStack() as stack:
        try:
            gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            stack.callback(gl.free)
            gl.make_current()
            made = Canvas(model, gl, width, height)
        except Exception as error:  # every backend and driver fails in its own way
            raise RendererUnavailable(f"{backend} can't draw ({error}); {_INSTALL}") from error
        stack.callback(made.close)
        yield made


def choose_backend() -> str:
    """Which of MuJoCo's OpenGL backends draws: what MUJOCO_GL says, or one that needs no display.

    Raises:
      RendererUnavailable: if there's none, or MUJOCO_GL turns drawing off.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in _BACKENDS:
        return asked
    if asked in _OFF:
        raise RendererUnavailable(f"MUJOCO_GL={asked} turns drawing off")
    if sys.platform != "linux":
        return "cgl" if sys.platform == "darwin" else "glfw"
    if _egl_devices():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return "glfw"
    raise RendererUnavailable(f"no EGL device, no OSMesa and no display to draw with; {_INSTALL}")


def _egl_devices() -> int:
    """On how many devices EGL can draw without a display.

    Asked without PyOpenGL, which stays with the first backend that it has loaded.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    arguments = ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    count = ctypes.c_int()
    ctypes.CFUNCTYPE(ctypes.c_uint, *arguments)(address)(0, None, ctypes.byref(count))
    return count.value
