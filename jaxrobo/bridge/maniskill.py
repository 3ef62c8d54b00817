"""ManiSkill 3 where there is no Vulkan, as on a server without a GPU.

    import gymnasium
    from jaxrobo.bridge.maniskill import without_renderer

    without_renderer()
    import mani_skill.envs

    options = dict(obs_mode="state", sim_backend="physx_cpu", render_backend="none")
    env = gymnasium.make("PickCube-v1", **options)

Its environments are run by `jaxrobo.bridge.vector.from_maniskill`, or `from_gymnasium`.
"""

from typing import Any


def without_renderer() -> None:
    """Makes SAPIEN build scenes that nobody will ever see; for this process, and for good.

    ManiSkill 3.0 makes materials even with `render_backend="none"`, for which SAPIEN 3.0 needs a
    Vulkan device ("failed to find a rendering device"). Physics, and observations of the kind
    "state", are what they were; cameras and pictures fail.

    Raises:
      ImportError: if SAPIEN isn't installed.
    """
    try:
        import sapien.render
        from sapien.wrapper import actor_builder, urdf_loader
    except ImportError as error:
        raise ImportError(f"ManiSkill needs sapien ({error}): pip install mani_skill") from error
    for module in (sapien.render, urdf_loader):
        module.RenderMaterial = _Unseen
    builder = actor_builder.ActorBuilder
    for name in vars(builder):
        if name.startswith("add_") and "visual" in name:
            setattr(builder, name, _add_nothing)


class _Unseen:
    """A material of any kind."""

    def __init__(self, *args: Any, **options: Any) -> None:
        del args
        vars(self).update(options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return lambda *args: None
        raise AttributeError(name)


def _add_nothing(self: Any, *args: Any, **options: Any) -> Any:
    del args, options
    return self
