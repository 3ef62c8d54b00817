"""Our environments under gymnasium's names. Importing this module registers them.

    import envs.gymnasium

    env = gymnasium.make("jaxrobo/DofbotReacher-v0", profile="servo", render_mode="rgb_array")
    batch = gymnasium.make_vec("jaxrobo/DofbotReacher-v0", num_envs=256)

`gymnasium.make("envs.gymnasium:jaxrobo/DofbotReacher-v0")` imports it by itself.
"""

from typing import Any

import gymnasium

import envs
from jaxrobo.bridge.gymnasium import GymnasiumEnv, GymnasiumVectorEnv

__all__ = ["make", "make_vec", "register"]


def register() -> None:
    """Makes each of `envs.names()` known to gymnasium as `jaxrobo/<name>-v0`, if it isn't yet.

    Needed again only for environments that are registered later.
    """
    for name in envs.names():
        if f"jaxrobo/{name}-v0" not in gymnasium.registry:
            # The time limit is in the environment already.
            gymnasium.register(
                f"jaxrobo/{name}-v0",
                entry_point="envs.gymnasium:make",
                vector_entry_point="envs.gymnasium:make_vec",
                kwargs={"name": name},
            )


def make(name: str, render_mode: str | None = None, **options: Any) -> GymnasiumEnv:
    """One simulation; what `gymnasium.make` calls.

    Args:
      name: one of `envs.names()`.
      render_mode: see `GymnasiumEnv`.
      **options: of `envs.make`.

    Raises:
      ValueError, RendererUnavailable: as `envs.make` and `GymnasiumEnv` do.
    """
    return GymnasiumEnv(envs.make(name, **options), render_mode)


# gymnasium.make looks here, and then makes "rgb_array_list" and "human" of it by itself.
make.metadata = {"render_modes": ["rgb_array"]}


def make_vec(
    name: str,
    num_envs: int,
    autoreset_mode: str = "SameStep",
    render_mode: str | None = None,
    **options: Any,
) -> GymnasiumVectorEnv:
    """Simulations in one program; what `gymnasium.make_vec` calls.

    Args:
      name: one of `envs.names()`.
      num_envs: how many.
      autoreset_mode: see `GymnasiumVectorEnv`.
      render_mode: see `GymnasiumEnv`.
      **options: of `envs.make`.

    Raises:
      ValueError, RendererUnavailable: as `envs.make` and `GymnasiumVectorEnv` do.
    """
    return GymnasiumVectorEnv(envs.make(name, **options), num_envs, autoreset_mode, render_mode)


register()
