"""Client and server over real sockets on this machine, with everything that can go wrong."""

import contextlib
import math
import socket
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest

from jaxrobo.deploy import Dofbot, RobotError, arm_server, ramp
from jaxrobo.deploy import arm_server as wire
from jaxrobo.deploy.dofbot import joint_angles, servo_angles
from jaxrobo.deploy.dry_run import dry_run
from tests.deploy.pythons import VERSIONS, older_python
from tests.deploy.test_protocol import fuzzed

HOST = "127.0.0.1"
FAR = np.array([1.0, -0.5, 0.5, 0.3, -1.0])
LOW, HIGH = np.transpose(wire.LIMITS)


def wait_until(condition, seconds=20.0):
    """Waits for a condition, and fails if it doesn't come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.002)


def connect(port, **options):
    """A patient client: this process may have to wait for its turn."""
    return Dofbot(HOST, port, timeout=20.0, **options)


class Watched(arm_server.DryRun):
    """Servos that also know their fastest movement, and can be switched off."""

    fastest = 0.0
    writes = 0
    on = True

    def read(self):
        if not self.on:
            raise OSError("servo 1 doesn't answer")
        return super().read()

    def near(self, servo, angle, slack):
        return self.on and super().near(servo, angle, slack)

    def write(self, pose):
        self.fastest = max(self.fastest, np.abs(np.subtract(pose, self.pose)).max())
        self.writes += 1
        super().write(pose)

    def turn(self, pose):
        """By hand, or by another program."""
        self.pose = pose

    def within_limits(self):
        return bool(np.all(np.array(self.low) >= LOW) and np.all(np.array(self.high) <= HIGH))


@contextlib.contextmanager
def serving(rate=250.0, margin=arm_server._MARGIN, **options):
    """A server in a thread, that must end by itself."""
    servos, stop = Watched(), threading.Event()
    server = arm_server.Server(servos, HOST, 0, **options)
    server._safety._rate, server._safety._margin = rate, margin
    errors = []

    def serve():
        try:
            server.serve(stop.is_set)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.address[1], servos
    finally:
        stop.set()
        thread.join(5)
    assert not thread.is_alive()
    assert errors == []
    assert servos.within_limits()


@contextlib.contextmanager
def foreign(answer=b"", drip=None):
    """A listener that isn't our server: it sends `answer` to everyone, byte by byte if `drip`."""
    with socket.create_server((HOST, 0)) as listener:

        def serve():
            with contextlib.suppress(OSError), contextlib.closing(listener.accept()[0]) as client:
                pieces = [answer] if drip is None else [bytes([b]) for b in answer]
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(drip or 0)
                while client.recv(4096):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(5)


def follow(arm, q, seconds=20.0):
    """Sends a target at 100 Hz until the server says that the arm is there."""
    deadline = time.monotonic() + seconds
    while np.abs(arm.reported - q).max() > 1e-5:
        assert time.monotonic() < deadline
        arm.send(q)
        time.sleep(0.01)


# --- angles ---------------------------------------------------------------------------------------


def test_servo_angles_are_those_of_the_original():
    """[-90, 90] -> [0, 180] for joints 1 to 4, [-90, 180] -> [0, 270] for joint 5, gripper 90."""
    q = np.radians([-90, 0, 45, 90, 180])
    np.testing.assert_allclose(servo_angles(q), [0, 90, 135, 180, 270, 90])
    np.testing.assert_allclose(joint_angles(servo_angles(FAR)), FAR)
    with pytest.raises(ValueError, match=r"a Dofbot has 5 joints, got an array of shape \(6,\)"):
        servo_angles(np.zeros(6))


# --- as it should be ------------------------------------------------------------------------------


def test_the_arm_follows_and_the_next_client_starts_where_it_is():
    with serving(speed=2000.0) as (port, servos):
        with connect(port, speed=20.0) as arm:
            np.testing.assert_allclose(arm.pose, 0, atol=1e-9)
            follow(arm, FAR)
            arm.stop()
        np.testing.assert_allclose(servos.pose, servo_angles(FAR), atol=1e-3)
        with connect(port) as arm:
            np.testing.assert_allclose(arm.pose, FAR, atol=1e-5)
            assert arm.limited == 0


def test_the_first_command_is_a_ramp():
    with serving(speed=100.0) as (port, servos), connect(port, speed=1.0) as arm:
        begin = time.monotonic()
        arm.send(FAR)
        assert np.abs(arm.pose).max() < 0.1
        for _ in range(20):
            time.sleep(0.01)
            arm.send(FAR)
        assert np.abs(arm.pose).max() <= time.monotonic() - begin + 0.05
        assert servos.fastest <= 100.0 * 0.05 + 1e-6


