"""The sensors of a state in MuJoCo XLA."""

import mujoco
import numpy as np

from jaxrobo.physics import _mjx_contact
from jaxrobo.physics._mjx import mjx, velocities
from jaxrobo.physics._mjx_collision import collision
from jaxrobo.physics._mjx_step import accelerations

_NEVER = -1


def sensors(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """All sensors, after `kinematics`. Forces are computed only if one needs them."""
    contacts = np.asarray(model.sensor_type) == mujoco.mjtSensor.mjSENS_CONTACT
    late = np.any(model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC)
    if late:
        data = accelerations(model, data)
    else:
        data = mjx.transmission(model, mjx.tendon(model, mjx.com_pos(model, data)))
        if contacts.any():
            data = collision(model, data)
    # MJX would refuse some contact sensors, and read others otherwise than the C engine.
    stages = np.where(contacts, _NEVER, model.sensor_needstage)
    rest = model.replace(sensor_needstage=stages)
    data = mjx.sensor_pos(rest, mjx.camlight(model, data))
    data = mjx.sensor_vel(rest, velocities(model, data))
    if late:
        data = mjx.sensor_acc(rest, data)
    return data.replace(sensordata=_mjx_contact.sense(model, data))
