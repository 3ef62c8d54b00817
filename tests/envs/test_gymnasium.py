"""Our environments by gymnasium's names."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
import envs.gymnasium
from envs.reacher.dofbot import Config, DofbotReacher
from jaxrobo.bridge.gymnasium import GymnasiumEnv, GymnasiumVectorEnv
from tests.test_rendering import needs_gl

OPTIONS = {"engine": "native", "threads": 1, "episode_steps": 2, "profile": "servo"}


def test_all_names_are_registered_with_their_own_time_limit():
    for name in envs.names():
        spec = gymnasium.spec(f"jaxrobo/{name}-v0")
        assert spec.max_episode_steps is None
        assert spec.kwargs == {"name": name}


def test_names_that_come_later_can_follow(monkeypatch):
    monkeypatch.setattr(envs, "_REGISTRY", dict(envs._REGISTRY))
    monkeypatch.setattr(gymnasium.envs.registration, "registry", {})
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    envs.register("Mine", DofbotReacher, Config)
    envs.gymnasium.register()
    envs.gymnasium.register()  # warns of no name that's taken
    assert sorted(gymnasium.registry) == [f"jaxrobo/{name}-v0" for name in envs.names()]


def test_one_is_made_with_its_options():
    env = gymnasium.make("envs.gymnasium:jaxrobo/DofbotReacher-v0", **OPTIONS)
    assert isinstance(env.unwrapped, GymnasiumEnv)
    assert env.unwrapped.env.unwrapped.config == Config(episode_steps=2, profile="servo")
    env.reset(seed=0)
    truncated = [env.step(np.zeros(5))[3] for _ in range(2)]
    assert truncated == [False, True]


def test_many_are_made_with_their_options():
    batch = gymnasium.make_vec(
        "jaxrobo/DofbotReacher-v0", num_envs=3, autoreset_mode="NextStep", **OPTIONS
    )
    assert isinstance(batch, GymnasiumVectorEnv)
    assert batch.num_envs == 3
    assert batch.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert batch.env.unwrapped.config == Config(episode_steps=2, profile="servo")


@needs_gl
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value is -?infinity")
def test_gymnasium_finds_nothing_wrong_with_what_it_made():
    check_env(gymnasium.make("jaxrobo/DofbotReacher-v0", **OPTIONS).unwrapped)


@needs_gl
def test_gymnasium_collects_pictures():
    env = gymnasium.make("jaxrobo/DofbotReacher-v0", render_mode="rgb_array_list", **OPTIONS)
    env.reset()
    env.step(np.zeros(5))
    assert [frame.shape for frame in env.render()] == [(480, 640, 3)] * 2
    env.close()


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="DofbotReacher has no option 'steps'; valid: profile"):
        gymnasium.make("jaxrobo/DofbotReacher-v0", steps=3)
    with pytest.raises(ValueError, match=r"no option 'max_episode_steps'; valid: .*episode_steps"):
        gymnasium.make_vec("jaxrobo/DofbotReacher-v0", max_episode_steps=3)
    with pytest.raises(ValueError, match="unknown autoreset mode 'Never'"):
        gymnasium.make_vec("jaxrobo/DofbotReacher-v0", autoreset_mode="Never", **OPTIONS)
