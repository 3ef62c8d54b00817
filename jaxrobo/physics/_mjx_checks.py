"""What MuJoCo XLA lacks, or leaves out in silence, by name."""

import collections

import mujoco
import numpy as np

from jaxrobo.physics import _mjx_contact
from jaxrobo.physics._mjx import geom_pairs, mjx

SENSORS = {
    "accelerometer",
    "actuatorfrc",
    "actuatorpos",
    "actuatorvel",
    "ballangvel",
    "ballquat",
    "clock",
    "contact",
    "force",
    "frameangacc",
    "frameangvel",
    "framelinacc",
    "framelinvel",
    "framepos",
    "framequat",
    "framexaxis",
    "frameyaxis",
    "framezaxis",
    "gyro",
    "jointactfrc",
    "jointpos",
    "jointvel",
    "magnetometer",
    "subtreeangmom",
    "subtreecom",
    "subtreelinvel",
    "tendonpos",
    "tendonvel",
    "torque",
    "touch",
    "velocimeter",
}
"""Sensors known to read the same on both engines. MJX leaves many others at zero in silence."""

IGNORED = {
    "actuator_cranklength",
    "dof_dampingpoly",
    "geom_gap",
    "jnt_stiffnesspoly",
    "pair_gap",
    "tendon_armature",
    "tendon_dampingpoly",
    "tendon_stiffnesspoly",
}
"""Fields of `mjx.Model` that MJX's dynamics don't read, or not as the C engine does."""


def unsupported(m: mujoco.MjModel) -> list[str]:
    """Names what MJX would leave out or do otherwise; not what it refuses itself."""
    found = [name for name, present in _features(m).items() if np.any(present)]
    lacking = [i for i in range(m.nsensor) if not _has_sensor(m, i)]
    return found + [f"sensor {m.sensor(i).name!r} ({_kind(m, i)})" for i in lacking]


def colliding(m: mujoco.MjModel) -> list[str]:
    """How many pairs of geoms of each kind may collide, the most first."""
    kind = lambda geom: mujoco.mjtGeom(m.geom_type[geom]).name.removeprefix("mjGEOM_").lower()
    counts = collections.Counter("-".join(sorted((kind(a), kind(b)))) for a, b, _ in geom_pairs(m))
    return [f"{count} {kinds} pairs" for kinds, count in counts.most_common()]


def _features(m: mujoco.MjModel) -> dict[str, bool | int | np.ndarray]:
    opt, disabled = m.opt, m.opt.disableflags
    integrator, enabled = mujoco.mjtIntegrator(opt.integrator), opt.enableflags
    implicit = integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    known = implicit or integrator == mujoco.mjtIntegrator.mjINT_EULER
    muscles = (m.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE).any()
    spring = bool(disabled & mujoco.mjtDisableBit.mjDSBL_SPRING)
    damper = bool(disabled & mujoco.mjtDisableBit.mjDSBL_DAMPER)
    fluid = opt.density > 0 or opt.viscosity > 0
    nonlinear = (
        m.jnt_stiffnesspoly,
        m.dof_dampingpoly,
        m.tendon_stiffnesspoly,
        m.tendon_dampingpoly,
        m.actuator_dampingpoly,
    )
    return {
        f"integrator {integrator.name} (valid: Euler, implicitfast)": not known,
        "muscles with the implicitfast integrator": muscles and implicit,
        "models without joints": not m.nv,
        "plugins": m.nplugin,
        "flexes": m.nflex,
        "actuator or sensor delays": m.nhistory,
        "sleeping": enabled & mujoco.mjtEnableBit.mjENBL_SLEEP,
        "springs or dampers disabled without the others": spring != damper,
        "nonlinear springs or dampers": any(np.any(field) for field in nonlinear),
        "actuator armature": m.actuator_armature,
        "actuator damping": m.actuator_damping,
        "early activation (actearly)": m.actuator_actearly,
        "disabled actuator groups": opt.disableactuator,
        "actuators with several inputs": m.nu != m.nactuator,
        "tendon armature": m.tendon_armature,
        "the ellipsoid fluid model": fluid and np.any(m.geom_fluid[:, 0]),
        "noslip iterations": opt.noslip_iterations,
        "contact gap": np.any(m.geom_gap) or np.any(m.pair_gap),
        "adhesive geoms": m.flg_adhesion,
        "moving surfaces (surfacevel)": m.flg_surfacevel,
    }


def _has_sensor(m: mujoco.MjModel, sensor: int) -> bool:
    for kind, i in (
        (m.sensor_objtype[sensor], m.sensor_objid[sensor]),
        (m.sensor_reftype[sensor], m.sensor_refid[sensor]),
    ):
        if kind == mujoco.mjtObj.mjOBJ_CAMERA and m.cam_mode[i] != mjx.CamLightType.FIXED:
            return False  # MJX gives it the velocity of its body
    if m.sensor_type[sensor] == mujoco.mjtSensor.mjSENS_CONTACT:
        return _mjx_contact.is_supported(m, sensor)
    return _kind(m, sensor) in SENSORS


def _kind(m: mujoco.MjModel, sensor: int) -> str:
    return mujoco.mjtSensor(m.sensor_type[sensor]).name.removeprefix("mjSENS_").lower()