def test_a_ramp_waits_for_a_server_that_is_slower():
    near = FAR / 4
    with serving(speed=30.0) as (port, servos), connect(port, speed=50.0) as arm:
        assert ramp(arm, near, 100.0)
        np.testing.assert_allclose(servos.pose, servo_angles(near), atol=0.2)


def test_commands_beyond_the_limits_are_clipped_and_counted():
    beyond = np.array([9.0, -9.0, 9.0, -9.0, 9.0])
    limits = np.array([2, -1, 1, -1, 2]) * math.pi / 4
    with serving(speed=2000.0) as (port, servos), connect(port, speed=30.0) as arm:
        wait_until(lambda: np.allclose(arm.send(beyond), limits))
        follow(arm, limits)
        assert arm.limited > 1
        np.testing.assert_allclose(servos.pose, [180, 45, 135, 45, 180, 90], atol=1e-4)


def test_the_original_protocol_works_from_client_to_server():
    with serving(speed=2000.0, compatible=True) as (port, servos):
        with connect(port, compatible=True, speed=20.0) as arm:
            arrived = lambda: np.allclose(servos.pose, servo_angles(FAR), atol=1e-3)
            wait_until(lambda: arm.send(FAR) is None or arrived())
            arm.stop()
        np.testing.assert_allclose(servos.pose, servo_angles(FAR), atol=1e-3)


def test_the_compatible_mode_starts_where_it_is_told():
    start = FAR / 4
    with serving(speed=2000.0, compatible=True) as (port, servos):
        servos.turn(servo_angles(start))
        with connect(port, compatible=True, start=start, speed=0.1) as arm:
            np.testing.assert_allclose(arm.pose, start)
            arm.send(start)
            unchanged(servos)
        np.testing.assert_allclose(servos.pose, servo_angles(start), atol=1e-3)


@pytest.mark.parametrize(
    "start", [np.zeros(6), [90.0] * 5, [0.0, 0.0, 0.8, 0.0, 0.0], [np.nan] * 5]
)
def test_a_start_outside_the_limits_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be 5 angles in rad, within -1.57 .. 1.57, "):
        Dofbot(HOST, 1, compatible=True, start=start)


def test_a_start_is_for_the_compatible_mode():
    with pytest.raises(ValueError, match="a start is for the compatible mode"):
        Dofbot(HOST, 1, start=np.zeros(5))


def test_the_client_of_the_original_works():
    """What `sim2real/dofbot.py` there sends: six native floats, and nothing before."""
    angles = (100.0, 80.0, 95.0, 90.0, 120.0, 90.0)
    with (
        serving(speed=2000.0, compatible=True) as (port, servos),
        socket.create_connection((HOST, port)) as client,
    ):
        client.sendall(np.array(angles, np.float32).tobytes())
        wait_until(lambda: servos.pose == angles)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_server_runs_under_an_older_python(version):
    with dry_run("--speed", "2000", python=older_python(version)) as server:
        with connect(server.port, speed=20.0) as arm:
            follow(arm, FAR)
            arm.stop()
        low, high, log = server.stop()
        assert server.process.returncode == 0
    np.testing.assert_allclose(high[0], math.degrees(1.0) + 90, atol=1e-2)
    np.testing.assert_allclose(low[4], math.degrees(-1.0) + 90, atol=1e-2)
    assert "closed the connection" in log


# --- servers that aren't as they should be --------------------------------------------------------


def test_no_server(monkeypatch):
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RobotError, match=f"{HOST}:{port} refuses the connection: is arm_server.py"):
        connect(port)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(-2, "unknown")))
        with pytest.raises(RobotError, match=r"can't be reached: .*unknown"):
            Dofbot("nowhere.invalid", 1)
    with pytest.raises(RobotError, match=r"192.168.1..20:1 can't be reached"):
        Dofbot("192.168.1..20", 1)


def test_a_server_that_never_answers():
    with foreign() as port:
        begin = time.monotonic()
        with pytest.raises(RobotError, match=r"no answer for 0.2 s \(if it's the original's"):
            Dofbot(HOST, port, timeout=0.2)
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request", "bad magic b'HTTP'"),
        (b"JXRB\x01\x04\xff\xff\x00\x00\x00\x00", "65535 bytes of kind 4, expected 25"),
        (wire.encode(wire.STOP, 1), "kind 3, expected 4"),
        (wire.encode(wire.ACK, 1, bytes([99]) + bytes(24)), "unknown status 99"),
    ],
)
def test_a_server_that_speaks_something_else(answer, words):
    with foreign(answer) as port, pytest.raises(RobotError) as error:
        connect(port)
    assert "doesn't speak this protocol" in str(error.value)
    assert words in str(error.value)
    assert "compatible mode" in str(error.value)


