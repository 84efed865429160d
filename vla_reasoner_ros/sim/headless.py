"""MuJoCo, imported after a headless OpenGL was chosen: ``from ...headless import mujoco``.

MuJoCo fixes its OpenGL when it is first imported, by the environment variable ``MUJOCO_GL``. What
the user set is kept. Otherwise, on Linux, EGL is chosen where it finds a device, else OSMesa.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys

from vla_reasoner_ros.errors import ConfigurationError


def _egl_has_device() -> bool:
    """Whether libEGL loads and lists a device (a GPU, or Mesa's software renderer)."""
    library = ctypes.util.find_library("EGL")
    if library is None:
        return False
    try:
        egl = ctypes.CDLL(library)
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
        address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    except (OSError, AttributeError):
        return False
    if not address:
        return False
    query = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )(address)
    count = ctypes.c_int(0)
    return bool(query(0, None, ctypes.byref(count))) and count.value > 0


def choose_backend(environment: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """Set ``MUJOCO_GL`` (and PyOpenGL's platform with it) unless the user did; return it.

    Returns:
        The backend; empty off Linux, where MuJoCo's own choice stands, and where there is no
        headless OpenGL: physics works without one, and :func:`explain` tells who wants to render.
    """
    chosen = environment.get("MUJOCO_GL", "")
    if not chosen and sys.platform.startswith("linux"):
        if _egl_has_device():
            chosen = "egl"
        elif ctypes.util.find_library("OSMesa"):
            chosen = "osmesa"
        if chosen:
            environment["MUJOCO_GL"] = chosen
            environment.setdefault("PYOPENGL_PLATFORM", chosen)
    return chosen


def explain(error: BaseException) -> ConfigurationError:
    """The error for a renderer that could not be made, with what to install."""
    return ConfigurationError(
        f"rendering: no OpenGL context with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} "
        f"({type(error).__name__}: {error}); headless rendering needs EGL (Debian: libegl1 libgl1 "
        "libgles2) or OSMesa (Debian: libosmesa6), MUJOCO_GL=egl or osmesa"
    )


choose_backend()

import mujoco  # noqa: E402  the choice above must come first
from mujoco import rollout  # noqa: E402

__all__ = ["choose_backend", "explain", "mujoco", "rollout"]
