"""The UR10's client against a stand-in for ROS."""

import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrobo.deploy import RobotError, Ur10
from jaxrobo.deploy.ur10 import CONTROLLER, JOINTS, LIMITS

START = np.radians([0.0, -90.0, 90.0, -90.0, -90.0, 0.0])


class Ros:
    """What `rospy` is here, and the driver behind it, whose arm doesn't move by itself."""

    Duration = float

    def __init__(self, pose=START, prefix="", online=True):
        self.pose, self.prefix, self.online = pose, prefix, online
        self.published, self.open = [], 0

    def is_master_online(self):
        return self.online

    def get_master_uri(self):
        return "http://robot:11311"

    def init_node(self, name, **options):
        assert self.online, "it would wait for ever"

    def Subscriber(self, topic, kind, listen):
        assert topic == f"{CONTROLLER}/state"
        self.listen, self.open = listen, self.open + 1
        if self.pose is not None:
            self.report(self.pose)
        return SimpleNamespace(unregister=self.close)

    def Publisher(self, topic, kind, queue_size):
        assert topic == f"{CONTROLLER}/command"
        self.open += 1
        return SimpleNamespace(publish=self.published.append, unregister=self.close)

    def close(self):
        self.open -= 1

    def report(self, pose):
        """A state, with the joints in the order of their names."""
        joints = sorted(zip(JOINTS, pose, strict=True))
        names, positions = zip(*joints, strict=True)
        assert names[:3] == ("elbow_joint", "shoulder_lift_joint", "shoulder_pan_joint")
        names = tuple(self.prefix + name for name in names)
        self.listen(SimpleNamespace(joint_names=names, actual=SimpleNamespace(positions=positions)))


class LateRos(Ros):
    """Sends what it was told to while its caller sleeps; drops it when the connection is closed."""

    def __init__(self):
        super().__init__()
        self.queue, self.slept = [], 0.0

    def Publisher(self, topic, kind, queue_size):
        publisher = super().Publisher(topic, kind, queue_size)
        drop = lambda: (self.queue.clear(), publisher.unregister())
        return SimpleNamespace(publish=self.queue.append, unregister=drop)

    def sleep(self, seconds):
        self.slept += seconds
        self.published += self.queue
        self.queue.clear()


def install(monkeypatch, ros):
    message = lambda **fields: SimpleNamespace(**fields)
    control = SimpleNamespace(JointTrajectoryControllerState=object)
    trajectory = SimpleNamespace(JointTrajectory=message, JointTrajectoryPoint=message)
    monkeypatch.setitem(sys.modules, "rospy", ros)
    monkeypatch.setitem(sys.modules, "rosgraph", ros)
    for name, messages in (("control_msgs", control), ("trajectory_msgs", trajectory)):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(msg=messages))
        monkeypatch.setitem(sys.modules, f"{name}.msg", messages)


@pytest.fixture
def ros(monkeypatch):
    ros = Ros()
    install(monkeypatch, ros)
    return ros


