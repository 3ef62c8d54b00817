"""Shows a policy at work in a browser, where you can take arms over and drag goals.

    python -m experiments.play --env DofbotReacher --profile servo
    python -m experiments.play --run-dir runs/DofbotReacher-ppo-0

Every field of the task's `Config` is a flag; `--env NAME --help` lists them. A run has options of
its own. While it trains, every new best policy takes the place of the one that acts; with
`--checkpoint last`, every one that is saved does. The first is waited for.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

import envs
from envs import trained
from experiments import cli
from experiments.common import restore_trainer, stored_config
from jaxrobo import checkpoint, rundir
from jaxrobo.env import Env
from jaxrobo.learning.trainer import Trainer
from jaxrobo.policy import Params, Policy, constant, uniform
from jaxrobo.rollout import check_seed
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
      run_seed: one of the run's seeds; the first if None.
      policy: what acts without a run: a trained policy of the library's (`envs.trained`), the
        scripted expert, random actions, or zeros; the first of them that there is if None.
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
    run_seed: int | None = None
    policy: Literal["trained", "expert", "random", "zero"] | None = None
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
        if self.run_dir is None and self.run_seed is not None:
            raise ValueError("--run-seed is a run's; --run-dir is missing")
        check_seed(self.seed)


class Loaded(NamedTuple):
    """What is played.

    Attributes:
      name: of the task.
      env: its environment.
      policy: what acts there.
      params: its parameters.
      acts: what acts, in words.
      trainer: of the run; None without one, as the next.
      path: the checkpoint that the parameters are of, or an older one.
    """

    name: str
    env: Env
    policy: Policy
    params: Params
    acts: str
    trainer: Trainer | None = None
    path: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    o, task = parse(argv)
    with cli.failing(ValueError, ImportError):
        from jaxrobo.viewer.page import Page, check_address  # viser is optional

        check_address(o.host, o.port)
        found = load(o, task)
        print("compiling ...", flush=True)
        player = Player(found.env, found.policy, found.params, o.num_envs, o.seed)
        page = Page(player, found.name, o.host, o.port)
    print(f"{page.url} shows {found.name}; acting: {found.acts}; Ctrl-C ends it", flush=True)
    page.note = f"acting: {found.acts}"

    def accept(params: Params, path: Path) -> None:
        player.params = params
        page.note = f"acting: {_of_run(path)}"

    done = threading.Event()
    if found.trainer is not None:
        arguments = (o, found.trainer, found.path, accept, done)
        threading.Thread(target=follow, args=arguments, daemon=True).start()
    try:
        page.run()
    finally:
        done.set()
        page.close()


def parse(argv: Sequence[str]) -> tuple[Options, Any]:
    """Options of the page, and the task's `Config` unless there's a run, which has its own.

    Exits with 2 on a wrong flag.
    """
    about = f"{__doc__}\ntasks: {', '.join(envs.names())}"
    name, run_dir = cli.peek(argv, "--env", "--run-dir")
    if name is None or run_dir is not None:
        return cli.parse(Options, argv, _COMMAND, about), None
    with cli.failing(ValueError):
        options = cli.merge(page=Options, task=envs.config_class(name))
    parsed = cli.parse(options, argv, _COMMAND, about)
    return parsed.page, parsed.task


def load(o: Options, task: Any) -> Loaded:
    """Makes what is played; waits for a run's first checkpoint.

    Args:
      o: the options of the page.
      task: the task's `Config`; None with a run.

    Raises:
      ValueError: if there's no such task or run, the run is another task's, or there's no expert.
    """
    if o.run_dir is None:
        fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
        env = envs.make(o.env, o.engine, **fields)
        return Loaded(o.env, env, *_without_run(o, env, task))
    name = stored_config(o.run_dir)["env"]
    if o.env not in (None, name):
        raise ValueError(f"{o.run_dir} is a run of {name}, not of {o.env}")
    trainer = restore_trainer(o.run_dir, o.engine)
    path = _wait_for_checkpoint(_series(o))  # first: what is saved from now on is newer
    policy, params = restore_policy(o.run_dir, trainer, o.checkpoint, o.run_seed)
    return Loaded(name, trainer.env, policy, params, _of_run(path), trainer, path)


def follow(
    o: Options,
    trainer: Trainer,
    loaded: Path | None,
    accept: Callable[[Params, Path], None],
    done: threading.Event,
    every: float = _LOOK_AGAIN,
) -> None:
    """Loads every newer checkpoint of a run until told to stop.

    Args:
      o: which run, and which of its checkpoints.
      trainer: made as it was for the run.
      loaded: the checkpoint that acts already.
      accept: called with the parameters of each, and where they are.
      done: says when to stop.
      every: seconds between looks.
    """
    while not done.wait(every):
        if (path := checkpoint.newest(_series(o))) in (None, loaded):
            continue
        try:
            _, params = restore_policy(o.run_dir, trainer, o.checkpoint, o.run_seed)
        except RunError:  # replaced while it was read: the next look finds its successor
            continue
        accept(params, path)
        loaded = path


def _series(o: Options) -> Path:
    return o.run_dir / (rundir.BEST if o.checkpoint == "best" else rundir.LAST)


def _wait_for_checkpoint(series: Path) -> Path:
    """The newest checkpoint of a series. A run that has just begun saves its first in a minute."""
    if checkpoint.newest(series) is None:
        print(f"waiting for the first checkpoint in {series}; Ctrl-C ends it", flush=True)
    while (path := checkpoint.newest(series)) is None:
        time.sleep(_LOOK_AGAIN)
    return path


def _of_run(path: Path) -> str:
    return f"{path.parent.parent}, {path.parent.name} checkpoint ({path.name})"


def _without_run(o: Options, env: Env, task: Any) -> tuple[Policy, Params, str]:
    """A policy, its parameters, and what it is in words."""
    if o.policy == "zero":
        return constant(jnp.zeros(env.action_size)), (), "zeros"
    if o.policy == "random":
        return uniform(env.action_size), (), "random actions"
    if o.policy != "expert" and (name := trained.find(o.env, task)) is not None:
        return *trained.load(name, env), f"trained policy {name}"
    if o.policy == "trained":
        raise ValueError(_no_policy(o.env))
    why = "" if o.policy == "expert" else f" ({_no_policy(o.env)})"
    try:
        if not hasattr(env, "expert"):
            raise ValueError(f"{type(env.unwrapped).__name__} has no scripted expert")
        return env.expert(), (), f"scripted expert{why}"
    except ValueError:
        if o.policy == "expert":
            raise
        return uniform(env.action_size), (), f"random actions, as there's no expert{why}"


def _no_policy(env: str) -> str:
    commands = [p.command.partition("--env ")[2] for p in trained.POLICIES.values() if p.env == env]
    there = "; ".join(commands) or "none"
    return f"no trained policy comes with {env} and these options; there are: {there}"


if __name__ == "__main__":
    cli.start(main)
