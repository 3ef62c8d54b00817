import time

import jax.numpy as jnp
import numpy as np
import pytest

import envs
from jaxrobo.policy import constant, uniform
from jaxrobo.viewer import Player
from tests.viewer import browser

page = pytest.importorskip("jaxrobo.viewer.page", reason="viser isn't installed")

PATIENCE = 300.0
"""Seconds that a slow machine may take for anything."""


def play_until(shown, condition):
    """Plays until something is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        shown.run(0.1)
        assert time.monotonic() < end, "it never happened"


@pytest.fixture
def shown():
    """The page of one Dofbot that wants to stand upright."""
    env = envs.make("DofbotReacher", "native", episode_steps=100_000)
    opened = page.Page(Player(env, constant(jnp.zeros(5)), (), 1), "DofbotReacher", port=0)
    yield opened
    opened.close()


@pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING))
def test_in_a_browser(shown, tmp_path):
    """The page loads, a click takes the arm over, a key moves it, Esc gives it back."""
    session = lambda: shown.player.session
    camera = "return window.__viserMutable.camera.position.toArray()"
    with browser.Browser(tmp_path) as chromium:
        chromium.open(shown.url)
        text = lambda: chromium.run("return document.body.innerText")
        play_until(shown, lambda: "taken over: none" in text())
        assert "distance" in text()
        assert "joint5" in text()
        eye = chromium.run(camera)
        width, height = chromium.run("return [window.innerWidth, window.innerHeight]")

        chromium.click(width // 2, height // 2)
        play_until(shown, lambda: session().taken == 0)
        play_until(shown, lambda: "taken over: 0" in text())
        for _ in range(10):
            chromium.press("a")
        play_until(shown, lambda: session().manual[0] == pytest.approx(10 * page.NUDGE))
        play_until(shown, lambda: session().rollout.env.data.qpos[0, 0] > 0.7)  # of 0.79
        assert chromium.run(camera) == eye

        chromium.press(browser.ESCAPE)
        play_until(shown, lambda: session().taken == -1)
        play_until(shown, lambda: abs(session().rollout.env.data.qpos[0, 0]) < 0.05)
        play_until(shown, lambda: "taken over: none" in text())


def test_any_environment_can_be_shown():
    env = envs.make("PegHole", "native")
    opened = page.Page(Player(env, uniform(env.action_size), (), 2), "PegHole", port=0)
    opened.run(0.5)
    opened.close()
    assert opened.frames > 0


def test_summary():
    env = envs.make("DofbotReacher", "native")
    player = Player(env, constant(jnp.zeros(5)), (), 2)
    frame = player.look()
    episode = {**frame.episode, "goals": np.array([3.0, 4.0]), "length": np.array([7.0, 7.0])}
    frame = frame.replace(
        distance=np.array([0.1, 0.0321]), reward=np.array([0.0, 1.5]), episode=episode, taken=1
    )
    text = page.summary(frame, 1, "goals")
    for part in ("taken over: **1**", "reward 1.500", "3.2 cm", "7 steps", "goals 4; of all 3.50"):
        assert part in text


def test_keys_are_those_of_the_joints():
    assert [joint for pair in page.KEYS for joint in pair] == list("QAWSEDRFTGYH")
