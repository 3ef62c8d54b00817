"""How smooth is the live page?

Frames a second that the server sends of 64 arms under a policy, and that a headless Chromium on the
same machine applies. Needs viser, chromium and chromedriver.
"""

import dataclasses
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

import tyro

import envs
from benchmarks.browser import MISSING, Browser
from benchmarks.common import report
from experiments import play
from jaxrobo.viewer import Player
from jaxrobo.viewer.page import Page

# At every frame of the browser, whether the first poses of any body differ from those before.
_COUNT = """
const meshes = [];
window.__viserMutable.scene.traverse((node) => {
  if (node.matricesTexture) meshes.push(node);
});
window.applied = 0;
let before = 0;
const look = () => {
  let now = 0;
  for (const mesh of meshes) {
    const data = mesh.matricesTexture.image.data;
    const end = Math.min(512, data.length);
    for (let i = 0; i < end; i++) now += (i + 1) * data[i];
  }
  if (now !== before) window.applied += 1;
  before = now;
  requestAnimationFrame(look);
};
look();
"""

_RENDERER = """
const gl = window.__viserMutable.canvas.getContext('webgl2');
const info = gl.getExtension('WEBGL_debug_renderer_info');
return gl.getParameter(info.UNMASKED_RENDERER_WEBGL);
"""

_PATIENCE = 60.0
"""Seconds that the page has to start."""

_SETTLING = 5.0
"""Seconds in which the page loads the bodies, and finds a resolution that it can keep up with."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      env: the environment.
      policy: what acts, as `experiments.play` takes it.
      num_envs: simulations on the page.
      renderer: what draws in the browser: SwiftShader, or Mesa, which may use a GPU.
      seconds: how long to count.
      out: where to write JSON.
    """

    env: str = "DofbotReacher"
    policy: Literal["trained", "expert", "random", "zero"] | None = None
    num_envs: int = 64
    renderer: Literal["swiftshader", "mesa"] = "swiftshader"
    seconds: float = 20.0
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the table."""
    if MISSING:
        raise SystemExit(MISSING)
    asked = play.Options(env=options.env, policy=options.policy)
    loaded = play.load(asked, envs.config_class(options.env)())
    player = Player(loaded.env, loaded.policy, loaded.params, options.num_envs)
    page = Page(player, options.env, port=0)
    page.run(1.0)
    playing = threading.Thread(target=page.run, daemon=True)
    playing.start()
    renderer = options.renderer
    try:
        with tempfile.TemporaryDirectory() as profile, Browser(profile, renderer) as browser:
            browser.open(page.url)
            began = time.monotonic()
            while "taken over" not in (text := browser.run("return document.body.innerText")):
                if not playing.is_alive() or time.monotonic() > began + _PATIENCE:
                    raise SystemExit(f"the page doesn't start; it shows: {text!r}")
                time.sleep(0.5)
            time.sleep(_SETTLING)
            browser.run(_COUNT)
            row = {"drawn by": browser.run(_RENDERER)}
            row |= _measure(page, browser, options.seconds)
    finally:
        page.close()
    row = {"env": options.env, "policy": loaded.acts, "simulations": options.num_envs} | row
    report("Frames a second of the live page", [row], options.out)


def _measure(page: Page, browser: Browser, seconds: float) -> dict[str, float]:
    counts = []
    for wait in (seconds, 0.0):
        steps = int(page.player.session.steps)
        applied = browser.run("return window.applied")
        counts.append((time.monotonic(), page.frames, applied, steps))
        time.sleep(wait)
    (begin, *first), (end, *last) = counts
    rates = [(b - a) / (end - begin) for a, b in zip(first, last, strict=True)]
    speed = rates[2] * page.player.env.dt
    return {"sent": rates[0], "applied": rates[1], "times real time": speed}


if __name__ == "__main__":
    main(tyro.cli(Options))
