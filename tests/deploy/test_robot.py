"""What every robot has in common."""

import numpy as np
import pytest

from jaxrobo.deploy import Robot, RobotError
from jaxrobo.deploy.robot import leaves


class Broken(Robot):
    """A robot that can't be stopped, for a reason."""

    pose = send = None

    def __init__(self, reason):
        self.reason, self.closed = reason, False

    def stop(self):
        raise self.reason

    def close(self):
        self.closed = True


def test_it_is_disconnected_even_if_it_cannot_be_stopped():
    with Broken(RobotError("lost")) as robot:
        pass
    assert robot.closed
    with pytest.raises(OSError, match="unplugged"), Broken(OSError("unplugged")) as robot:
        pass
    assert robot.closed


def test_an_overshoot_does_not_leave_the_limits():
    limits = ((-1.0, 1.0), (0.0, 2.0))
    for q, expected in (
        ([0.5, 0.5], False),
        ([-1.009, 2.009], False),
        ([1.011, 0.5], True),
        ([0.0, -0.011], True),
    ):
        assert leaves(np.array(q), limits) == expected
