"""Trained policies that come with the library, each for one task with one set of options.

    name = trained.find("DofbotReacher", config)      # None if there's none for these options
    policy, params = trained.load(name, env)

Each was made by its `command` on two cores of a CPU, and exported. For "dofbot-servo" that is

    python -m experiments.train --env DofbotReacher --profile servo --seed 0 --run-dir runs/servo
    python -m experiments.export --run-dir runs/servo --out exported
    cp exported/policy.npz envs/trained/dofbot-servo.npz
"""

from pathlib import Path
from typing import Any, NamedTuple

import envs
from jaxrobo import data, deploy
from jaxrobo.env import Env
from jaxrobo.policy import Params, Policy

__all__ = ["POLICIES", "Trained", "find", "load"]

_DEPLOYED = {"profile": "servo", "safety": True, "real_goals": True}


class Trained(NamedTuple):
    """What a policy was trained for.

    Attributes:
      env: name of the task.
      options: of the task, where they aren't the defaults.
      goals: that it reaches in an episode, a mean over 256 of the test split.
    """

    env: str
    options: dict[str, Any]
    goals: float

    @property
    def command(self) -> str:
        """What trained it; the seed was 0, and everything else as the preset has it."""
        flags = (_flag(name, value) for name, value in self.options.items())
        return " ".join(["python -m experiments.train --env", self.env, *flags])


def _flag(name: str, value: Any) -> str:
    dashed = name.replace("_", "-")
    return f"--{dashed}" if value is True else f"--{dashed} {value}"


POLICIES = {
    "dofbot": Trained("DofbotReacher", {}, 179.8),
    "dofbot-servo": Trained("DofbotReacher", {"profile": "servo"}, 10.5),
    "ur10-safety": Trained("UR10Reacher", {"safety": True}, 142.1),
    "ur10-deployed": Trained("UR10Reacher", _DEPLOYED, 283.5),
    "kuka": Trained("KukaReacher", {}, 12.7),
    "hiwin": Trained("HiwinReacher", {}, 11.9),
}
"""By name; `<name>.npz` lies beside this file."""


def find(env: str, config: Any) -> str | None:
    """The name of the policy that was trained for a task with exactly these options.

    Where an episode starts and what disturbs it (fields whose metadata say `{"of_task": False}`)
    may differ.

    Args:
      env: name of the task.
      config: its options, the task's `Config`.
    """
    for name, policy in POLICIES.items():
        if policy.env == env:
            own = envs.config_class(env)(**policy.options)
            if data.task_options(own) == data.task_options(config):
                return name
    return None


def load(name: str, env: Env) -> tuple[Policy, Params]:
    """A policy and its parameters.

    Args:
      name: one of `POLICIES`.
      env: where it's to act; not compared with the one it was trained in, but for what it shows.

    Raises:
      ValueError: if there's no such policy, or the environment shows something else or has other
        actions.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; valid: {', '.join(POLICIES)}")
    network = deploy.load_npz(Path(__file__).with_name(f"{name}.npz"))
    return deploy.restore(network, env), network
