"""The loop that streams joint angles to a robot, and how punctual it was."""

import math
import time
from array import array
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrobo.deploy.robot import Robot, RobotError

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
    seconds: float = 30.0,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Brings a robot to a pose, at its own limited speed, and says whether it's there.

    It isn't if `stopped()` came first.

    Args:
      robot: the robot.
      pose: where to. [n] rad
      rate: commands a second.
      tolerance: the robot is there when every joint is as close, rad.
      seconds: after which it's given up.
      stopped: asked before each command.

    Raises:
      RobotError: if the pose is outside the robot's limits, or it's lost on the way.
    """
    gap = math.inf

    def approach() -> bool:
        nonlocal gap
        gap = float(np.max(np.abs(robot.send(pose) - pose)))
        return gap <= tolerance

    pace(approach, rate, seconds=seconds, stopped=stopped)
    if gap > tolerance and not stopped():
        raise RobotError(
            f"the robot doesn't reach its start pose {np.round(pose, 3).tolist()} rad within "
            f"{seconds} s: it's {gap:.3f} rad away, so the pose is outside its limits or too far"
        )
    return gap <= tolerance