def test_a_server_that_answers_byte_by_byte():
    answer = wire.encode_ack(1, wire.Ack(wire.OK, servo_angles(FAR)))
    with foreign(answer, drip=0.002) as port:
        arm = connect(port)
        np.testing.assert_allclose(arm.pose, FAR, atol=1e-6)
        arm.close()


def test_a_server_that_stalls_is_noticed():
    answer = wire.encode_ack(1, wire.Ack(wire.OK, servo_angles(FAR)))
    with (
        foreign(answer) as port,
        Dofbot(HOST, port, timeout=1.0) as arm,
        pytest.raises(RobotError, match=r"no answer for 1.0 s; the arm holds its pose"),
    ):
        follow(arm, np.zeros(5))


def test_a_server_that_is_killed_and_started_again():
    with dry_run("--speed", "2000") as server:
        with connect(server.port, speed=20.0) as arm:
            follow(arm, FAR)
            server.process.kill()
            server.process.wait()
            with pytest.raises(RobotError, match=f"lost {HOST}:{server.port}: .*; the arm holds"):
                follow(arm, np.zeros(5))
        with dry_run("--speed", "2000", port=server.port) as again:
            with connect(again.port, speed=20.0) as arm:
                np.testing.assert_allclose(arm.pose, 0, atol=1e-9)
                follow(arm, FAR)
                arm.stop()
            low, high, _ = again.stop()
    assert np.all((low >= LOW) & (high <= HIGH))


def test_a_second_server_on_the_same_port():
    with dry_run() as server, pytest.raises(OSError, match="in use"), dry_run(port=server.port):
        pass


# --- clients that aren't as they should be --------------------------------------------------------


def test_a_second_client_is_turned_away():
    with serving() as (port, servos), connect(port) as arm:
        with pytest.raises(RobotError, match="turned us away: another client has the arm"):
            connect(port)
        wait_until(lambda: arm.send(FAR) is None or servos.pose[0] > 90)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_angles_that_are_not_finite_are_an_error(value):
    with serving() as (port, servos), connect(port) as arm:
        with pytest.raises(RobotError, match="aren't finite; the arm holds its pose"):
            arm.send(np.array([0.0, value, 0.0, 0.0, 0.0]))
        assert servos.low == servos.high == (90.0,) * 6


def test_what_the_server_refuses_is_told():
    words = r"answers 'refused' to message \d+, about servo angles of 9\d\.\d, "
    with (
        serving(margin=-100.0) as (port, _),
        connect(port) as arm,
        pytest.raises(RobotError, match=words),
    ):
        follow(arm, FAR)


