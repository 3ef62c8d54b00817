"""A task that is quick to compile, whose expert wins one episode in four."""

import dataclasses

import jax.numpy as jnp

import envs
from jaxrobo import policy
from tests.tiny import Draw


@dataclasses.dataclass(frozen=True)
class Config:
    """Options: the time limit, how the expert acts, and a condition without effect."""

    episode_steps: int = 8
    act: float = -0.25
    expert: bool = True
    noise: float = dataclasses.field(default=0.0, metadata={"of_task": False})


class Coin(Draw):
    def __init__(self, config=None, engine="auto", threads=None):
        self.config = config or Config()
        self.engine = "none"
        if self.config.expert:
            self.expert = self._expert

    def _expert(self):
        if self.config.act < -1:
            raise ValueError(f"the expert can't act by {self.config.act}")
        return policy.constant(jnp.array([self.config.act]))


def register():
    """Makes the task known."""
    envs.register("Coin", Coin, Config)
