"""What stands between a command and the motors, on a clock of the test's own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobo.deploy.arm_server import FLOOD, LIMITED, OK, REFUSED, Safety

LIMITS = ((-1.0, 1.0), (0.0, 2.0))
NUMBERS = st.floats(width=32) | st.floats(-3, 3)


def at(pose=(0.0, 1.0), speed=1.0, **options):
    return Safety(pose, LIMITS, speed, 0.0, **options)


def test_it_moves_at_the_limited_speed_and_arrives_exactly():
    safety = at(hold_after=math.inf)
    assert safety.command((0.1, 0.99), 0.0) == OK
    np.testing.assert_allclose(safety.step(0.04), (0.04, 0.99))
    np.testing.assert_allclose(safety.step(0.08), (0.08, 0.99))
    assert safety.step(0.12) == (0.1, 0.99)


def test_a_command_outside_the_limits_is_clipped_or_far_outside_refused():
    safety = at(margin=0.5)
    assert safety.command((1.5, -0.5), 0.0) == LIMITED
    assert safety.target == (1.0, 0.0)
    for bad in [(1.6, 1.0), (0.0, 2.6), (math.nan, 1.0), (0.0, math.inf), (0.0,), (0.0,) * 3]:
        assert safety.command(bad, 0.0) == REFUSED
    assert safety.target == (1.0, 0.0)


def test_silence_holds_the_pose():
    safety = at(hold_after=0.25)
    safety.command((1.0, 2.0), 0.0)
    for tick in range(1, 26):
        moved = safety.step(tick / 100)
    np.testing.assert_allclose(moved, (0.25, 1.25))
    held = safety.step(0.26)
    assert held == moved
    safety.alive(0.3)  # a sign of life isn't a command
    assert safety.step(0.4) == held
    safety.command((1.0, 2.0), 0.5)
    assert safety.step(0.51) != held


def test_refused_commands_are_no_sign_of_life():
    safety = at(hold_after=0.25)
    safety.command((1.0, 2.0), 0.0)
    safety.command((math.nan, 0.0), 0.2)
    held = safety.step(0.3)
    assert held == (0.0, 1.0)


def test_a_stalled_loop_does_not_leap():
    safety = at(hold_after=math.inf)
    safety.command((1.0, 1.0), 0.0)
    moved = safety.step(10.0)
    np.testing.assert_allclose(moved, (0.05, 1.0))
    assert safety.step(9.0) == moved  # nor does a clock that goes back move it


def test_from_outside_the_limits_it_only_comes_in():
    safety = at(pose=(1.5, 3.0), hold_after=math.inf)
    assert safety.step(1.0) == (1.5, 3.0)
    safety.command((2.0, 2.5), 1.0)
    assert safety.step(1.05) == pytest.approx((1.45, 2.95))


def test_it_can_start_again_elsewhere():
    safety = at(hold_after=math.inf)
    safety.command((1.0, 1.0), 0.0)
    safety.restart((-0.5, 0.5), 10.0)
    assert safety.step(10.01) == (-0.5, 0.5)
    safety.command((1.0, 0.5), 10.01)
    assert safety.step(10.02) == pytest.approx((-0.49, 0.5))


def test_more_commands_than_the_rate_are_refused():
    safety = at(rate=100.0)
    statuses = [safety.command((0.0, 1.0), 0.0) for _ in range(40)]
    assert statuses == [OK] * 25 + [FLOOD] * 15
    assert safety.command((0.0, 1.0), 0.005) == FLOOD
    assert safety.command((0.0, 1.0), 0.02) == OK
    steady = at(rate=100.0)
    assert {steady.command((0.0, 1.0), k / 60) for k in range(600)} == {OK}


@given(
    st.lists(st.tuples(st.lists(NUMBERS, max_size=3), st.floats(0, 0.5)), max_size=30),
    st.tuples(st.floats(-1, 1), st.floats(0, 2)),
    st.floats(0.01, 100),
)
def test_no_commands_leave_the_limits_or_exceed_the_speed(commands, pose, speed):
    safety, now = at(pose=pose, speed=speed), 0.0
    for command, wait in commands:
        safety.command(tuple(command), now)
        now += wait
        before, after = safety.pose, safety.step(now)
        for a, b, (low, high) in zip(before, after, LIMITS, strict=True):
            assert low <= b <= high
            assert abs(b - a) <= speed * min(wait, 0.05) + 1e-9
