"""Contact sensors, read: who touches whom, and how hard.

sensor = ContactSensor.from_model(mj_model, "touch")  # made by Scene.contact_sensor
sensor.touching(state)
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrobo.physics.types import PhysicsState


@dataclasses.dataclass(frozen=True)
class ContactSensor:
    """What geoms `a` do to geoms `b`; see `Scene.contact_sensor`.

    Attributes:
      names: the model's sensors that it consists of, one for each pair of geoms. Give them to
        `Physics.step(..., record=sensor.names)` to read every substep.
      addresses: where each one starts in `PhysicsState.sensordata`.
      has_force: whether the force is measured.
    """

    names: tuple[str, ...]
    addresses: tuple[int, ...]
    has_force: bool

    @classmethod
    def from_model(cls, mj_model: mujoco.MjModel, name: str) -> "ContactSensor":
        """Finds a sensor by the name that it was made with.

        Raises:
          ValueError: if the model has no contact sensor of that name.
        """
        kinds = mj_model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT
        known = {mj_model.sensor(i).name: i for i in np.flatnonzero(kinds)}
        parts = [n for n in known if n.rpartition("/")[0] == name]
        if not parts:
            valid = sorted({n.rpartition("/")[0] for n in known})
            raise ValueError(f"unknown contact sensor {name!r}; the model has {valid}")
        ids = [known[n] for n in parts]
        addresses = tuple(int(mj_model.sensor_adr[i]) for i in ids)
        return cls(tuple(parts), addresses, bool(mj_model.sensor_dim[ids[0]] > 1))

    def touching(self, source: PhysicsState | Mapping[str, jax.Array]) -> jax.Array:
        """Whether any geom of `a` touches one of `b`, bool.

        Args:
          source: a state, or what `Physics.step` recorded, `[substeps, ...]`.

        Returns:
          `[]`, or `[substeps]`.
        """
        return jnp.any(self._read(source)[..., 0] > 0, axis=-1)

    def force(self, source: PhysicsState | Mapping[str, jax.Array]) -> jax.Array:
        """The net force of `a` on `b` in world axes, N: `[3]`, or `[substeps, 3]`.

        It is the force under the inputs of the step that led to the state.

        Raises:
          ValueError: if the sensor was made without force.
        """
        if not self.has_force:
            raise ValueError(f"{self.names[0]!r} measures no force: make it with force=True")
        return jnp.sum(self._read(source)[..., 1:], axis=-2)

    def _read(self, source: PhysicsState | Mapping[str, jax.Array]) -> jax.Array:
        """`[..., number of pairs, 1 or 4]`."""
        if not isinstance(source, PhysicsState):
            return jnp.stack([source[name] for name in self.names], axis=-2)
        width = 4 if self.has_force else 1
        index = np.asarray(self.addresses)[:, None] + np.arange(width)
        return source.sensordata[..., index]


def grasped(
    force_a: jax.Array, force_b: jax.Array, min_force: float, max_angle: float = np.pi / 3
) -> jax.Array:
    """Whether two fingers hold a thing between them: both press, and against each other.

    Args:
      force_a: force of one finger on the thing, N. [3]
      force_b: force of the other. [3]
      min_force: of each, N.
      max_angle: between one force and the opposite of the other, rad.

    Returns:
      bool. []
    """
    a, b = jnp.linalg.norm(force_a, axis=-1), jnp.linalg.norm(force_b, axis=-1)
    cosine = -jnp.sum(force_a * force_b, axis=-1) / jnp.maximum(a * b, 1e-9)
    return (jnp.minimum(a, b) >= min_force) & (cosine >= np.cos(max_angle))