@pytest.mark.parametrize("options", [{"speed": 0.0}, {"speed": math.nan}, {"timeout": -1.0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
        Dofbot(HOST, 1, **options)


def test_the_arm_holds_when_the_client_falls_silent():
    with serving(speed=5.0) as (port, servos):  # 11 s for the whole way
        with connect(port, speed=20.0) as arm:
            wait_until(lambda: arm.send(FAR) is None or servos.pose[0] > 90)
            held = unchanged(servos)
        assert 90 < held[0] < servo_angles(FAR)[0] - 20


def unchanged(servos, writes=20):
    """The pose that has been written so often, one after another."""
    pose, first = servos.pose, servos.writes

    def held():
        nonlocal pose, first
        if servos.pose != pose:
            pose, first = servos.pose, servos.writes
        return servos.writes >= first + writes

    wait_until(held)
    return pose


def test_nothing_is_written_without_a_client_and_the_next_starts_where_the_arm_is_then(capsys):
    with serving(speed=50.0) as (port, servos):
        arm = connect(port, speed=20.0)
        wait_until(lambda: arm.send(FAR) is None or servos.pose[0] > 91)
        arm._socket.close()
        wait_until(lambda: "the arm holds" in capsys.readouterr().err)
        assert servos.pose[0] < servo_angles(FAR)[0] - 20
        elsewhere = (*np.subtract(servos.pose, 30)[:5], 90.0)
        servos.turn(elsewhere)
        writes = servos.writes
        time.sleep(0.1)
        assert (servos.pose, servos.writes) == (elsewhere, writes)
        with connect(port) as arm:
            np.testing.assert_allclose(arm.pose, joint_angles(elsewhere), atol=1e-6)
            wait_until(lambda: servos.writes > writes + 5)
        assert servos.pose == elsewhere
        assert servos.fastest <= 50.0 * 0.05 + 1e-6


def test_an_arm_that_is_switched_off_is_let_go(monkeypatch, capsys):
    monkeypatch.setattr(arm_server, "_LOOK", 0.02)
    with serving() as (port, servos):
        with connect(port) as arm:
            wait_until(lambda: arm.send(FAR) is None or servos.pose[0] > 90)
            servos.on = False
            with pytest.raises(
                RobotError, match=r"lost .* log may say more: it drops who is silent"
            ):
                follow(arm, FAR)
        writes = servos.writes
        with pytest.raises(RobotError, match="lost"):
            connect(port)
        assert servos.writes == writes
        servos.on = True
        connect(port).close()
    log = capsys.readouterr().err
    assert "servo 2 is off, or not where it's commanded to" in log
    assert "turned away: servo 1 doesn't answer" in log


def test_a_silent_client_makes_room(monkeypatch):
    monkeypatch.setattr(arm_server, "DROP_AFTER", 1.0)
    with serving() as (port, _), socket.create_connection((HOST, port)) as silent:
        silent.sendall(b"JXRB\x01")  # and nothing more
        assert silent.recv(100) == b""
        connect(port).close()


def raw(port, data):
    """Sends bytes and returns the statuses of all answers, once the server has closed."""
    with socket.create_connection((HOST, port), 5) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(4096):
                answer += data
    statuses = []
    while answer:
        frame, answer = wire.decode(answer)
        if frame is None:
            break
        statuses.append(wire.STATUSES[wire.decode_ack(frame.payload).status])
    return statuses


def test_replays_and_a_flood_are_refused_by_name():
    packet = wire.encode(wire.TARGET, 1, wire.encode_angles((90.0,) * 6))
    heartbeats = [wire.encode(wire.HEARTBEAT, n) for n in (3, 2, 3, 4)]
    with serving() as (port, servos):
        assert raw(port, packet * 2) == ["ok", "stale"]
        wait_until(lambda: raw(port, b"".join(heartbeats)) == ["ok", "stale", "stale", "ok"])
        targets = [wire.encode(wire.TARGET, n, packet[12:]) for n in range(1, 301)]
        statuses = raw(port, b"".join(targets))
        assert statuses.count("flood") > 100
        assert servos.low == servos.high == (90.0,) * 6


@pytest.mark.parametrize("compatible", [False, True])
def test_fuzzed_packets_over_sockets_never_leave_the_limits(compatible):
    """10,000 of them: `test_protocol` without sockets, `benchmarks.deploy` with."""
    rng = np.random.default_rng(1)
    with serving(rate=1e9, speed=2000.0, compatible=compatible) as (port, servos):
        for _ in range(150):
            raw(port, b"".join(fuzzed(rng, n, compatible) for n in range(1, 4)))
        assert servos.fastest <= 2000.0 * 0.05 + 1e-6
        if not compatible:
            wait_until(lambda: raw(port, wire.encode(wire.HEARTBEAT, 1)) == ["ok"])


# --- the command line -----------------------------------------------------------------------------


def test_the_server_needs_the_arms_library(capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        arm_server.main(["--port", "0"])
    assert exit_.value.code == 2
    assert "error: Arm_Lib is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        arm_server.main(["--dry-run", "--speed", "nan"])
    assert "--speed must be positive, got nan" in capsys.readouterr().err


class Device:
    """`Arm_Lib.Arm_Device`, as its users see it."""

    def __init__(self):
        self.angles, self.dumb, self.written, self.garbled = [90] * 6, set(), None, []

    def Arm_serial_servo_read(self, servo):
        if self.garbled:
            return self.garbled.pop(0)
        return None if servo in self.dumb else self.angles[servo - 1]

    def Arm_serial_servo_write6(self, *angles_and_time):
        self.written = angles_and_time


def test_the_arms_library_is_read_and_written(monkeypatch):
    device = Device()
    library = type("Arm_Lib", (), {"Arm_Device": lambda: device})
    monkeypatch.setitem(__import__("sys").modules, "Arm_Lib", library)
    monkeypatch.setattr(arm_server.time, "sleep", lambda seconds: None)
    servos = arm_server.ArmLib()
    assert servos.read() == (90.0,) * 6
    servos.write((90.0, 80.0, 90.0, 90.0, 90.0, 90.0))
    assert device.written == (90.0, 80.0, 90.0, 90.0, 90.0, 90.0, 300)
    device.dumb = {3}
    with pytest.raises(OSError, match=r"servo 3 doesn't answer: the arm is off, .* by hand"):
        servos.read()
    assert not servos.near(3, 90.0, 20.0)
    device.dumb = set()
    assert servos.near(3, 75.0, 20.0)
    assert not servos.near(3, 65.0, 20.0)
    device.garbled = [0, 90, 180]
    assert servos.read() == (90.0,) * 6
    device.garbled = [0, 180, None, 90, 130]
    with pytest.raises(OSError, match=r"servo 1 answers \[0.0, 180.0, 90.0, 130.0\], no two alike"):
        servos.read()
    device.garbled = [0, None, 90]
    assert servos.near(3, 90.0, 20.0)
