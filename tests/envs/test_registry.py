"""Environments by name."""

import dataclasses

import pytest

import envs
from envs.reacher.dofbot import Config, DofbotReacher
from jaxrobo.env import NaNGuard, TimeLimit


def test_make_guards_and_limits():
    env = envs.make("DofbotReacher", engine="native", threads=1, episode_steps=7, profile="servo")
    assert isinstance(env, NaNGuard)
    assert isinstance(env.env, TimeLimit)
    assert isinstance(env.unwrapped, DofbotReacher)
    assert env.time_limit == 7
    assert env.unwrapped.config == Config(episode_steps=7, profile="servo")
    assert env.engine == "native"
    assert envs.make("DofbotReacher").time_limit == 599


def test_names_are_sorted_and_have_configs():
    assert "DofbotReacher" in envs.names()
    assert envs.names() == sorted(envs.names())
    for name in envs.names():
        config = envs.config_class(name)
        assert dataclasses.is_dataclass(config)
        assert config().episode_steps > 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            config().episode_steps = 1
    assert envs.config_class("DofbotReacher") is Config


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match=r"unknown environment 'Dofbot'; valid: .*DofbotReacher"):
        envs.make("Dofbot")
    with pytest.raises(ValueError, match="unknown environment 'Dofbot'"):
        envs.config_class("Dofbot")
    with pytest.raises(ValueError, match="DofbotReacher has no option 'steps'; valid: profile, "):
        envs.make("DofbotReacher", steps=3)
    with pytest.raises(ValueError, match="unknown engine 'bullet'"):
        envs.make("DofbotReacher", engine="bullet")


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(envs, "_REGISTRY", dict(envs._REGISTRY))
    envs.register("Mine", DofbotReacher, Config)
    assert "Mine" in envs.names()
    assert isinstance(envs.make("Mine").unwrapped, DofbotReacher)
    with pytest.raises(ValueError, match="'Mine' is registered already"):
        envs.register("Mine", DofbotReacher, Config)
