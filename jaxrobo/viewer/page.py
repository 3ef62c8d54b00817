"""A live page of many simulations, served by viser; the browser needs no internet.

Click a simulation to take it over, drag its goal, pause, step, and see how it's doing.
"""

import socket
import time
from typing import Any

import numpy as np

from jaxrobo.viewer import shapes
from jaxrobo.viewer.player import SPEEDS, Player
from jaxrobo.viewer.session import GOAL, NOBODY, Frame

try:
    import viser

    from jaxrobo.viewer.batches import make_batches
except ImportError as error:
    raise ImportError(
        f"jaxrobo.viewer.page needs viser ({error}): pip install 'jaxrobo[play]'"
    ) from None

KEYS = ("QA", "WS", "ED", "RF", "TG", "YH")
"""The keys of joint 0, 1, ...: one that turns it backwards, one forwards."""

NUDGE = 0.05
"""How far a key moves an action, of which -1 to 1 is the whole range."""

_SKY = {"sky_color": (255, 255, 255), "ground_color": (160, 150, 140), "intensity": 2.0}
"""Instead of light from a picture all around, which costs much where a browser has no GPU."""

_TAKEN = {"color": (255, 215, 120), "cast_shadow": False, "receive_shadow": False}
"""The floor under the simulation that is taken over."""

_FRAMES_PER_SECOND = 30.0
_TEXTS_PER_SECOND = 4.0
_SETTLED = 0.5
"""Seconds without a change after which nobody is dragging a slider any more."""

_HELP = "Click one to take it over. Keys, if taken over: {keys} turn its joints, Esc gives it back."

# viser moves its camera by some of these keys, of which it reads the place on the keyboard
# (`code`); its hotkeys read what they mean (`key`). So the key is taken before either sees it, and
# given on without its place. A checkbox that is clicked would keep all keys to itself, so it gives
# the focus back; a field that is written in does so at Esc, and keeps the other keys. An image that
# can't be loaded is how HTML that comes later runs code.
_FREE_KEYS = """
<img src="data:," style="display: none" onerror="
  if (!window.freesKeys) {
    window.freesKeys = true;
    const codes = new Set('%s'.split('').map((letter) => 'Key' + letter));
    const writing = (target) => ['INPUT', 'TEXTAREA', 'SELECT'].includes(target.tagName);
    window.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && writing(event.target)) {
        event.target.blur();
        document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }));
      }
      if (!codes.has(event.code) || writing(event.target)) return;
      if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
      event.stopImmediatePropagation();
      event.target.dispatchEvent(
        new KeyboardEvent('keydown', { key: event.key, bubbles: true, cancelable: true })
      );
    }, true);
    window.addEventListener('change', (event) => {
      if (event.target.type === 'checkbox') event.target.blur();
    }, true);
  }
">
"""


