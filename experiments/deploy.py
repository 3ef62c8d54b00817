"""Streams a policy to a robot at 60 Hz, until Ctrl-C.

python -m experiments.deploy --robot dofbot --dry-run
python -m experiments.deploy --robot dofbot --host 192.168.1.20 --run-dir runs/servo

The policy acts in simulation and the robot follows the simulated joints, from its start pose on;
where it's slower, the simulation waits. On the Dofbot's computer runs jaxrobo/deploy/arm_server.py,
a file of Python's standard library. Before you start: clear the space around the arm, and have its
switch at hand.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

import envs
from envs import trained
from experiments import cli
from experiments.common import load, stored_config
from jaxrobo._signals import stop_on_signal
from jaxrobo.deploy import (
    Deployment,
    Dofbot,
    Lost,
    Robot,
    RobotError,
    Twin,
    Ur10,
    arm_server,
    dofbot,
    follow,
    ur10,
)
from jaxrobo.deploy.dry_run import dry_run
from jaxrobo.rollout import check_seed
from jaxrobo.training import RunError

_RATE = 60.0
"""Commands a second."""

_ROUNDING = 1e-6
"""By which limits and start poses may be outside the robot's limits, rad."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a deployment.

    Attributes:
      robot: which.
      host: of the Dofbot's server.
      port: of the Dofbot's server; 65432 if None.
      run_dir: the run of the policy; if None, the one that comes with the library.
      checkpoint: the best on the validation split, or the last.
      run_seed: one of the run's seeds; the first if None.
      seed: draws the goals.
      speed: highest speed of a joint, rad/s; if None, 1 for the Dofbot, 0.5 for the UR10.
      seconds: for how long; until Ctrl-C if None.
      dry_run: streams to a server on this computer, without an arm.
      compatible: the Dofbot's server is the original's: packets of 24 bytes, and no answers. Start
        it anew before, so that the arm is in the middle, or give --start.
      start: where the Dofbot is, with --compatible: what the last deployment printed, rad.
    """

    robot: Literal["dofbot", "ur10"]
    host: str | None = None
    port: int | None = None
    run_dir: Path | None = None
    checkpoint: Literal["best", "last"] = "best"
    run_seed: int | None = None
    seed: int = 0
    speed: float | None = None
    seconds: float | None = None
    dry_run: bool = False
    compatible: bool = False
    start: tuple[float, float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("speed", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port must be in 1 .. 65535, got {self.port}")
        where = self.host or self.port is not None
        if self.robot == "ur10" and (self.dry_run or where or self.compatible):
            raise ValueError(
                "the UR10 is reached through ROS: only the Dofbot has --host, --port or --dry-run"
            )
        if self.robot == "dofbot" and (self.host is None) != self.dry_run:
            raise ValueError("a Dofbot needs either --host, its server's, or --dry-run")
        if self.dry_run and self.port is not None:
            raise ValueError("--dry-run takes a free port: --port is for --host")
        if self.start is not None and not (self.compatible and self.host):
            raise ValueError("--start is for --host with --compatible: other servers know")
        if self.run_seed is not None and self.run_dir is None:
            raise ValueError("--run-seed needs --run-dir")
        dofbot.checked_start(self.start)
        check_seed(self.seed)


class Task(NamedTuple):
    """What a robot's twin does.

    Attributes:
      name: of the environment.
      limits: (lower, upper) of each of the robot's joints, rad.
      policy: the one that comes with the library, and stays within them.
    """

    name: str
    limits: tuple[tuple[float, float], ...]
    policy: str


TASKS = {
    "dofbot": Task("DofbotReacher", dofbot.LIMITS, "dofbot-servo"),
    "ur10": Task("UR10Reacher", ur10.LIMITS, "ur10-deployed"),
}
"""The task of each robot."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    o = cli.parse(Options, argv, "python -m experiments.deploy", __doc__)
    with cli.failing(RunError, ValueError):
        twin = _twin(o)
    with (
        cli.failing(RobotError, OSError),  # the latter of a dry run's server
        stop_on_signal("stopping the arm; again to abort") as stopped,
        _connected(o) as robot,
    ):
        print("moving to the start pose; then the policy, until Ctrl-C", flush=True)
        try:
            outcome = follow(robot, twin, _RATE, seconds=o.seconds or math.inf, stopped=stopped)
        except Lost as lost:
            _report(o, twin, robot, lost.outcome)
            raise
        print("stopped: the arm holds its pose")
        _report(o, twin, robot, outcome)


