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
from envs import trained
from jaxrobo.env import Env
from jaxrobo.policy import Params, Policy, uniform
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
      policy: what acts: the policy that comes with the environment and acts on the page if nobody
        says otherwise, the scripted expert, or random actions.
      num_envs: simulations on the page.
      renderer: what draws in the browser: SwiftShader, or Mesa, which may use a GPU.
      seconds: how long to count.
      out: where to write JSON.
    """

    env: str = "DofbotReacher"
    policy: Literal["trained", "expert", "random"] = "trained"
    num_envs: int = 64
    renderer: Literal["swiftshader", "mesa"] = "swiftshader"
    seconds: float = 20.0
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the table."""
    if MISSING:
        raise SystemExit(MISSING)
    env = envs.make(options.env)
    policy, params = _policy(options, env)
    page = Page(Player(env, policy, params, options.num_envs), options.env, port=0)
    page.run(1.0)
    player = threading.Thread(target=page.run, daemon=True)
    player.start()
    renderer = options.renderer
    try:
        with tempfile.TemporaryDirectory() as profile, Browser(profile, renderer) as browser:
            browser.open(page.url)
            began = time.monotonic()
            while "taken over" not in (text := browser.run("return document.body.innerText")):
                if not player.is_alive() or time.monotonic() > began + _PATIENCE:
                    raise SystemExit(f"the page doesn't start; it shows: {text!r}")
                time.sleep(0.5)
            time.sleep(_SETTLING)
            browser.run(_COUNT)
            row = {"drawn by": browser.run(_RENDERER)}
            row |= _measure(page, browser, options.seconds)
    finally:
        page.close()
    row = {"env": options.env, "policy": options.policy, "simulations": options.num_envs} | row
    report("Frames a second of the live page", [row], options.out)


def _policy(options: Options, env: Env) -> tuple[Policy, Params]:
    if options.policy == "random":
        return uniform(env.action_size), ()
    if options.policy == "expert":
        return env.expert(), ()
    if (name := trained.find(options.env, env.unwrapped.config)) is None:
        raise SystemExit(f"no trained policy comes with {options.env}; see --policy")
    return trained.load(name, env)


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
