"""Our PPO and brax's on environments of brax and MuJoCo Playground: which gets how far, how fast?

Each trains from the same number of control steps, whole iterations of both, one after another in
one process: brax's in the wrappers of the environment's own library, with the settings published
for it as far as `TASKS` says; ours with settings that a short search by hand found. Networks,
passes over the samples and steps an iteration differ, and so most of the difference in time is that
of the settings.

What is compared is the return of the last policy, acting by its mean, over the same test episodes,
and the wall time of training, which includes compiling; the speed doesn't include it. The task
CartpoleBalance needs MuJoCo Playground (`pip install 'jaxrobo[playground]'`).
"""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from brax.envs import get_environment
from brax.training.agents.ppo import train as brax_ppo
from brax.training.agents.ppo.networks import make_ppo_networks

from benchmarks.common import report
from jaxrobo.bridge.brax import device_put_replicated
from jaxrobo.bridge.from_brax import FromBrax
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import ppo
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import split_key


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, and what it's trained with.

    Attributes:
      load: the bare environment, and what its library wraps it in for a trainer.
      time_limit: control steps.
      steps: control steps of all simulations that are trained from, at least.
      brax: settings of brax's PPO, and of its networks.
      ours: settings of ours.
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
      seeds: how many times.
      steps: control steps of all simulations, if not each task's own.
      episodes: how many the last policy is judged by.
      out: where to write JSON.
    """

    tasks: tuple[str, ...] = ("inverted_pendulum", "CartpoleBalance")
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
        for learner in (_brax, _ours)
    ]
    report("PPO on environments of brax and Playground", rows, options.out)


class Trained(NamedTuple):
    """What came of a training: the policy, the steps made, and when the first iteration ended."""

    policy: Policy
    params: Params
    iterations: int
    steps_per_iteration: int
    ready: float


def _row(name: str, learner: Callable[..., Trained], seed: int, options: Options) -> dict[str, Any]:
    task = TASKS[name]
    steps = _budget(task, options.steps or task.steps)
    begin = time.perf_counter()
    trained = learner(task, seed, steps)
    end = time.perf_counter()
    after_first = (trained.iterations - 1) * trained.steps_per_iteration
    env = FromBrax(task.load()[0], task.time_limit)
    episodes = options.episodes
    score = evaluate(env, trained.policy, trained.params, "test", episodes=episodes)["reward"]
    row = {
        "environment": name,
        "PPO": "brax" if learner is _brax else "jaxrobo",
        "seed": seed,
        "steps": trained.iterations * trained.steps_per_iteration,
        "return": score.mean,
        "low": score.low,
        "high": score.high,
        "s": end - begin,
        "steps/s": round(after_first / (end - trained.ready)),
    }
    print(row, flush=True)
    return row


def _budget(task: Task, steps: int) -> int:
    """`steps`, rounded up to whole iterations of both."""
    ours = ppo.Config(**task.ours).steps_per_iteration
    whole = math.lcm(ours, _steps_per_iteration(task.brax))
    return -(-steps // whole) * whole


# --- the learners ---------------------------------------------------------------------------------


def _ours(task: Task, seed: int, steps: int) -> Trained:
    env = FromBrax(task.load()[0], task.time_limit)
    trainer = ppo.make(env, ppo.Config(**task.ours))
    state = trainer.init(split_key("train", seed), trainer.inputs)
    iterations = steps // trainer.steps_per_iteration
    state, _ = jax.block_until_ready(trainer.step(state, trainer.inputs))
    ready = time.perf_counter()
    for _ in range(iterations - 1):
        state, _ = trainer.step(state, trainer.inputs)
    jax.block_until_ready(state)
    return Trained(*trainer.policy(state), iterations, trainer.steps_per_iteration, ready)


def _brax(task: Task, seed: int, steps: int) -> Trained:
    """brax never evaluates here, but calls back after each iteration."""
    settings, marks = dict(task.brax), []
    network = functools.partial(make_ppo_networks, **settings.pop("network", {}))
    per_iteration = _steps_per_iteration(settings)
    iterations = steps // per_iteration
    env, wrap = task.load()
    with device_put_replicated():
        make_policy, params, _ = brax_ppo.train(
            env,
            iterations * per_iteration,
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

    return Trained(Policy(act), params, iterations, per_iteration, marks[1])


def _steps_per_iteration(settings: dict[str, Any]) -> int:
    names = ("batch_size", "num_minibatches", "unroll_length")
    return int(np.prod([settings[name] for name in names]))


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
    # few steps are many iterations, with smaller networks, which on a CPU are several times as
    # fast, and without its new draws of first states.
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
            network=dict(
                policy_hidden_layer_sizes=(64, 64),
                value_hidden_layer_sizes=(64, 64),
            ),
        ),
        ours=dict(num_envs=256, horizon=32, discount=0.98, gae_decay=0.98, schedule="constant"),
    ),
}


if __name__ == "__main__":
    main(tyro.cli(Options))
