"""What every robot has in common."""

import pytest

from jaxrobo.deploy import Robot, RobotError


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
