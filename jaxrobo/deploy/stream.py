"""Streams the joint angles of a twin to a robot, and says how punctual that was."""

import gc
import math
import time
from array import array
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrobo.deploy.robot import Robot, RobotError
from jaxrobo.deploy.twin import Twin

_NEAR = 0.05
"""How near the arm must be before it's sent on, and how far at most, rad. An arm that keeps up with
1 rad/s and tells so two periods late seems 0.033 rad behind."""

_PATIENCE = 5.0
"""Seconds without coming closer after which a robot is given up."""

_LATE = 2e-3
"""A period that begins later than this starts a new schedule instead of being made up for, s."""


class Timing(NamedTuple):
    """How punctual a loop was.

    Attributes:
      period: what it should have been, s.
      periods: seconds between the beginnings of one step and the next. `[n]`
      work: seconds that each step took. `[n + 1]`
    """

    period: float
    periods: np.ndarray
    work: np.ndarray

    def within(self, seconds: float) -> float:
        """The share of periods that are right up to so many seconds; NaN if there are none."""
        if not len(self.periods):
            return math.nan
        return float(np.mean(np.abs(self.periods - self.period) <= seconds))

    def __str__(self) -> str:
        if not len(self.periods):
            return "no periods"
        ms = lambda seconds: f"{1e3 * seconds:.2f} ms"
        return (
            f"{len(self.periods)} periods of {ms(self.period)}: {100 * self.within(5e-3):.2f} % "
            f"within 5 ms, median {ms(np.median(self.periods))}, longest {ms(self.periods.max())}; "
            f"work: median {ms(np.median(self.work))}, longest {ms(self.work.max())}"
        )


def pace(
    step: Callable[[], bool | None],
    rate: float,
    *,
    seconds: float = math.inf,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """Calls `step` at a steady rate, until it returns True, the time is over, or `stopped()`.

    Args:
      step: what to do in each period.
      rate: periods a second.
      seconds: for how long.
      stopped: asked before each step.
      clock: tells seconds.
      sleep: waits for seconds.

    Raises:
      ValueError: if `rate` isn't positive.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive, got {rate}")
    period, starts, ends = 1 / rate, array("d"), array("d")  # 3.5 MB an hour at 60 Hz
    begin = due = clock()
    while not stopped() and (now := clock()) - begin < seconds:
        starts.append(now)
        over = step()
        ends.append(clock())
        if over:
            break
        due = (now if now - due > _LATE else due) + period
        if (left := due - clock()) > 0:
            sleep(left)
    return Timing(period, np.diff(starts), np.subtract(ends, starts))


def ramp(
    robot: Robot,
    pose: np.ndarray,
    rate: float,
    *,
    tolerance: float = 1e-3,
    patience: float = _PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Brings a robot to a pose, at its own limited speed, and says whether it's there.

    It isn't if `stopped()` came first.

    Args:
      robot: the robot.
      pose: where to. [n] rad
      rate: commands a second.
      tolerance: the robot is there when every joint is as close, rad.
      patience: seconds without coming closer after which it's given up.
      stopped: asked before each command.

    Raises:
      RobotError: if the pose is outside the robot's limits, or it's lost or held on the way.
    """
    gap, approach = math.inf, _Approach(patience)

    def closer() -> bool:
        nonlocal gap
        gap = float(np.max(np.abs(robot.send(pose) - pose)))
        return gap <= tolerance or approach.ends(gap)

    pace(closer, rate, stopped=stopped)
    if gap > tolerance and not stopped():
        raise approach.failure("its start pose", pose)
    return gap <= tolerance


class _Approach:
    """Whether a robot still comes closer to a pose."""

    def __init__(self, patience: float) -> None:
        self._patience, self._closest, self._since = patience, math.inf, 0.0

    def ends(self, gap: float) -> bool:
        """Whether it has come no closer for too long."""
        now = time.perf_counter()
        if gap < self._closest:
            self._closest, self._since = gap, now
        return now - self._since > self._patience

    def failure(self, what: str, pose: np.ndarray) -> RobotError:
        """The error to raise then."""
        return RobotError(
            f"the robot doesn't reach {what} {np.round(pose, 3).tolist()} rad: it's "
            f"{self._closest:.3f} rad away and has come no closer for {self._patience} s, so the "
            "pose is outside its limits, or something holds it"
        )


class Deployment(NamedTuple):
    """What a deployment was like.

    Attributes:
      timing: of the loop.
      waited: the share of its periods in which the simulation waited for the arm.
    """

    timing: Timing
    waited: float


class Lost(RobotError):
    """The robot was lost on its way.

    Attributes:
      outcome: what the deployment was like until then.
    """

    def __init__(self, why: str, outcome: Deployment) -> None:
        super().__init__(why)
        self.outcome = outcome


def follow(
    robot: Robot,
    twin: Twin,
    rate: float,
    *,
    seconds: float = math.inf,
    stopped: Callable[[], bool] = lambda: False,
) -> Deployment:
    """Brings a robot to a twin's pose, lets it follow the twin, and stops it.

    Args:
      robot: the robot.
      twin: what it follows; waits where the robot is slower.
      rate: commands a second.
      seconds: for how long it follows.
      stopped: asked before each command.

    Raises:
      RobotError: if the robot is lost, or can't reach the start pose; `Lost` once it follows.
    """
    ramp(robot, twin.pose, rate, stopped=stopped)
    follower = _Follower(robot, twin)
    gc.freeze()  # or the collector walks through all of JAX in the middle of a movement
    try:
        timing = pace(follower.step, rate, seconds=seconds, stopped=stopped)
    finally:
        gc.unfreeze()
    outcome = Deployment(timing, follower.waited / max(1, len(timing.work)))
    try:
        follower.finish()
    except RobotError as error:
        raise Lost(str(error), outcome) from error
    return outcome


class _Follower:
    """Lets a robot at the twin's pose follow it, while the twin waits for the robot.

    A robot that may not move as fast would otherwise fall behind for good, and cut corners, each
    joint on its own way to where the simulated arm is by now, through poses that this one was never
    in. So commands lie on straight lines between simulated poses, and each is repeated until the
    robot is near, or comes no closer.

    Attributes:
      waited: steps in which the simulation stood still.
    """

    def __init__(self, robot: Robot, twin: Twin, patience: float = _PATIENCE) -> None:
        self.waited = 0
        self._patience, self._approach = patience, _Approach(patience)
        self._robot, self._twin = robot, twin
        self._pose = self._command = twin.pose
        self._gap = 0.0
        self._error: RobotError | None = None

    def step(self) -> bool:
        """Sends a command, and says whether the robot is lost."""
        near = self._gap <= _NEAR
        if near and self._command is self._pose:
            self._pose = self._twin.step()
        else:
            self.waited += 1
        if near:
            self._command = _along(self._command, self._pose)
            self._approach = _Approach(self._patience)
        try:
            self._gap = float(np.max(np.abs(self._robot.send(self._command) - self._command)))
            if self._gap > _NEAR and self._approach.ends(self._gap):
                self._robot.stop()
                raise self._approach.failure("the pose", self._command)
        except RobotError as error:
            self._error = error
        return self._error is not None

    def finish(self) -> None:
        """Stops the robot. Raises RobotError if that fails, or it was lost before."""
        if self._error is not None:
            raise self._error
        self._robot.stop()


def _along(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The point of a straight line where the joint that turns most has turned by `_NEAR`."""
    farthest = np.max(np.abs(end - start))
    return end if farthest <= _NEAR else start + _NEAR / farthest * (end - start)
