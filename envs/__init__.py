"""Environments by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from envs.assembly import peg_hole
from envs.reacher import dofbot, hiwin, kuka, ur10
from envs.reacher.base import randomised
from jaxrobo.env import Env, NaNGuard, PhysicsEnv, TimeLimit

__all__ = ["config_class", "make", "names", "register"]


class _Entry(NamedTuple):
    env_class: Callable[..., PhysicsEnv]
    config_class: type
    wrap: Callable[[Env, Any], Env]


_REGISTRY: dict[str, _Entry] = {}


def register(
    name: str,
    env_class: Callable[..., PhysicsEnv],
    config_class: type,
    wrap: Callable[[Env, Any], Env] = lambda env, config: env,
) -> None:
    """Makes an environment known to `make`.

    Args:
      name: what to call it.
      env_class: called as `env_class(config, engine=..., threads=...)`.
      config_class: a frozen dataclass with the fields that `make` takes as options; its field
        `episode_steps` is the time limit.
      wrap: called as `wrap(env, config)`, for what `config` asks for around the environment.

    Raises:
      ValueError: if the name is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"an environment named {name!r} is registered already")
    _REGISTRY[name] = _Entry(env_class, config_class, wrap)


def names() -> list[str]:
    """All names that `make` knows."""
    return sorted(_REGISTRY)


def config_class(name: str) -> type:
    """The dataclass of an environment's options. Raises ValueError if the name is unknown."""
    return _entry(name).config_class


def make(name: str, engine: str = "auto", threads: int | None = None, **options: Any) -> Env:
    """Makes an environment of one simulation, with its time limit and a guard against NaN.

    Args:
      name: one of `names()`.
      engine: "native", "mjx", or "auto" (`jaxrobo.physics.make_physics`).
      threads: CPU threads of the native engine; each JAX device's share of the cores if None.
      **options: fields of the environment's `Config`.

    Raises:
      ValueError: on an unknown name, engine or option, or an option's bad value.
    """
    entry = _entry(name)
    valid = [f.name for f in dataclasses.fields(entry.config_class)]
    for option in options:
        if option not in valid:
            raise ValueError(f"{name} has no option {option!r}; valid: {', '.join(valid)}")
    config = entry.config_class(**options)
    env = entry.env_class(config, engine=engine, threads=threads)
    return NaNGuard(TimeLimit(entry.wrap(env, config), config.episode_steps))


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        raise ValueError(f"unknown environment {name!r}; valid: {', '.join(names())}")
    return _REGISTRY[name]


register("PegHole", peg_hole.PegHole, peg_hole.Config)
register("DofbotReacher", dofbot.DofbotReacher, dofbot.Config, randomised)
register("UR10Reacher", ur10.UR10Reacher, ur10.Config, randomised)
register("KukaReacher", kuka.KukaReacher, kuka.Config, randomised)
register("HiwinReacher", hiwin.HiwinReacher, hiwin.Config, randomised)
