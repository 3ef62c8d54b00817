"""A Dofbot over TCP: the client of `arm_server`, or of the original's own server.

    with Dofbot("192.168.1.20") as arm:
        while ...:
            arm.send(q)                  # [5] rad, at 60 Hz

In the safe mode every message is a frame that the server acknowledges, in its own time: nothing
here waits for it, but a server that has been silent for `timeout` is an error. It drops a client
that has been silent for 5 s (`arm_server.DROP_AFTER`).

The compatible mode speaks to `sim2real/dofbot-server.ipynb` of OmniIsaacGymEnvs-DofbotReacher
(commit 7ed46b3): packets of 24 bytes, no answers. That server moves the arm to the middle when it
starts, and later leaves it where the last client did, which it can't say: start it anew before
every connection, or say where the arm is. If that's wrong, the arm leaps. A server that hangs isn't
noticed.
"""

import math
import socket
import time
from collections.abc import Sequence

import numpy as np

from jaxrobo.deploy import arm_server as wire
from jaxrobo.deploy.robot import Robot, RobotError, leaves

JOINTS = 5

LIMITS = tuple(tuple(math.radians(a - 90) for a in pair) for pair in wire.LIMITS[:JOINTS])
"""(lower, upper) of each joint, rad."""

_MIDDLE = 90.0
"""The angle of a servo, degrees, whose joint is at 0; and that of the gripper, always."""

_ROUNDING = 1e-3
"""By which a start may be outside the limits, rad: it comes from what was printed."""


def servo_angles(q: np.ndarray) -> tuple[float, ...]:
    """Six servo angles in degrees from five joint angles in rad: `degrees(q) + 90`, gripper 90.

    Raises:
      ValueError: unless there are five.
    """
    if np.shape(q) != (JOINTS,):
        raise ValueError(f"a Dofbot has {JOINTS} joints, got an array of shape {np.shape(q)}")
    return (*(math.degrees(a) + _MIDDLE for a in q), _MIDDLE)


def joint_angles(servos: tuple[float, ...]) -> np.ndarray:
    """The inverse of `servo_angles`."""
    return np.radians(np.subtract(servos[:JOINTS], _MIDDLE))


def checked_start(start: Sequence[float] | None) -> np.ndarray:
    """A pose to start from, `[5]` rad; the middle if None.

    Raises:
      ValueError: unless it's five angles within `LIMITS`.
    """
    start = np.zeros(JOINTS) if start is None else np.asarray(start, float)
    low, high = np.transpose(LIMITS)
    inside = lambda: (start >= low - _ROUNDING) & (start <= high + _ROUNDING)
    if start.shape != (JOINTS,) or not np.all(inside()):
        limits = ", ".join(f"{a:.3g} .. {b:.3g}" for a, b in LIMITS)
        raise ValueError(f"start must be {JOINTS} angles in rad, within {limits}; got {start}")
    return start


_ORIGINAL = "the original's server, use the compatible mode"


