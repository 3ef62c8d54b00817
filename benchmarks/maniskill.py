"""Does our PPO learn a task of ManiSkill 3 on a CPU?

PickCube-v1, from its state, with its normalised dense reward, in several processes of one
simulation each. Success doesn't end an episode, which always lasts its 50 steps: after an end
nothing more is paid, and to hover beside the goal would be worth more than to reach it. What is
compared are the first and the last episodes of training, each under the policy of its time, with
its exploration: their returns, and how many of them succeeded. The error is that of the difference
of the mean returns.
"""

import dataclasses
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from benchmarks.common import report
from jaxrobo import training
from jaxrobo.bridge.vector import VectorEnv, from_gymnasium
from jaxrobo.env import Metric, Outcome
from jaxrobo.learning import ppo
from jaxrobo.learning.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      env: the task.
      time_limit: its control steps.
      steps: control steps of all simulations.
      processes: how many simulations.
      compared: episodes at the beginning, and at the end.
      seed: of the training.
      out: where to write JSON.
    """

    env: str = "PickCube-v1"
    time_limit: int = 50
    steps: int = 300_000
    processes: int = 4
    compared: int = 50
    seed: int = 0
    out: Path | None = None


def main(options: Options) -> None:
    make = Make(options.env)
    processes = AsyncVectorEnv(
        [make] * options.processes, autoreset_mode=AutoresetMode.SAME_STEP, context="forkserver"
    )
    env = from_gymnasium(processes, options.time_limit, Metric("success"))
    log = Log(env)
    config = ppo.Config(
        num_envs=options.processes,
        horizon=256,
        minibatches=8,
        epochs=8,
        discount=0.8,  # as ManiSkill's own PPO on this task
        gae_decay=0.9,
        learning_rate=3e-4,
        hidden=(256, 256),
        init_log_std=-0.5,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = training.run(
            log.listen(ppo.make(env, config)),
            folder,
            steps=options.steps,
            evaluate_every=options.steps,
            seed=options.seed,
            evaluation_episodes=options.processes,
            test_episodes=64,
        )
    processes.close()
    report(
        f"{options.env}, {result.steps:,} control steps", [_row(options, log, result)], options.out
    )


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes a simulation; a function that another process can be sent."""

    env: str

    def __call__(self) -> gymnasium.Env:
        from jaxrobo.bridge.maniskill import without_renderer

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loop stops, and then the processes
        without_renderer()
        import mani_skill.envs  # noqa: F401
        import torch
        from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

        torch.set_num_threads(1)
        options = dict(obs_mode="state", sim_backend="physx_cpu", render_backend="none")
        env = gymnasium.make(self.env, num_envs=1, reward_mode="normalized_dense", **options)
        return CPUGymWrapper(env, ignore_terminations=True)


class Log:
    """Writes down the episodes of training, and how long the simulations took.

    Attributes:
      returns: of the episodes, in the order in which they ended.
      successes: whether each was one.
      seconds: that the simulations took, those of evaluations too.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.returns, self.successes, self.seconds = [], [], 0.0
        self._advance, env.advance = env.advance, self._timed

    def listen(self, trainer: Trainer) -> Trainer:
        """The same trainer, whose episodes are written down."""

        def collect(state: Any, inputs: Any) -> tuple[Any, Any]:
            state, batch = trainer.collect(state, inputs)
            done = np.asarray(batch.live & (batch.terminated | batch.truncated))
            self.returns.extend(np.asarray(batch.episode["reward"])[done])
            self.successes.extend(np.asarray(batch.episode["success"])[done])
            return state, batch

        return trainer._replace(collect=collect)

    def _timed(self, action: jax.Array) -> Outcome:
        jax.block_until_ready(action)
        begin = time.perf_counter()
        outcome = self._advance(action)
        self.seconds += time.perf_counter() - begin
        return outcome


def _row(options: Options, log: Log, result: training.Result) -> dict[str, Any]:
    if result.interrupted:
        raise SystemExit(130)
    n = options.compared
    first, last = np.array(log.returns[:n]), np.array(log.returns[-n:])
    error = np.sqrt(first.var(ddof=1) / n + last.var(ddof=1) / n)
    return {
        f"return, first {n} episodes": first.mean(),
        f"last {n} of training": last.mean(),
        "difference / standard error": (last.mean() - first.mean()) / error,
        f"success, first {n}": np.mean(log.successes[:n]),
        f"success, last {n}": np.mean(log.successes[-n:]),
        "success, test": str(tuple(round(x, 3) for x in result.evaluation[0]["success"])),
        "return, test": str(tuple(round(x, 2) for x in result.evaluation[0]["reward"])),
        "wall s": result.wall_seconds,
        "of it simulating": log.seconds,
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
