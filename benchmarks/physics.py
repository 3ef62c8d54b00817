"""How fast are the engines, and how much of MuJoCo's own speed does the native one keep inside jit?

For a scene without contacts (DofbotReacher) and one with (a Panda that moves above a peg and a
plate with a slot, which lie on a table), compares in one run: the bare `mujoco.batch.Batch` loop;
the same without MuJoCo's profiler, whose clock the native engine stops as well; the native engine
in a jitted scan; MJX in a jitted scan; and for DofbotReacher the whole environment with a policy of
[64, 64] in a jitted scan (reward, observation, goals, resets and all).
All in control steps a second; the physics steps of one are in the title.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from mujoco.batch import Batch

import envs
from benchmarks.common import best_of, report
from envs.assembly import peg_hole
from envs.robots import panda
from jaxrobo.learning import ppo
from jaxrobo.physics import Physics, make_physics
from jaxrobo.physics.native import unprofiled
from jaxrobo.rollout import rollout


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is simulated.

    Attributes:
      model: the model.
      substeps: physics steps a control step.
      steps: control steps timed in one go.
      centre: around which controls are drawn.
      spread: how far from it, at most.
    """

    model: mujoco.MjModel
    substeps: int
    steps: int
    centre: np.ndarray
    spread: np.ndarray


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      scenes: which of the two.
      sims: simulations side by side.
      mjx_sims: the same for MJX; none to leave it out. On a CPU it takes minutes.
      repeats: times each is run; the fastest counts.
      threads: CPU threads; all cores if None.
      out: where to write JSON.
    """

    scenes: tuple[Literal["reacher", "peg"], ...] = ("reacher", "peg")
    sims: tuple[int, ...] = (64, 256, 2048)
    mjx_sims: tuple[int, ...] = ()
    repeats: int = 5
    threads: int | None = None
    out: Path | None = None


def main(options: Options) -> None:
    """Prints a table for each scene."""
    for name in options.scenes:
        scene = _scene(name)
        native = make_physics(scene.model, "native", options.threads)
        rows = [_native_row(scene, native, n, name, options) for n in options.sims]
        rows += [_mjx_row(scene, n, options) for n in options.mjx_sims]
        out = options.out and options.out.with_stem(f"{options.out.stem}-{name}")
        title = f"{name}: control steps/s, of {scene.substeps} physics steps each"
        report(title, rows, out)


def _scene(name: str) -> Scene:
    if name == "reacher":
        env = envs.make("DofbotReacher", engine="native").unwrapped
        return Scene(env.mj_model, env.substeps, 50, np.zeros(5), np.full(5, 0.7))
    centre = np.append(panda.HOME, -panda.GRIP_FORCE)
    return Scene(peg_hole.build(), 50, 2, centre, np.append(np.full(7, 0.1), 0))


def _native_row(scene: Scene, physics: Physics, n: int, name: str, options: Options) -> dict:
    total = n * scene.steps
    bare = total / best_of(_bare(scene, physics, n), options.repeats)
    with unprofiled():
        unclocked = total / best_of(_bare(scene, physics, n), options.repeats)
    engine = total / best_of(_engine(scene, physics, n), options.repeats)
    row = {"engine": "native", "simulations": n, "bare Batch": bare}
    row |= {"without its clock": unclocked, "in jit": engine}
    row |= {"in jit / bare": engine / bare, "in jit / without": engine / unclocked}
    if name == "reacher":
        policy = total / best_of(_policy(n, scene.steps, options), options.repeats)
        row["environment + policy"] = policy
    return row


def _mjx_row(scene: Scene, n: int, options: Options) -> dict[str, Any]:
    """Fewer steps and repeats: each takes long on a CPU."""
    few = dataclasses.replace(scene, steps=1)
    seconds = best_of(_engine(few, make_physics(scene.model, "mjx"), n), repeats=1)
    return {"engine": "mjx", "simulations": n, "in jit": n / seconds}


def _controls(scene: Scene, n: int) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(-1, 1, (scene.steps, n, len(scene.centre)))
    return (scene.centre + scene.spread * noise).astype(np.float32)


def _start(scene: Scene) -> np.ndarray:
    """The model's first pose, the arm at the centre of its controls."""
    qpos, drives = scene.model.qpos0.copy(), scene.model.actuator_trnid[:, 0]
    hinges = scene.model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT
    qpos[scene.model.jnt_qposadr[drives[hinges]]] = scene.centre[hinges]
    return qpos


def _bare(scene: Scene, physics: Physics, n: int) -> Callable[[], Any]:
    """The loop that a user of MuJoCo would write: set controls, step, read what the state has."""
    batch = Batch(physics.mj_model, n, physics.threads)
    qpos, qvel, ctrl = (batch.bind(k) for k in ("qpos", "qvel", "ctrl"))
    warm = batch.bind("qacc_warmstart")
    names = ("xpos", "xquat", "site_xpos", "site_xmat", "sensordata")
    bound = [batch.bind(k) for k in names if getattr(mujoco.MjData(physics.mj_model), k).size]
    controls, start = _controls(scene, n), _start(scene)
    needed = physics.mj_model.sensor_needstage
    stage = max([int(mujoco.mjtStage.mjSTAGE_POS), *map(int, needed)])

    def run():
        qpos[...], qvel[...], warm[...] = start, 0, 0
        for control in controls:
            ctrl[...] = control
            batch.step(nstep=scene.substeps, stage=stage)
        return np.array(qpos), bound

    return run


def _engine(scene: Scene, physics: Physics, n: int) -> Callable[[], Any]:
    start = jnp.asarray(_start(scene))
    state = jax.jit(jax.vmap(lambda _: physics.init(qpos=start)))(jnp.arange(n))
    controls = jnp.asarray(_controls(scene, n))

    @jax.jit
    def run(state, controls):
        def step(state, ctrl):
            one = lambda s, u: physics.step(s, {"ctrl": u}, scene.substeps)[0]
            return jax.vmap(one)(state, ctrl), None

        return jax.lax.scan(step, state, controls)[0]

    return lambda: run(state, controls)


def _policy(n: int, steps: int, options: Options) -> Callable[[], Any]:
    env = envs.make("DofbotReacher", engine="native", threads=options.threads)
    trainer = ppo.make(env, ppo.Config(num_envs=n, horizon=steps, minibatches=1))
    state = trainer.init(jax.random.key(0), trainer.inputs)
    policy, params = trainer.policy(state, deterministic=False)

    @jax.jit
    def run(params, states):
        return jax.vmap(lambda s: rollout(env, policy, params, s, steps)[0])(states)

    return lambda: run(params, state.rollout)


if __name__ == "__main__":
    main(tyro.cli(Options))