def check_address(host: str, port: int) -> None:
    """Raises ValueError if no page can be at an address: viser would wait for it for ever."""
    if not 0 <= port < 65536:
        raise ValueError(f"port must be in 0 .. 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"can't listen at {host!r}: {error}") from error


class Page:
    """The page of a `Player`. Nothing happens on it until `run`.

    Attributes:
      url: where it is.
      frames: how many have been sent.
      note: what the panel says above everything else about the simulations; Markdown.
    """

    def __init__(
        self, player: Player, title: str, host: str = "127.0.0.1", port: int = 8080
    ) -> None:
        """Starts the server.

        Args:
          player: what plays.
          title: what the panel says on top.
          host: the address to listen at; 0.0.0.0 lets other machines in.
          port: the port, or the next one that's free.

        Raises:
          ValueError: if it can't listen there.
        """
        check_address(host, port)
        self.player = player
        self.frames = 0
        self.note = ""
        self._closed = False
        self._server = viser.ViserServer(host, port, title, verbose=False)
        self.url = f"http://{host}:{self._server.get_port()}"
        self._places = shapes.grid(player.env.visual_model, player.num_envs)
        self._chosen = 0
        frame = player.look()
        self._batches = make_batches(self._server, player, frame, self._places)
        for batch in self._batches:
            batch.handle.on_click(self._click)
        self._set_scene()
        self._controls()
        self._text = self._server.gui.add_markdown("")
        self._drags: set[int] = set()
        self._goal_of = 0
        self._goal = self._goal_handle(frame) if player.abilities.goals else None
        self._sliders = self._hands() if player.abilities.joints else []

    def run(self, seconds: float = float("inf")) -> None:
        """Plays for some time or until `close`, and draws up to 30 frames a second."""
        end = time.monotonic() + seconds
        period = 1 / _FRAMES_PER_SECOND
        drawn = written = 0.0
        while (now := time.monotonic()) < end and not self._closed:
            due = self.player.tick() + time.monotonic()
            if now - drawn >= period:
                frame = self.player.look()
                self._draw(frame)
                drawn = max(drawn + period, now - period)  # what is late doesn't put off the next
                if now - written >= 1 / _TEXTS_PER_SECOND:
                    self._write(frame)
                    written = now
            wait = due - time.monotonic()  # drawing took part of it
            time.sleep(min(max(wait, 0.0), period))

    def close(self) -> None:
        """Stops the server."""
        self._closed = True
        self._server.stop()

    def _set_scene(self) -> None:
        model, extent = self.player.env.visual_model, self.player.env.visual_model.stat.extent
        size = np.ptp(self._places, axis=0).max() + 1.2 * extent
        look_at = np.array([0.0, 0.0, 0.25 * extent])
        camera = self._server.initial_camera
        camera.look_at = look_at
        camera.position = look_at + size * np.array([0.75, -0.45, 0.5])
        grid = {"width": size, "height": size, "cell_size": extent / 10, "section_size": extent}
        scene = self._server.scene
        scene.configure_default_lights(cast_shadow=False)  # shadows cost much
        scene.configure_environment_map(None)
        scene.add_light_hemisphere("/sky", **_SKY)
        floor = np.array([0.0, 0.0, shapes.floor(model) - 1e-3])
        scene.add_grid("/floor", **grid, position=floor)
        self._below = floor - np.array([0.0, 0.0, 1e-3])
        cell = (width := shapes.spacing(model), width, 1e-3)
        self._mark = scene.add_box("/taken over", dimensions=cell, visible=False, **_TAKEN)

    def _controls(self) -> None:
        gui, player = self._server.gui, self.player
        gui.configure_theme(show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()  # beside the simulations, not over them
        self._pause = pause = gui.add_checkbox("Pause", player.paused)
        self._buttons = buttons = gui.add_button_group("", ("Step", "Reset"))
        self._speed = speed = gui.add_slider("Speed", *SPEEDS, 0.1, player.speed)
        choice = gui.add_number("Simulation", 0, min=0, max=player.num_envs - 1, step=1)
        self._choice = choice

        @pause.on_update
        async def _(_: Any) -> None:
            player.paused = pause.value

        @buttons.on_click
        async def _(_: Any) -> None:
            if buttons.value == "Reset":
                player.reset()
            else:
                player.step_once()
                pause.value = True

        @speed.on_update
        async def _(_: Any) -> None:
            player.speed = min(max(speed.value, SPEEDS[0]), SPEEDS[1])  # anything can be typed

        @choice.on_update
        async def _(_: Any) -> None:
            self._choose(choice.value)

    def _choose(self, index: int) -> None:
        """Chooses a simulation, or the nearest that there is."""
        self._chosen = min(max(index, 0), self.player.num_envs - 1)
        self._choice.value = self._chosen

    def _hands(self) -> list[Any]:
        """Sliders, keys and a button to take a simulation over and give it back."""
        gui, player = self._server.gui, self.player
        joints = player.abilities.joints
        take = gui.add_button("Take over")
        give = gui.add_button("Give back")

        @take.on_click
        async def _(_: Any) -> None:
            player.take_over(self._chosen)

        @give.on_click
        async def _(_: Any) -> None:
            player.give_back()

        sliders = [self._slider(i, name) for i, name in enumerate(joints)]
        for i, (backwards, forwards) in enumerate(KEYS[: len(joints)]):
            self._key(f"{joints[i]} backwards", backwards, i, -NUDGE)
            self._key(f"{joints[i]} forwards", forwards, i, NUDGE)

        @gui.add_command("Give back", hotkey="escape").on_trigger
        async def _(_: Any) -> None:
            player.give_back()

        used = KEYS[: len(joints)]
        gui.add_markdown(_HELP.format(keys=" ".join("/".join(pair) for pair in used)))
        gui.add_html(_FREE_KEYS % "".join(used))
        return sliders

    def _slider(self, joint: int, name: str) -> Any:
        slider = self._server.gui.add_slider(name, -1.0, 1.0, 0.01, 0.0, disabled=True)

        @slider.on_update
        async def _(event: Any) -> None:
            if event.client is not None:  # not by this program
                self.player.command(joint, slider.value)

        return slider

    def _key(self, label: str, key: str, joint: int, by: float) -> None:
        @self._server.gui.add_command(label, hotkey=key).on_trigger
        async def _(_: Any) -> None:
            self.player.nudge(joint, by)

    async def _click(self, event: Any) -> None:
        if event.instance_index is None:
            return
        self._choose(event.instance_index)
        if self.player.abilities.joints:
            self.player.take_over(self._chosen)

    def _goal_handle(self, frame: Frame) -> Any:
        """Arrows at a simulation's goal, to drag it by: the chosen one's unless they're held."""
        scale = 0.12 * self.player.env.visual_model.stat.extent
        place = self._places[0] + frame.goal[0]
        handle = self._server.scene.add_transform_controls(
            f"/{GOAL}", scale, disable_rotations=True, depth_test=False, position=place
        )
        handle.on_update(self._drag)
        return handle

    async def _drag(self, event: Any) -> None:
        if event.phase == "start":
            self._drags.add(event.client_id)
        elif event.phase == "end":
            self._drags.discard(event.client_id)
        else:
            pos = event.target.position - self._places[self._goal_of]
            self.player.move_goal(self._goal_of, pos)

    def _draw(self, frame: Frame) -> None:
        taken = int(frame.taken)
        with self._server.atomic():
            for batch in self._batches:
                batch.move(frame, self._places)
            self._mark.visible = taken != NOBODY
            if taken != NOBODY:
                self._mark.position = self._places[taken] + self._below
            if self._goal is not None and not self._drags:
                self._goal_of = i = self._chosen
                self._goal.position = self._places[i] + frame.goal[i]
        self.frames += 1

    def _write(self, frame: Frame) -> None:
        taken = int(frame.taken)
        for i, slider in enumerate(self._sliders):
            slider.disabled = taken == NOBODY
            if taken != NOBODY and time.time() - slider.update_timestamp > _SETTLED:
                slider.value = round(float(frame.manual[i]), 2)
        text = summary(frame, self._chosen, self.player.env.metric.name)
        self._text.content = f"{self.note}  \n{text}" if self.note else text


def summary(frame: Frame, index: int, metric: str) -> str:
    """What the panel says of a simulation, and of all: Markdown."""
    taken = int(frame.taken)
    lines = ["taken over: none" if taken == NOBODY else f"taken over: **{taken}**"]
    lines.append(f"simulation {index}: reward {frame.reward[index]:.3f}")
    if frame.distance is not None:
        lines.append(f"distance {100 * frame.distance[index]:.1f} cm")
    sums = frame.episode
    lines.append(f"this episode: {sums['length'][index]:.0f} steps, {sums['reward'][index]:.1f}")
    lines.append(f"{metric} {sums[metric][index]:.0f}; of all {np.mean(sums[metric]):.2f}")
    return "  \n".join(lines)