class Dofbot(Robot):
    """A connection to the arm; see `Robot`.

    Attributes:
      limited: see `Robot`.
      reported: where the server said last that it commands the joints to, `[5]` rad; the start in
        the compatible mode.
    """

    def __init__(
        self,
        host: str,
        port: int = wire.PORT,
        *,
        compatible: bool = False,
        start: Sequence[float] | None = None,
        speed: float = 1.0,
        timeout: float = 1.0,
    ) -> None:
        """Connects, and learns where the arm is.

        Args:
          host: the server's name or address.
          port: the server's.
          compatible: whether it's the original's server, or `arm_server --compatible`.
          start: where the arm is, in the compatible mode, whose server can't say; the middle if
            None. [5] rad
          speed: highest speed of a joint, rad/s; 1 is that of the URDF.
          timeout: seconds of silence after which the server is lost.

        Raises:
          RobotError: if there's no such server, or another client has the arm.
          ValueError: if speed or timeout isn't positive, start isn't within the limits, or it's
            given although the server knows.
        """
        for name, value in (("speed", speed), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if start is not None and not compatible:
            raise ValueError("a start is for the compatible mode: other servers know where it is")
        self.limited, self.reported = 0, checked_start(start)
        self._name, self._compatible, self._timeout = f"{host}:{port}", compatible, timeout
        self._sequence = self._acknowledged = 0
        self._unread, self._waiting_since = b"", 0.0
        pose, now = servo_angles(self.reported), time.monotonic()
        self._safety = wire.Safety(pose, wire.LIMITS, math.degrees(speed), now)
        self._socket = self._connect(host, port)
        try:
            if not compatible:
                self._confirm(wire.HEARTBEAT)
        except RobotError:
            self._socket.close()
            raise
        self._safety.restart(servo_angles(self.reported), time.monotonic())

    @property
    def pose(self) -> np.ndarray:
        """See `Robot.pose`: `[5]`."""
        return joint_angles(self._safety.pose)

    def send(self, q: np.ndarray) -> np.ndarray:
        """See `Robot.send`: `[5]` -> `[5]`.

        Returns `reported`, which is late by the way there and back, but heeds the server's own
        limits; in the compatible mode, what was sent.
        """
        now = time.monotonic()
        if not self._compatible:
            self._read(now)
        status = self._safety.command(servo_angles(q), now)
        if status == wire.REFUSED:
            raise RobotError(f"joint angles {np.asarray(q)} aren't finite; the arm holds its pose")
        self.limited += leaves(q, LIMITS)
        pose = self._safety.step(now)
        if status != wire.FLOOD:
            self._write(wire.TARGET, wire.encode_angles(pose))
        return joint_angles(pose) if self._compatible else self.reported

    def stop(self) -> None:
        """See `Robot.stop`."""
        self._safety.hold()
        if self._compatible:
            self._write(wire.TARGET, wire.encode_angles(self._safety.pose))
        else:
            self._confirm(wire.STOP)

    def close(self) -> None:
        """See `Robot.close`."""
        self._socket.close()

    def _connect(self, host: str, port: int) -> socket.socket:
        try:
            link = socket.create_connection((host, port), self._timeout)
        except ConnectionRefusedError as error:
            raise RobotError(
                f"{self._name} refuses the connection: is arm_server.py running there, with --bind "
                "0.0.0.0 unless it's this computer?"
            ) from error
        except TimeoutError as error:
            raise RobotError(f"{self._name} doesn't answer within {self._timeout} s") from error
        except (OSError, OverflowError, UnicodeError) as error:
            raise RobotError(f"{self._name} can't be reached: {error}") from error
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    def _write(self, kind: int, payload: bytes = b"") -> None:
        if self._acknowledged == self._sequence:
            self._waiting_since = time.monotonic()
        self._sequence += 1
        data = payload if self._compatible else wire.encode(kind, self._sequence, payload)
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._lost(str(error)) from error
        if sent < len(data):
            raise self._lost("it doesn't read what it's sent")

    def _read(self, now: float) -> None:
        """Takes in the answers that have come."""
        trouble = self._receive()
        while (frame := self._next()) is not None:  # what came before the trouble may say why
            self.reported = joint_angles(self._checked(frame).pose)
            self._waiting_since, self._acknowledged = now, frame.sequence
        if trouble:
            raise self._lost(trouble)
        if self._acknowledged < self._sequence and now - self._waiting_since > self._timeout:
            never = "" if self._acknowledged else f" (if it's {_ORIGINAL})"
            raise self._lost(f"no answer for {self._timeout} s{never}")

    def _receive(self) -> str | None:
        """Takes in bytes, and says what's wrong with the connection if something is."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:
            return str(error)
        self._unread += data
        return None if data else "it closed the connection"

    def _next(self) -> wire.Frame | None:
        try:
            frame, self._unread = wire.decode(self._unread)
        except wire.ProtocolError as error:
            raise self._foreign(error) from error
        return frame

    def _checked(self, frame: wire.Frame) -> wire.Ack:
        if frame.kind != wire.ACK:
            raise self._foreign(f"kind {frame.kind}, expected {wire.ACK}")
        try:
            ack = wire.decode_ack(frame.payload)
        except wire.ProtocolError as error:
            raise self._foreign(error) from error
        if ack.status == wire.BUSY:
            raise RobotError(f"{self._name} turned us away: another client has the arm")
        if ack.status in (wire.REFUSED, wire.STALE):
            angles = ", ".join(f"{a:.1f}" for a in self._safety.pose)
            raise RobotError(
                f"{self._name} answers '{wire.STATUSES[ack.status]}' to message {frame.sequence}, "
                f"about servo angles of {angles} degrees; the arm holds its pose"
            )
        return ack

    def _confirm(self, kind: int) -> None:
        """Sends a frame without payload, and waits for its answer."""
        self._write(kind)
        while self._acknowledged < self._sequence:
            time.sleep(0.001)
            self._read(time.monotonic())

    def _lost(self, why: str) -> RobotError:
        return RobotError(
            f"lost {self._name}: {why}; the arm holds its pose. The server's log may say more: it "
            f"drops who is silent for {wire.DROP_AFTER:g} s"
        )

    def _foreign(self, why: object) -> RobotError:
        return RobotError(f"{self._name} doesn't speak this protocol ({why}); if it's {_ORIGINAL}")
