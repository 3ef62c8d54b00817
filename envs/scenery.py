"""What surrounds a scene: floor, sky, lights and a camera. Nothing here moves or collides."""

from collections.abc import Sequence

import mujoco
import numpy as np

CAMERA = "front"
"""The scene's first camera, from which films are taken."""


def furnish(
    spec: mujoco.MjSpec, target: Sequence[float], eye: Sequence[float], floor: float = 0.0
) -> None:
    """Adds a floor, a sky, two lights and a camera.

    Args:
      spec: the scene; changed.
      target: the point that the camera looks at and the lights shine on, m.
      eye: where the camera is, m.
      floor: height of the floor, m.
    """
    target, eye = np.asarray(target, float), np.asarray(eye, float)
    spec.stat.center, spec.stat.extent = target, float(np.linalg.norm(eye - target))
    _add_floor(spec, floor)
    _add_sky(spec)
    _add_lights(spec, target)
    _add_camera(spec, target, eye)


def _add_floor(spec: mujoco.MjSpec, height: float) -> None:
    """A square floor of 10 cm tiles, as large as the key light's shadow map covers."""
    half = 0.5 * spec.stat.extent
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.80, 0.82, 0.85],
        rgb2=[0.75, 0.77, 0.81],
        width=64,
        height=64,
    )
    material = spec.add_material(name="floor", texrepeat=[5, 5], texuniform=True, specular=0.1)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0, 0, height],
        size=[half, half, 0.01],
        material="floor",
        contype=0,
        conaffinity=0,
    )


def _add_sky(spec: mujoco.MjSpec) -> None:
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.62, 0.69, 0.77],
        rgb2=[0.93, 0.95, 0.97],
        width=64,
        height=64,
    )
    spec.visual.rgba.haze = [0.80, 0.84, 0.88, 1.0]


def _add_lights(spec: mujoco.MjSpec, target: np.ndarray) -> None:
    """A key light that casts shadows, a weaker one from the other side, and the camera's own."""
    reach = spec.stat.extent
    head = spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [0.38] * 3, [0.2] * 3, [0.05] * 3
    for name, offset, strength, shadow in (
        ("key", np.array([0.25, -0.1, 1.0]), 0.55, True),
        ("fill", np.array([-0.3, -0.9, 0.8]), 0.22, False),
    ):
        spec.worldbody.add_light(
            name=name,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            pos=target + reach * offset,
            dir=-offset,
            diffuse=[strength] * 3,
            specular=[0.4 * shadow] * 3,
            castshadow=shadow,
        )


def _add_camera(spec: mujoco.MjSpec, target: np.ndarray, eye: np.ndarray) -> None:
    """A camera whose x axis is horizontal and whose -z axis points at the target."""
    back = eye - target
    right = np.cross([0.0, 0.0, 1.0], back)
    camera = spec.worldbody.add_camera(name=CAMERA, pos=eye, fovy=40)
    camera.alt.type = mujoco.mjtOrientation.mjORIENTATION_XYAXES
    camera.alt.xyaxes = [*right, *np.cross(back, right)]
