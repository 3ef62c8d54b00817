"""Our PPO and brax's on environments of brax and MuJoCo Playground: which gets how far, how fast?

Each trains from the same number of control steps, one after another in one process:

- "brax": brax's PPO in the wrappers of the environment's own library, with the settings published
  for it, as far as `Task` says;
- "jaxrobo, its settings": ours with the same simulations, steps an iteration, epochs, minibatches,
  discount, learning rate, clipping, entropy and reward scale;
- "jaxrobo": ours with settings that a short search by hand found.

All have networks of [64, 64] swish, one for the policy and one for the value, as no other settings
cost as much time as brax's own five layers of 256. What is compared is the return of the last
policy, acting by its mean, over the same test episodes, and the wall time of training, which
includes compiling. CartpoleBalance needs MuJoCo Playground (`pip install 'jaxrobo[playground]'`).
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from brax.envs import get_environment
from brax.training.agents.ppo import train as brax_ppo
from brax.training.agents.ppo.networks import make_ppo_networks

from benchmarks.common import report
from jaxrobo.bridge.brax import device_put_replicated
from jaxrobo.bridge.from_brax import FromBrax
from jaxrobo.env import Env
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import ppo
from jaxrobo.policy import Params, Policy

LEARNERS = ("brax", "jaxrobo, its settings", "jaxrobo")


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, and what it's trained with.

    Attributes:
      load: the bare environment, and what its library wraps it in for a trainer.
      time_limit: control steps.
      steps: control steps of all simulations that are trained from, at least.
      brax: settings of brax's PPO.
      ours: settings of ours, where they aren't the same.
    """

    load: Callable[[], tuple[Any, Callable | None]]
    time_limit: int
    steps: int
    brax: dict[str, Any]
    ours: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      tasks: which environments.
      learners: who trains.
      seeds: how many times.
      steps: control steps of all simulations, if not each task's own.
      episodes: how many the last policy is judged by.
      out: where to write JSON.
    """

    tasks: tuple[str, ...] = ("inverted_pendulum", "CartpoleBalance")
    learners: tuple[str, ...] = LEARNERS
    seeds: int = 3
    steps: int | None = None
    episodes: int = 128
    out: Path | None = None


def main(options: Options) -> None:
    warnings.filterwarnings("ignore", "Brax System")
    rows = [
        _row(task, learner, seed, options)
        for task in options.tasks
        for seed in range(options.seeds)
        for learner in options.learners
    ]
    report("PPO on environments of brax and Playground", rows, options.out)


def _row(name: str, learner: str, seed: int, options: Options) -> dict[str, Any]:
    task = TASKS[name]
    inner, wrap = task.load()
    env = FromBrax(inner, task.time_limit)
    steps = options.steps or task.steps
    begin = time.perf_counter()
    if learner == "brax":
        policy, params, done, ready = _brax(inner, wrap, task, seed, steps)
    else:
        config = _same(task.brax) if learner == "jaxrobo, its settings" else ppo.Config(**task.ours)
        policy, params, done, ready = _ours(env, config, seed, steps)
    end = time.perf_counter()
    score = evaluate(env, policy, params, "test", episodes=options.episodes)["reward"]
    row = {
        "environment": name,
        "PPO": learner,
        "seed": seed,
        "steps": done,
        "return": score.mean,
        "low": score.low,
        "high": score.high,
        "s": end - begin,
        "s after the first iteration": end - ready,
    }
    print(row, flush=True)
    return row


# --- the learners ---------------------------------------------------------------------------------


def _ours(env: Env, config: ppo.Config, seed: int, steps: int) -> tuple[Policy, Params, int, float]:
    """Policy, parameters, steps made, and when the first iteration was done."""
    trainer = ppo.make(env, config)
    state = trainer.init(jax.random.key(seed), trainer.inputs)
    iterations, ready = -(-steps // config.steps_per_iteration), 0.0
    for i in range(iterations):
        state, _ = trainer.step(state, trainer.inputs)
        if i == 0:
            jax.block_until_ready(state)
            ready = time.perf_counter()
    jax.block_until_ready(state)
    return *trainer.policy(state), iterations * config.steps_per_iteration, ready


def _brax(
    env: Any, wrap: Callable | None, task: Task, seed: int, steps: int
) -> tuple[Policy, Params, int, float]:
    """As `_ours`. brax evaluates never, but looks up after each iteration."""
    iterations = -(-steps // _steps_per_iteration(task.brax))
    marks = []
    settings = dict(task.brax)
    network = functools.partial(make_ppo_networks, **settings.pop("network", {}))
    with device_put_replicated():
        make_policy, params, _ = brax_ppo.train(
            env,
            iterations * _steps_per_iteration(task.brax),
            seed=seed,
            episode_length=task.time_limit,
            wrap_env_fn=wrap,
            num_evals=iterations + 1,
            run_evals=False,
            policy_params_fn=lambda *args: marks.append(time.perf_counter()),
            network_factory=network,
            **settings,
        )

    def act(params: Params, carry: Any, observation: jax.Array, key: jax.Array) -> tuple:
        return make_policy(params, deterministic=True)(observation, key)[0], carry, {}

    return Policy(act), params, iterations * _steps_per_iteration(task.brax), marks[1]


def _steps_per_iteration(settings: dict[str, Any]) -> int:
    names = ("batch_size", "num_minibatches", "unroll_length")
    return int(np.prod([settings[name] for name in names]))


def _same(settings: dict[str, Any]) -> ppo.Config:
    """brax's settings in our words."""
    return ppo.Config(
        num_envs=settings["num_envs"],
        horizon=_steps_per_iteration(settings) // settings["num_envs"],
        epochs=settings["num_updates_per_batch"],
        minibatches=settings["num_minibatches"],
        discount=settings["discounting"],
        clip=0.3,
        learning_rate=settings["learning_rate"],
        schedule="constant",
        entropy_coef=settings["entropy_cost"],
        reward_scale=settings["reward_scaling"],
        value_coef=0.25,
        clip_values=False,
        normalise_values=False,
        hidden=(64, 64),
        activation="swish",
        shared_trunk=False,
    )


