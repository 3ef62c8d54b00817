"""How fast is our PPO beside brax's and stable-baselines3's, and how soon does each solve a task?

All train on DofbotReacher, on the same native engine, in one process, one after another: with the
same settings (networks of [64, 64] tanh, one for the policy and one for the value; normalised
observations; a constant learning rate), and with `--solve` until a validation episode brings 150
goals, each with settings of its own.

"Outside physics" is the wall time less the time within the host functions of the engine: what the
learner, the environment's arithmetic and all that moves data take. Speed is that of the fastest of
several chunks of iterations, after those that compile; the time to a solution includes compiling,
but no validation. The physics of the first two should take the same time: if it doesn't, something
else was using the machine.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from brax.training.agents.ppo.networks import make_ppo_networks
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

import envs
from benchmarks.common import report
from experiments.presets import preset
from jaxrobo.bridge import brax
from jaxrobo.bridge.stable_baselines import StableBaselinesVecEnv
from jaxrobo.env import Env
from jaxrobo.evaluation import episode_runner, run_episodes
from jaxrobo.learning import ppo
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import split_key

GOALS = 150
LEARNERS = ("jaxrobo", "brax", "stable-baselines3")

Mark = Callable[[Policy, Params], None]
"""Called by a learner when it starts and after each chunk of iterations."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      learners: whom to compare.
      num_envs: simulations side by side.
      horizon: control steps a simulation makes in an iteration.
      epochs: passes over the samples of an iteration.
      minibatches: gradient steps of a pass.
      chunk: control steps of all simulations, in whole iterations, that are timed in one go.
      repeats: chunks that are timed; the fastest counts.
      solve: whether to train until the task is solved, instead.
      seeds: how many times each solves it.
      max_steps: where an attempt to solve it is given up.
      out: where to write JSON.
    """

    learners: tuple[str, ...] = LEARNERS
    num_envs: tuple[int, ...] = (256, 2048)
    horizon: int = 16
    epochs: int = 3
    minibatches: int = 4
    chunk: int = 330_000
    repeats: int = 5
    solve: bool = False
    seeds: int = 3
    max_steps: int = 20_000_000
    out: Path | None = None


def main(options: Options) -> None:
    if unknown := set(options.learners) - set(LEARNERS):
        raise SystemExit(f"unknown learners {sorted(unknown)}; valid: {', '.join(LEARNERS)}")
    if options.solve:
        rows = [_solve(k, s, options) for s in range(options.seeds) for k in options.learners]
        report(f"DofbotReacher, time to {GOALS} goals an episode", rows, options.out)
        return
    rows = [row for n in options.num_envs for row in _speeds(n, options)]
    report("PPO on DofbotReacher, the same settings", rows, options.out)


def _speeds(num_envs: int, options: Options) -> list[dict[str, Any]]:
    """A row for each learner, with the ratios of the first one's figures to its own."""
    rows = [_speed(learner, num_envs, options) for learner in options.learners]
    first = rows[0]
    for row in rows:
        outside = first["outside physics, s"] / row["outside physics, s"]
        row[f"{first['PPO']} / this: steps/s"] = first["steps/s"] / row["steps/s"]
        row[f"{first['PPO']} / this: outside physics"] = outside
    return rows


