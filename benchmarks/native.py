"""How fast is the native engine, and how much of MuJoCo's own speed does it keep inside jit?

Compares, in one run: the bare `mujoco.batch.Batch` loop; the engine in a jitted scan; DofbotReacher
with a policy in a jitted scan (reward, observation, goals, resets and all).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from mujoco.batch import Batch

import envs
from benchmarks.common import best_of, report
from jaxrobo.env import Env
from jaxrobo.learning import ppo
from jaxrobo.rollout import rollout


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      sims: simulations side by side.
      steps: control steps timed in one go.
      repeats: times each is run; the fastest counts.
      threads: CPU threads; all cores if None.
      out: where to write JSON.
    """

    sims: tuple[int, ...] = (64, 512, 2048)
    steps: int = 50
    repeats: int = 5
    threads: int | None = None
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the table."""
    rows = []
    for n in options.sims:
        env = envs.make("DofbotReacher", engine="native", threads=options.threads)
        total = n * options.steps
        bare = total / best_of(_bare(env, n, options), options.repeats)
        engine = total / best_of(_engine(env, n, options.steps), options.repeats)
        policy = total / best_of(_policy(env, n, options.steps), options.repeats)
        rows.append(
            {
                "simulations": n,
                "bare Batch, control steps/s": bare,
                "engine in jit": engine,
                "engine / bare": engine / bare,
                "environment + [64, 64] policy": policy,
            }
        )
    report("DofbotReacher, 2 physics steps a control step", rows, options.out)


def _bare(env: Env, n: int, options: Options):
    physics = env.unwrapped.physics
    batch = Batch(env.unwrapped.mj_model, n, physics.threads)
    qpos, ctrl = batch.bind("qpos"), batch.bind("ctrl")
    fields = ("xpos", "xquat", "site_xpos", "site_xmat")
    bound = [batch.bind(k) for k in fields]
    targets = np.random.default_rng(0).uniform(-0.7, 0.7, (options.steps, *ctrl.shape))
    stage = int(mujoco.mjtStage.mjSTAGE_VEL)

    def run():
        qpos[...] = 0
        for target in targets:
            ctrl[...] = target
            batch.step(nstep=2, stage=stage)
        return np.array(qpos), bound

    return run


def _engine(env: Env, n: int, steps: int):
    physics = env.unwrapped.physics
    state = jax.vmap(lambda _: physics.init())(jnp.arange(n))
    targets = jax.random.uniform(jax.random.key(0), (steps, n, 5), minval=-0.7, maxval=0.7)

    @jax.jit
    def run(state, targets):
        def step(state, ctrl):
            return jax.vmap(lambda s, u: physics.step(s, {"ctrl": u}, 2)[0])(state, ctrl), None

        return jax.lax.scan(step, state, targets)[0]

    return lambda: run(state, targets)


def _policy(env: Env, n: int, steps: int):
    trainer = ppo.make(env, ppo.Config(num_envs=n, horizon=steps, minibatches=1))
    state = trainer.init(jax.random.key(0), trainer.inputs)
    policy, params = trainer.policy(state, deterministic=False)

    @jax.jit
    def run(params, states):
        return jax.vmap(lambda s: rollout(env, policy, params, s, steps)[0])(states)

    return lambda: run(params, state.rollout)


if __name__ == "__main__":
    main(tyro.cli(Options))