def _twin(o: Options) -> Twin:
    """The simulation, on the CPU's engine: its steps are short, and one after another."""
    task = TASKS[o.robot]
    if o.run_dir is None:
        env = envs.make(task.name, "native", **trained.POLICIES[task.policy].options)
        policy, params = trained.load(task.policy, env)
    else:
        found = stored_config(o.run_dir)["env"]
        if found != task.name:
            raise RunError(f"{o.run_dir} is a run of {found}; a {o.robot} needs one of {task.name}")
        env, policy, params = load(o.run_dir, o.checkpoint, o.run_seed, "native")
    _check_limits(o.robot, env.unwrapped.arm.limits)
    twin = Twin(env, policy, params, jax.random.key(o.seed))
    _check_start(o.robot, twin.pose)
    return twin


def _check_limits(robot: str, limits: np.ndarray) -> None:
    """Raises RunError if a task's joint limits `[n, 2]`, rad, aren't within a robot's."""
    own = np.array(TASKS[robot].limits)
    if len(limits) != len(own):
        raise RunError(
            f"the policy moves {len(limits)} joints, a {robot} has {len(own)}: train without "
            "--gripper"
        )
    if (joint := _outside(robot, *np.transpose(limits))) is not None:
        raise RunError(
            f"the policy moves joint {joint + 1} between {limits[joint].round(2)} rad, a {robot} "
            f"may between {own[joint].round(2)}: train with --safety"
        )


def _check_start(robot: str, pose: np.ndarray) -> None:
    """Raises RunError if a pose `[n]`, rad, isn't within a robot's limits."""
    if (joint := _outside(robot, pose, pose)) is not None:
        low, high = TASKS[robot].limits[joint]
        raise RunError(
            f"the simulation starts with joint {joint + 1} at {pose[joint]:.2f} rad, a {robot} may "
            f"be between {low:.2f} and {high:.2f}: train without --upstream-quirks"
        )


def _outside(robot: str, lowest: np.ndarray, highest: np.ndarray) -> int | None:
    """The joint that is the farthest beyond a robot's limits, of poses `[n]`, rad, if one is."""
    low, high = np.transpose(TASKS[robot].limits)
    beyond = np.maximum(low - lowest, highest - high)
    return int(np.argmax(beyond)) if np.max(beyond) > _ROUNDING else None


@contextlib.contextmanager
def _connected(o: Options) -> Iterator[Robot]:
    """The robot, or the server that stands in for it."""
    speed = {} if o.speed is None else {"speed": o.speed}
    if o.robot == "ur10":
        with Ur10(**speed) as robot:
            yield robot
        return
    options = dict(compatible=o.compatible, **speed)
    if not o.dry_run:
        with Dofbot(o.host, o.port or arm_server.PORT, start=o.start, **options) as robot:
            try:
                yield robot
            finally:
                if o.compatible:
                    angles = " ".join(f"{a:.4f}" for a in robot.pose)
                    print(f"unless the server is started anew, go on with --start {angles}")
        return
    flags = ["--compatible"] if o.compatible else []
    if o.speed is not None:
        flags += ["--speed", str(math.degrees(o.speed))]
    with dry_run(*flags) as server:
        with Dofbot("127.0.0.1", server.port, **options) as robot:
            yield robot
        low, high, _ = server.stop()
        print(f"the servos were within {low.round(1)} and {high.round(1)} degrees")


def _report(o: Options, twin: Twin, robot: Robot, outcome: Deployment) -> None:
    """How well the robot followed."""
    print(outcome.timing)
    print(f"{TASKS[o.robot].name} in simulation: {twin.metric:.0f} goals")
    if robot.limited:
        print(f"{robot.limited} commands were outside the joint limits, and clipped")
    if outcome.waited > 0.05:
        print(
            f"in {100 * outcome.waited:.0f} % of the periods the simulation waited for the arm: it "
            "moves faster than --speed or the server allows; --profile servo trains a slower policy"
        )


if __name__ == "__main__":
    cli.start(main)
