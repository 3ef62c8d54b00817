"""The paced loop, on a clock of the test's own."""

import math

import numpy as np
import pytest

from jaxrobo.deploy import RobotError, Timing, pace, ramp


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
    """A robot that comes 0.1 rad closer at every command, up to 1 rad."""

    def __init__(self):
        self.pose = np.zeros(2)

    def send(self, q):
        self.pose = np.clip(self.pose + np.clip(q - self.pose, -0.1, 0.1), -1, 1)
        return self.pose


def test_a_ramp_ends_at_the_pose():
    robot = Slow()
    assert ramp(robot, np.array([0.35, -0.6]), 1000.0)
    np.testing.assert_allclose(robot.pose, [0.35, -0.6])
    assert not ramp(robot, np.zeros(2), 1000.0, stopped=lambda: True)
    np.testing.assert_allclose(robot.pose, [0.35, -0.6])


def test_a_pose_that_cannot_be_reached_is_an_error():
    with pytest.raises(RobotError, match=r"start pose \[2.0, 0.0\] .* it's 1.000 rad away"):
        ramp(Slow(), np.array([2.0, 0.0]), 1000.0, seconds=0.2)