def _speed(learner: str, num_envs: int, options: Options) -> dict[str, Any]:
    env = envs.make("DofbotReacher", engine="native")
    watch = _Watch(env)
    train, settings = _same_settings(num_envs, options)[learner]
    steps = num_envs * options.horizon
    iterations = max(1, options.chunk // steps)
    chunks = options.repeats + 2  # the first two compile
    train(env, settings, 0, iterations, chunks, lambda policy, params: watch.lap())
    wall, physics = min(zip(*np.diff(np.array(watch.laps), axis=0)[2:].T, strict=True))
    return {
        "PPO": learner,
        "simulations": num_envs,
        "steps/s": float(steps * iterations / wall),
        "iteration, s": float(wall / iterations),
        "physics, s": float(physics / iterations),
        "outside physics, s": float((wall - physics) / iterations),
    }


def _solve(learner: str, seed: int, options: Options) -> dict[str, Any]:
    env = envs.make("DofbotReacher", engine="native")
    watch, judge = _Watch(env), _Judge()
    train, settings = _own_settings()[learner]
    per_iteration = _steps_per_iteration(learner, settings)
    iterations = max(1, 250_000 // per_iteration)
    chunks = options.max_steps // (iterations * per_iteration)
    if chunks < 1:
        raise SystemExit(
            f"--max-steps must be at least the {iterations * per_iteration} between two tests of "
            f"{learner}, got {options.max_steps}"
        )

    def mark(policy: Policy, params: Params) -> None:
        watch.lap()
        judge(policy, params)
        watch.restart()

    with contextlib.suppress(_Solved):
        train(env, settings, seed, iterations, chunks, mark)
    return {
        "PPO": learner,
        "seed": seed,
        "s": watch.laps[-1][0],
        "after one chunk, s": watch.laps[1][0],
        "steps": (len(judge.goals) - 1) * iterations * per_iteration,
        "goals": judge.goals[-1],
    }


class _Solved(Exception):
    """Ends a training."""


class _Judge:
    """Scores policies on 64 validation episodes; raises `_Solved` when they are good enough."""

    def __init__(self) -> None:
        self.goals: list[float] = []
        self._run = None

    def __call__(self, policy: Policy, params: Params) -> None:
        if self._run is None:  # every later policy is the same function of other parameters
            env = envs.make("DofbotReacher", engine="native")
            self._run = jax.jit(episode_runner(env, policy, 64))
        sums = run_episodes(self._run, 64, params, "validation", 0, 64)
        self.goals.append(float(sums["goals"].mean()))
        print(f"{self.goals[-1]:.1f} goals", flush=True)
        if self.goals[-1] >= GOALS:
            raise _Solved


class _Watch:
    """Seconds since the start, and those of them within the host functions of an engine."""

    def __init__(self, env: Env) -> None:
        self.laps: list[tuple[float, float]] = []
        self._wall = self._physics = 0.0
        pool = env.unwrapped.physics._pool  # every host function runs while it holds a Batch
        lend = pool.lend

        @contextlib.contextmanager
        def timed(*args):
            begin = time.perf_counter()
            with lend(*args) as batch:
                yield batch
            self._physics += time.perf_counter() - begin

        pool.lend = timed
        self.restart()

    def lap(self) -> None:
        self._wall += time.perf_counter() - self._begin
        self.restart()
        self.laps.append((self._wall, self._physics))

    def restart(self) -> None:
        """Forgets what has passed since the last lap."""
        self._begin = time.perf_counter()


# --- the learners ---------------------------------------------------------------------------------


def _ours(
    env: Env, config: ppo.Config, seed: int, iterations: int, chunks: int, mark: Mark
) -> None:
    trainer = ppo.make(env, config)
    state = trainer.init(split_key("train", seed), trainer.inputs)
    mark(*trainer.policy(state))
    for _ in range(chunks):
        for _ in range(iterations):
            state, _ = trainer.step(state, trainer.inputs)
        jax.block_until_ready(state)
        mark(*trainer.policy(state))


def _brax(
    env: Env, settings: dict[str, Any], seed: int, iterations: int, chunks: int, mark: Mark
) -> None:
    settings = dict(settings)
    sizes = {"policy_hidden_layer_sizes": (64, 64), "value_hidden_layer_sizes": (64, 64)}
    network = {**sizes, "activation": nn.tanh, **settings.pop("network", {})}

    def after_chunk(step, make_policy, params):
        def act(params, carry, observation, key):
            return make_policy(params, deterministic=True)(observation, key)[0], carry, {}

        mark(Policy(act), params)

    brax.train(
        env,
        _steps_per_iteration("brax", settings) * iterations * chunks,
        seed=seed,
        num_evals=chunks + 1,
        run_evals=False,
        normalize_observations=True,
        network_factory=functools.partial(make_ppo_networks, **network),
        policy_params_fn=after_chunk,
        **settings,
    )


def _stable_baselines(
    env: Env, settings: dict[str, Any], seed: int, iterations: int, chunks: int, mark: Mark
) -> None:
    class AfterChunk(BaseCallback):
        iteration = 0

        def _on_rollout_start(self):  # the update of the iteration before is done
            if self.iteration % iterations == 0:
                mark(_tanh_policy(), _parameters(self.model, venv))
            self.iteration += 1

        def _on_step(self):
            return True

    settings = dict(settings)
    venv = StableBaselinesVecEnv(env, settings.pop("num_envs"))
    venv = VecNormalize(venv, norm_reward=settings.pop("norm_reward"), gamma=settings["gamma"])
    policy = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}
    model = PPO("MlpPolicy", venv, seed=seed, device="cpu", policy_kwargs=policy, **settings)
    # One more iteration, before which the last mark is made.
    steps = venv.num_envs * model.n_steps * (iterations * chunks + 1)
    model.learn(steps, callback=AfterChunk(), log_interval=None)


def _tanh_policy() -> Policy:
    """A network of stable-baselines3 in JAX, so that all are judged alike."""

    def act(params, carry, observation, key):
        mean, var = params["stats"]
        x = jnp.clip((observation - mean) / jnp.sqrt(var + 1e-8), -10, 10)
        *hidden, (weight, bias) = params["layers"]
        for w, b in hidden:
            x = jnp.tanh(w @ x + b)
        return weight @ x + bias, carry, {}

    return Policy(act)


def _parameters(model: PPO, venv: VecNormalize) -> Params:
    net = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    layers = [m for m in net if isinstance(m, torch.nn.Linear)]
    array = lambda x: x.detach().numpy().copy()
    stats = [np.asarray(x, np.float32) for x in (venv.obs_rms.mean, venv.obs_rms.var)]
    return {"layers": [(array(m.weight), array(m.bias)) for m in layers], "stats": stats}


BRAX = {
    "num_envs": 512,
    "unroll_length": 16,
    "num_updates_per_batch": 8,
    "num_minibatches": 4,
    "batch_size": 128,
    "discounting": 0.95,
    "learning_rate": 1e-3,
    "clipping_epsilon": 0.2,
    "max_grad_norm": 1.0,
    "reward_scaling": 0.1,
    "entropy_cost": 0.01,
}

STABLE_BASELINES = {
    "num_envs": 2048,
    "norm_reward": True,
    "n_steps": 16,
    "n_epochs": 3,
    "batch_size": 8192,
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
}


# --- their settings -------------------------------------------------------------------------------


def _same_settings(num_envs: int, o: Options) -> dict[str, tuple[Callable, Any]]:
    """Each learner, and the same settings in its own words."""
    return {
        "jaxrobo": (
            _ours,
            ppo.Config(
                num_envs=num_envs,
                horizon=o.horizon,
                epochs=o.epochs,
                minibatches=o.minibatches,
                discount=0.95,
                learning_rate=3e-4,
                schedule="constant",
                clip_values=False,
                normalise_values=False,
                shared_trunk=False,
            ),
        ),
        "brax": (
            _brax,
            {
                "num_envs": num_envs,
                "unroll_length": o.horizon,
                "num_updates_per_batch": o.epochs,
                "num_minibatches": o.minibatches,
                "batch_size": num_envs // o.minibatches,  # in sequences
                "discounting": 0.95,
                "learning_rate": 3e-4,
                "clipping_epsilon": 0.2,
                "max_grad_norm": 1.0,
            },
        ),
        "stable-baselines3": (
            _stable_baselines,
            {
                "num_envs": num_envs,
                "norm_reward": False,
                "n_steps": o.horizon,
                "n_epochs": o.epochs,
                "batch_size": num_envs * o.horizon // o.minibatches,
                "gamma": 0.95,
                "learning_rate": 3e-4,
                "max_grad_norm": 1.0,
            },
        ),
    }


def _own_settings() -> dict[str, tuple[Callable, Any]]:
    """Each learner, and settings that suit it: the best that a short search by hand found."""
    fields = {f.name for f in dataclasses.fields(ppo.Config)}
    ours = {k: v for k, v in preset("DofbotReacher", "ppo").items() if k in fields}
    return {
        "jaxrobo": (_ours, ppo.Config(**ours)),
        "brax": (_brax, BRAX),
        "stable-baselines3": (_stable_baselines, STABLE_BASELINES),
    }


def _steps_per_iteration(learner: str, settings: Any) -> int:
    if learner == "jaxrobo":
        return settings.num_envs * settings.horizon
    if learner == "brax":
        sequences = settings["batch_size"] * settings["num_minibatches"]
        return sequences * settings["unroll_length"]
    return settings["num_envs"] * settings["n_steps"]


if __name__ == "__main__":
    main(tyro.cli(Options))
