import asyncio
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import envs
from benchmarks import browser
from jaxrobo.policy import constant, uniform
from jaxrobo.viewer import Player
from jaxrobo.viewer import player as player_module

page = pytest.importorskip("jaxrobo.viewer.page", reason="viser isn't installed")

PATIENCE = 300.0
"""Seconds that a slow machine may take for anything."""

_BOX = """
const box = [...document.querySelectorAll('input[type=checkbox]')]
  .map((input) => input.getBoundingClientRect())
  .find((place) => place.width > 0);  // the others are in folded panels
return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)];
"""

_SCENE = """
const box = window.__viserMutable.canvas.getBoundingClientRect();
return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)];
"""

_FIELD = """
[...document.querySelectorAll('input[type=text]')]
  .find((input) => !input.disabled && input.getBoundingClientRect().width > 0).focus();
return document.activeElement.tagName;
"""


def play_until(shown, condition):
    """Plays until something is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        shown.run(0.1)
        assert time.monotonic() < end, "it never happened"


@pytest.fixture
def show():
    """Opens pages of players, and closes them in the end."""
    opened = []

    def show(player):
        opened.append(page.Page(player, "Test", port=0))
        return opened[-1]

    yield show
    for one in opened:
        one.close()


def upright(num_envs):
    """Dofbots that want to stand upright."""
    env = envs.make("DofbotReacher", "native", episode_steps=100_000)
    return Player(env, constant(jnp.zeros(5)), (), num_envs)


@pytest.fixture(scope="module")
def three():
    return upright(3)


@pytest.fixture
def shown(show, three):
    """The page of three Dofbots, from their start and paused."""
    three.paused, three.speed = True, 1.0
    three.reset()
    three.tick()
    return show(three)


def happens(shown, callback, **event):
    """Lets something happen at a browser, and plays what comes of it."""
    asyncio.run(callback(SimpleNamespace(**event)))
    shown.run(0.05)


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "nearest"), [(64, 2), (-1, 0), (1, 1)])
def test_any_number_of_a_simulation_may_be_typed(shown, typed, nearest):
    shown._choice.value = 2 - nearest
    shown._choice.value = typed
    play_until(shown, lambda: shown._choice.value == nearest)
    shown.run(0.3)
    assert f"simulation {nearest}:" in shown._text.content
    goal = shown.player.look().goal[nearest]
    np.testing.assert_allclose(shown._goal.position, shown._places[nearest] + goal, atol=1e-6)


@pytest.mark.parametrize(("typed", "nearest"), [(0.0, 0.1), (9.0, 4.0), (0.5, 0.5)])
def test_any_speed_may_be_typed(shown, typed, nearest):
    shown._speed.value = typed
    play_until(shown, lambda: shown.player.speed == nearest)


def test_pause_step_and_reset(shown):
    steps = lambda: int(shown.player.session.steps)
    shown.run(0.1)
    assert steps() == 0
    shown._buttons.value = "Step"
    play_until(shown, lambda: steps() == 1)
    shown._pause.value = False
    play_until(shown, lambda: steps() > 5)
    shown._buttons.value = "Step"
    play_until(shown, lambda: shown._pause.value and shown.player.paused)
    goal = shown.player.look().goal
    shown._buttons.value = "Reset"
    play_until(shown, lambda: steps() == 0)
    assert (shown.player.look().goal != goal).all()


def test_a_click_chooses_and_takes_over(shown):
    assert not shown._mark.visible
    happens(shown, shown._click, instance_index=2)
    assert shown.player.session.taken == 2
    assert shown._choice.value == 2
    assert shown._mark.visible
    np.testing.assert_allclose(shown._mark.position[:2], shown._places[2, :2])
    happens(shown, shown._click, instance_index=None)  # beside them
    assert shown.player.session.taken == 2
    shown.player.give_back()
    shown.run(0.05)
    assert not shown._mark.visible


def test_a_goal_is_dragged_to_its_end(shown):
    """Whatever is chosen meanwhile, and whoever else lets go."""
    drag = lambda phase, client, pos: happens(
        shown, shown._drag, phase=phase, client_id=client, target=SimpleNamespace(position=pos)
    )
    shown._choice.value = 1
    play_until(shown, lambda: shown._goal_of == 1)
    before, place = shown.player.look().goal, shown._places[1]
    pos = place + np.array([0.1, -0.1, 0.2])
    drag("start", 7, pos)
    drag("start", 8, pos)
    drag("end", 8, pos)
    shown._choice.value = 2
    play_until(shown, lambda: shown._chosen == 2)
    arrows = shown._goal.position.copy()
    drag("update", 7, pos)
    np.testing.assert_array_equal(shown._goal.position, arrows)  # the browser moves them
    goal = shown.player.look().goal
    np.testing.assert_allclose(goal[1], [0.1, -0.1, 0.2], atol=1e-6)
    np.testing.assert_array_equal(goal[::2], before[::2])
    drag("end", 7, pos)
    np.testing.assert_allclose(shown._goal.position, shown._places[2] + goal[2], atol=1e-6)


def test_a_slider_that_is_dragged_is_left_alone(shown, monkeypatch):
    shown.player.take_over(0)
    shown.player.tick()
    slider = shown._sliders[0]
    frame = shown.player.look().replace(manual=np.full(5, 0.7))
    slider.value = -0.3
    now = slider.update_timestamp
    for later, expected in ((0.2, -0.3), (1.0, 0.7)):
        clock = SimpleNamespace(time=lambda later=later: now + later)
        monkeypatch.setattr(page, "time", clock)
        shown._write(frame)
        assert slider.value == expected
        assert not slider.disabled


@pytest.fixture
def sleep(shown, monkeypatch):
    """A clock that the page and its player go by, by which time passes only in sleep."""
    clock = [time.monotonic() + 1]
    sleep = lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep, time=time.time)
    monkeypatch.setattr(page, "time", fake)
    monkeypatch.setattr(player_module, "time", fake)
    return sleep


def test_drawing_takes_no_time_from_the_simulations(shown, sleep, monkeypatch):
    """At four times real time a step is due every 4 ms; to draw a frame takes 8 ms."""
    monkeypatch.setattr(shown, "_draw", lambda frame: sleep(0.008))
    shown.player.paused, shown.player.speed = False, 4.0
    before = int(shown.player.session.steps)
    shown.run(0.5)
    steps = int(shown.player.session.steps) - before
    assert steps == pytest.approx(0.5 * 4 / shown.player.env.dt, abs=3)


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_thirty_frames_a_second_are_drawn(shown, sleep, speed):
    """Though steps aren't due when frames are; one that comes late doesn't put off the next."""
    shown.player.paused, shown.player.speed = False, speed
    before = shown.frames
    shown.run(2.0)
    assert shown.frames - before == pytest.approx(60, abs=2)


# --- as a whole -----------------------------------------------------------------------------------


@pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING))
def test_in_a_browser(show, tmp_path):
    """The page loads, a click takes the arm over, a key moves it, Esc gives it back."""
    shown = show(upright(1))
    shown.note = "as it was made"
    session = lambda: shown.player.session
    camera = "return window.__viserMutable.camera.position.toArray()"
    with browser.Browser(tmp_path) as chromium:
        chromium.open(shown.url)
        text = lambda: chromium.run("return document.body.innerText")
        play_until(shown, lambda: "taken over: none" in text())
        assert "distance" in text()
        assert "joint5" in text()
        assert "as it was made" in text()
        eye = chromium.run(camera)

        chromium.click(*chromium.run(_SCENE))
        play_until(shown, lambda: session().taken == 0)
        play_until(shown, lambda: "taken over: 0" in text())
        for _ in range(10):
            chromium.press("a")
        play_until(shown, lambda: session().manual[0] == pytest.approx(10 * page.NUDGE))
        play_until(shown, lambda: session().rollout.env.data.qpos[0, 0] > 0.7)  # of 0.79
        assert chromium.run(camera) == eye

        chromium.click(*chromium.run(_BOX))
        play_until(shown, lambda: shown.player.paused)
        chromium.press("q")
        play_until(shown, lambda: session().manual[0] == pytest.approx(9 * page.NUDGE))
        chromium.click(*chromium.run(_BOX))
        play_until(shown, lambda: not shown.player.paused)

        assert chromium.run(_FIELD) == "INPUT"
        chromium.press("q")  # is the field's
        chromium.press(browser.ESCAPE)
        play_until(shown, lambda: session().taken == -1)
        assert session().manual[0] == pytest.approx(9 * page.NUDGE)
        play_until(shown, lambda: abs(session().rollout.env.data.qpos[0, 0]) < 0.05)
        play_until(shown, lambda: "taken over: none" in text())


def test_any_environment_can_be_shown(show):
    env = envs.make("PegHole", "native")
    shown = show(Player(env, uniform(env.action_size), (), 2))
    shown.run(0.5)
    assert shown.frames > 0


def test_summary(three):
    frame = three.look()
    episode = {**frame.episode, "goals": np.array([3.0, 4.0]), "length": np.array([7.0, 7.0])}
    frame = frame.replace(
        distance=np.array([0.1, 0.0321]), reward=np.array([0.0, 1.5]), episode=episode, taken=1
    )
    text = page.summary(frame, 1, "goals")
    for part in ("taken over: **1**", "reward 1.500", "3.2 cm", "7 steps", "goals 4; of all 3.50"):
        assert part in text


def test_keys_are_those_of_the_joints():
    assert [joint for pair in page.KEYS for joint in pair] == list("QAWSEDRFTGYH")