@pytest.fixture
def clock(monkeypatch):
    """Time passes only when the test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("jaxrobo.deploy.ur10.time.monotonic", lambda: now.seconds)
    return now


def test_without_ros_the_error_says_what_to_do():
    with pytest.raises(RobotError, match=r"ROS 1, which is missing here .*setup.bash"):
        Ur10()


def test_nothing_is_published_before_the_driver_speaks(monkeypatch):
    ros = Ros(pose=None)
    install(monkeypatch, ros)
    begin = time.monotonic()
    with pytest.raises(RobotError, match=r"has been silent for 0.1 s: is ur_robot_driver running"):
        Ur10(timeout=0.1)
    assert time.monotonic() - begin < 2
    assert ros.published == []
    assert ros.open == 0


def test_without_a_master_it_does_not_wait(monkeypatch):
    install(monkeypatch, Ros(online=False))
    with pytest.raises(RobotError, match="no ROS master at http://robot:11311: start ur_robot_dr"):
        Ur10()


def test_joints_of_another_name(monkeypatch):
    ros = Ros(prefix="left_")
    install(monkeypatch, ros)
    with pytest.raises(RobotError, match=r"tells of left_elbow_joint, .*, expected shoulder_pan_j"):
        Ur10()
    assert ros.open == 0


def test_it_starts_from_the_measured_pose_and_publishes_ten_times_a_second(ros, clock):
    goal = START + 0.25
    with Ur10(speed=0.5) as arm:
        np.testing.assert_allclose(arm.pose, START)
        for k in range(61):
            clock.seconds = 100 + k / 60
            ros.report(START)
            sent = arm.send(goal)
            assert np.abs(sent - START).max() <= 0.5 * k / 60 + 1e-9
        np.testing.assert_allclose(sent, goal)
        assert 9 <= len(ros.published) <= 11
        assert ros.open == 2
        last = ros.published[-1]
    assert last.joint_names == list(JOINTS)
    np.testing.assert_allclose(last.points[0].positions, goal)  # wrist 3 too
    assert ros.open == 0


def test_a_trajectory_takes_as_long_as_the_slowest_joint_needs(ros, clock):
    with Ur10(speed=4.0) as arm:
        clock.seconds += 0.05
        ros.report(np.add(START, [-1.0, 0.0, 0.0, 0.0, 0.0, 0.5]))
        arm.send(np.add(START, [0.2, 0.1, 0.0, 0.0, 0.0, -0.1]))
        assert ros.published[0].points[0].time_from_start == pytest.approx(1.2 / 4.0)
        clock.seconds += 1.0
        ros.report(arm.pose)
        arm.send(arm.pose)
        assert ros.published[1].points[0].time_from_start == pytest.approx(0.1)


def test_an_arm_that_stands_still_is_not_sent_farther_and_farther_away(ros, clock):
    """As after a protective stop, while its state is still reported."""

    def follow(arm):
        for k in range(240):
            clock.seconds = 100 + k / 60
            ros.report(START)
            arm.send(START + 0.7)

    with Ur10(speed=0.5) as arm:
        with pytest.raises(RobotError, match=r"doesn't follow, it's 0.3\d rad behind: is it stopp"):
            follow(arm)
        assert 100.6 < clock.seconds < 100.7
        for message in ros.published:
            way = np.abs(message.points[0].positions - START).max()
            assert way <= 0.32
            assert way / message.points[0].time_from_start <= 0.5 + 1e-9
        here = START + 0.01
        ros.report(here)
        arm.stop()
        np.testing.assert_allclose(ros.published[-1].points[0].positions, here)
        np.testing.assert_allclose(arm.pose, here)


def test_the_stop_is_sent_before_the_connection_is_closed(monkeypatch):
    ros = LateRos()
    install(monkeypatch, ros)
    monkeypatch.setattr("jaxrobo.deploy.ur10.time.sleep", ros.sleep)
    with Ur10() as arm:
        arm.send(START + 0.2)
        ros.report(START + 0.1)
    np.testing.assert_allclose(ros.published[-1].points[0].positions, START + 0.1)
    assert len(ros.published) == 2
    assert ros.slept >= 0.1
    assert ros.open == 0


def test_limits_and_bad_numbers(ros, clock):
    with Ur10(speed=1000.0) as arm:
        clock.seconds += 0.05
        low = np.transpose(LIMITS)[0]
        np.testing.assert_allclose(arm.send(np.full(6, -9.0)), low)
        assert arm.limited == 1
        np.testing.assert_allclose(arm.send(low - 2e-3), low)  # an overshoot
        assert arm.limited == 1
        ros.report(low)
        with pytest.raises(RobotError, match="aren't finite; the arm holds its pose"):
            arm.send(np.full(6, math.nan))
        with pytest.raises(ValueError, match=r"a UR10 has 6 joints, got an array of shape \(5,\)"):
            arm.send(np.zeros(5))
        arm.stop()
        np.testing.assert_allclose(ros.published[-1].points[0].positions, low)
    with pytest.raises(ValueError, match="speed must be positive, got 0"):
        Ur10(speed=0.0)


def test_a_driver_that_falls_silent_is_lost(ros, clock):
    with Ur10(timeout=1.0) as arm:
        arm.send(START)
        published = len(ros.published)
        clock.seconds += 1.5
        with pytest.raises(RobotError, match="has been silent"):
            arm.send(START + 0.1)
    assert len(ros.published) == published
