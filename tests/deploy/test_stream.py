"""The paced loop, on a clock of the test's own."""

import math
import time

import numpy as np
import pytest

from jaxrobo.deploy import RobotError, Timing, pace, ramp
from jaxrobo.deploy.stream import _Follower


class Clock:
    """Time that passes only by sleeping and working."""

    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


def run(work, rate=100.0, **options):
    """Paces steps that take these times."""
    clock, times = Clock(), iter(work)

    def step():
        clock.now += next(times)

    return pace(step, rate, clock=clock, sleep=clock.sleep, **options)


def test_periods_are_equal_however_long_the_work_takes():
    timing = run([0.001, 0.009, 0.0, 0.005] * 5, seconds=0.2 - 1e-9)
    np.testing.assert_allclose(timing.periods, 0.01)
    np.testing.assert_allclose(timing.work[:4], [0.001, 0.009, 0.0, 0.005], atol=1e-12)
    assert len(timing.work) == 20
    assert timing.within(1e-9) == 1.0


def test_what_was_missed_is_not_made_up_for():
    timing = run([0.0, 0.055, 0.0, 0.0, 0.0], seconds=0.0949)
    np.testing.assert_allclose(timing.periods, [0.01, 0.055, 0.01, 0.01])
    assert timing.within(5e-3) == 0.75


def test_it_ends_when_asked():
    calls = []
    assert len(pace(lambda: calls.append(0), 1e4, stopped=lambda: len(calls) == 3).work) == 3
    assert len(pace(lambda: True, 1e4).work) == 1
    nothing = pace(lambda: True, 1e4, stopped=lambda: True)
    assert math.isnan(nothing.within(1.0))
    assert str(nothing) == "no periods"
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        pace(lambda: True, 0.0)


def test_timing_in_words():
    timing = Timing(0.01, np.array([0.01, 0.02, 0.01, 0.012]), np.array([0.001, 0.003, 0.002]))
    expected = (
        "4 periods of 10.00 ms: 75.00 % within 5 ms, median 11.00 ms, longest 20.00 ms; "
        "work: median 2.00 ms, longest 3.00 ms"
    )
    assert str(timing) == expected


class Slow:
    """A robot that comes a little closer at every command, up to 1 rad."""

    def __init__(self, by=0.1):
        self.pose, self.by = np.zeros(2), by

    def send(self, q):
        self.pose = np.clip(self.pose + np.clip(q - self.pose, -self.by, self.by), -1, 1)
        return self.pose


def test_a_ramp_ends_at_the_pose():
    robot = Slow()
    assert ramp(robot, np.array([0.35, -0.6]), 1000.0)
    np.testing.assert_allclose(robot.pose, [0.35, -0.6])
    assert not ramp(robot, np.zeros(2), 1000.0, stopped=lambda: True)
    np.testing.assert_allclose(robot.pose, [0.35, -0.6])


def test_a_ramp_takes_as_long_as_the_robot_needs():
    """As long as it comes closer, it isn't given up: 0.6 s here, of which none passes in vain."""
    robot, begin = Slow(by=1e-3), time.perf_counter()
    assert ramp(robot, np.array([0.35, -0.6]), 1000.0, patience=0.3)
    assert time.perf_counter() - begin > 0.5
    np.testing.assert_allclose(robot.pose, [0.35, -0.6], atol=2e-3)


def test_a_pose_that_cannot_be_reached_is_an_error():
    words = r"start pose \[2.0, 0.0\] rad: it's 1.000 rad away and has come no closer for 0.2 s"
    with pytest.raises(RobotError, match=words):
        ramp(Slow(), np.array([2.0, 0.0]), 1000.0, patience=0.2)


# --- following ------------------------------------------------------------------------------------


class Leaps:
    """Instead of a simulation: it moves some joints far in one step, and others less."""

    poses = np.cumsum([[0.0, 0.0], [0.6, -0.1], [0.02, 0.01], [-0.3, 0.6], [0.0, 0.0]], axis=0)

    def __init__(self):
        self.steps = 0

    @property
    def pose(self):
        return self.poses[self.steps]

    def step(self):
        self.steps += 1
        return self.pose


class Arm:
    """A robot whose joints move at a limited speed, each on its own, and tell of it late."""

    def __init__(self, by, late=1):
        self.by, self.visited = by, [np.zeros(2)] * late

    def send(self, q):
        self.visited.append(self.visited[-1] + np.clip(q - self.visited[-1], -self.by, self.by))
        return self.visited[-2]


@pytest.mark.parametrize("by", [0.007, 0.03, 1.0])
def test_the_simulation_waits_for_the_arm_which_takes_its_way(by):
    twin, arm = Leaps(), Arm(by)
    follower, periods = _Follower(arm, twin), 0
    while twin.steps < 4:
        follower.step()
        periods += 1
    assert follower.waited == periods - 4
    assert periods >= 1 + sum(np.abs(np.diff(twin.poses, axis=0)).max(-1)) / max(by, 0.05)
    lines = np.linspace(twin.poses[:-1], twin.poses[1:], 1000).reshape(-1, 2)
    off = np.abs(np.array(arm.visited)[:, None] - lines).max(-1).min(-1)
    assert off.max() <= 0.05


def test_an_arm_that_never_gets_there_is_given_up():
    """One whose second joint ends at 0.3 rad, where the simulated one goes on to 0.51."""

    class Ending(Arm):
        def send(self, q):
            return super().send(np.minimum(q, [9.0, 0.3]))

        def stop(self):
            self.stopped = True

    arm = Ending(1.0)
    follower = _Follower(arm, Leaps(), patience=0.2)
    while not follower.step():
        time.sleep(0.01)
    words = r"doesn't reach the pose \[.*, 0.3.*\] rad: .* has come no closer for 0.2 s"
    with pytest.raises(RobotError, match=words):
        follower.finish()
    assert arm.stopped


def test_the_simulation_does_not_wait_for_an_arm_that_keeps_up():
    """At 1 rad/s, told of two periods late."""

    class Steady(Leaps):
        @property
        def pose(self):
            return np.array([1.0, -0.5]) * self.steps / 60

    follower = _Follower(Arm(1.001 / 60, late=2), Steady())
    for _ in range(120):
        follower.step()
    assert follower.waited == 0
