"""Shows a policy at work in a browser, where you can take arms over and drag goals.

    python -m experiments.play --env DofbotReacher
    python -m experiments.play --run-dir runs/DofbotReacher-ppo-0

Of a run in training, the newest checkpoint is what acts.
"""

import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

import envs
from experiments import cli
from experiments.common import restore_trainer
from jaxrobo import checkpoint, rundir
from jaxrobo.env import Env
from jaxrobo.learning.trainer import Trainer
from jaxrobo.policy import Params, Policy, constant, uniform
from jaxrobo.training import RunError, restore_policy
from jaxrobo.viewer import Player

_COMMAND = "python -m experiments.play"
_LOOK_AGAIN = 2.0
"""Seconds between looks for a newer checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the page.

    Attributes:
      env: name of the environment; that of the run if there is one.
      run_dir: the folder of a run, whose policy acts.
      checkpoint: the best on the validation split, or the last.
      policy: what acts without a run: the scripted expert, random actions, or zeros; the expert if
        None and there is one, random actions if not.
      engine: native (MuJoCo C on CPU threads), mjx (on the device); auto takes mjx where JAX has an
        accelerator.
      num_envs: how many simulations.
      seed: where they start.
      host: the address to listen at; 0.0.0.0 lets other machines in.
      port: of the page.
    """

    env: str | None = None
    run_dir: Path | None = None
    checkpoint: Literal["best", "last"] = "best"
    policy: Literal["expert", "random", "zero"] | None = None
    engine: Literal["auto", "native", "mjx"] = "auto"
    num_envs: int = 64
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8080

    def __post_init__(self) -> None:
        if self.env is None and self.run_dir is None:
            raise ValueError(f"--env or --run-dir is missing; tasks: {', '.join(envs.names())}")
        if self.run_dir is not None and self.policy is not None:
            raise ValueError("the run's policy acts; leave out --run-dir or --policy")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    o = cli.parse(Options, argv, _COMMAND, __doc__)
    with cli.failing(ValueError, ImportError):
        from jaxrobo.viewer.page import Page  # viser is optional

        name, env, policy, params, trainer = load(o)
        print("compiling ...", flush=True)
        page = Page(Player(env, policy, params, o.num_envs, o.seed), name, o.host, o.port)
    print(f"{page.url} shows {name}; Ctrl-C ends it", flush=True)
    done = threading.Event()
    if trainer is not None:
        accept = lambda params: setattr(page.player, "params", params)
        arguments = (o.run_dir, o.checkpoint, trainer, accept, done)
        threading.Thread(target=follow, args=arguments, daemon=True).start()
    try:
        page.run()
    finally:
        done.set()
        page.close()


def load(o: Options) -> tuple[str, Env, Policy, Params, Trainer | None]:
    """The task's name, its environment, what acts there, its parameters, and a run's trainer.

    Raises:
      ValueError: if there's no such task or run, the run is another task's, or there's no expert.
    """
    if o.run_dir is None:
        env = envs.make(o.env, o.engine)
        return o.env, env, _untrained(env, o.policy), (), None
    name = rundir.read_config(o.run_dir).get("env")
    if o.env not in (None, name):
        raise ValueError(f"{o.run_dir} is a run of {name}, not of {o.env}")
    trainer = restore_trainer(o.run_dir, o.engine)
    policy, params = restore_policy(o.run_dir, trainer, o.checkpoint)
    return name, trainer.env, policy, params, trainer


def follow(
    run_dir: Path,
    which: Literal["best", "last"],
    trainer: Trainer,
    accept: Callable[[Params], None],
    done: threading.Event,
    every: float = _LOOK_AGAIN,
) -> None:
    """Loads every newer checkpoint of a run until told to stop.

    Args:
      run_dir: the run's folder.
      which: see `Options`.
      trainer: made as it was for the run.
      accept: called with the parameters of each.
      done: says when to stop.
      every: seconds between looks.
    """
    folder = run_dir / (rundir.BEST if which == "best" else rundir.LAST)
    loaded = checkpoint.newest(folder)
    while not done.wait(every):
        if (path := checkpoint.newest(folder)) in (None, loaded):
            continue
        try:
            accept(restore_policy(run_dir, trainer, which)[1])
        except RunError:  # replaced while it was read: the next look finds its successor
            continue
        loaded = path


def _untrained(env: Env, name: str | None) -> Policy:
    has_expert = hasattr(env, "expert")
    if name == "expert" and not has_expert:
        raise ValueError(f"{type(env.unwrapped).__name__} has no scripted expert")
    if name == "expert" or (name is None and has_expert):
        return env.expert()
    if name == "zero":
        return constant(jnp.zeros(env.action_size))
    return uniform(env.action_size)


if __name__ == "__main__":
    cli.start(main)