# --- the tasks ------------------------------------------------------------------------------------


def _inverted_pendulum() -> tuple[Any, None]:
    return get_environment("inverted_pendulum", backend="generalized"), None


def _cartpole_balance() -> tuple[Any, Callable]:
    from mujoco_playground import registry, wrapper

    env = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    return env, wrapper.wrap_for_brax_training


TASKS = {
    # brax, notebooks/training.ipynb.
    "inverted_pendulum": Task(
        load=_inverted_pendulum,
        time_limit=1000,
        steps=2_000_000,
        brax=dict(
            num_envs=2048,
            unroll_length=5,
            batch_size=1024,
            num_minibatches=32,
            num_updates_per_batch=4,
            discounting=0.97,
            learning_rate=3e-4,
            entropy_cost=1e-2,
            reward_scaling=10,
            normalize_observations=True,
        ),
        ours=dict(num_envs=256, horizon=32, discount=0.97, schedule="constant"),
    ),
    # Playground, config/dm_control_suite_params.py, with an eighth of its simulations, so that so
    # few steps are more than two iterations; and without its new draws of first states.
    "CartpoleBalance": Task(
        load=_cartpole_balance,
        time_limit=1000,
        steps=2_000_000,
        brax=dict(
            num_envs=256,
            unroll_length=30,
            batch_size=128,
            num_minibatches=32,
            num_updates_per_batch=16,
            discounting=0.995,
            learning_rate=1e-3,
            entropy_cost=1e-2,
            reward_scaling=10,
            normalize_observations=True,
        ),
        ours=dict(num_envs=256, horizon=32, discount=0.98, gae_decay=0.98, schedule="constant"),
    ),
}


if __name__ == "__main__":
    main(tyro.cli(Options))
