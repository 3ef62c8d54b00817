"""The arm's side of a Dofbot, in one file of Python's standard library (3.6 or later).

Copy this file to the computer that the servos hang on, and start it there:

    python3 arm_server.py --bind 0.0.0.0           # whoever reaches the port moves the arm
    python3 arm_server.py --dry-run                # no arm, any computer

Read from the top: the wire, what stands between a command and the motors, one client's
conversation (bytes in, bytes out), the servos, the server. The clients of `jaxrobo.deploy` import
the first two from here.

Angles are those of the servos, in degrees: 90 is the middle, servos 1 to 4 and 6 turn 0 .. 180 and
servo 5 turns 0 .. 270.
"""

import argparse
import contextlib
import itertools
import math
import select
import signal
import socket
import struct
import sys
import time
from typing import NamedTuple

PORT = 65432
"""The port of OmniIsaacGymEnvs-DofbotReacher's `sim2real/dofbot-server.ipynb`."""

# The wire. A frame is a header and a payload, little-endian:
#
#     magic 4 | version 1 | kind 1 | bytes of payload 2 | sequence 4 | payload
#
# The compatible mode has no frames: each message is the payload of a TARGET, 24 bytes, as in
# `sim2real/dofbot.py` there, and nothing is answered.

MAGIC = b"JXRB"
VERSION = 1
HEARTBEAT, TARGET, STOP, ACK = range(1, 5)
OK, LIMITED, REFUSED, STALE, FLOOD, BUSY = range(6)
STATUSES = ("ok", "limited", "refused", "stale", "flood", "busy")
"""What became of a frame: done; done, but clipped to the limits; not finite or far outside them;
its sequence number isn't above the last one's; too many in too short a time; the arm is taken."""

_HEADER = struct.Struct("<4sBBHI")
_ANGLES = struct.Struct("<6f")
_ACK = struct.Struct("<B6f")
_SIZES = {HEARTBEAT: 0, TARGET: _ANGLES.size, STOP: 0, ACK: _ACK.size}


class ProtocolError(ValueError):
    """Bytes that aren't of this protocol."""


class Frame(NamedTuple):
    """A message: one of HEARTBEAT, TARGET, STOP, ACK; its number; its payload."""

    kind: int
    sequence: int
    payload: bytes


class Ack(NamedTuple):
    """The answer to a frame: one of `STATUSES`, and where the servos are commanded to, degrees."""

    status: int
    pose: tuple


def encode(kind: int, sequence: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return _HEADER.pack(MAGIC, VERSION, kind, len(payload), sequence) + payload


def decode(data: bytes) -> tuple:
    """The first frame of a stream, None if it isn't complete yet, and what follows it.

    Raises:
      ProtocolError: as soon as the bytes can't be the beginning of a frame.
    """
    if not MAGIC.startswith(data[:4]):
        raise ProtocolError(f"bad magic {bytes(data[:4])!r}, expected {MAGIC!r}")
    if len(data) < _HEADER.size:
        return None, data
    _, version, kind, size, sequence = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(f"version {version}, expected {VERSION}")
    if kind not in _SIZES:
        raise ProtocolError(f"unknown kind {kind}; valid: {sorted(_SIZES)}")
    if size != _SIZES[kind]:
        raise ProtocolError(f"{size} bytes of kind {kind}, expected {_SIZES[kind]}")
    end = _HEADER.size + size
    if len(data) < end:
        return None, data
    return Frame(kind, sequence, bytes(data[_HEADER.size : end])), data[end:]


def encode_angles(angles: tuple) -> bytes:
    """Six angles, degrees, as the payload of a TARGET."""
    return _ANGLES.pack(*angles)


def decode_angles(payload: bytes) -> tuple:
    """The inverse of `encode_angles`."""
    return _ANGLES.unpack(payload)


def encode_ack(sequence: int, ack: Ack) -> bytes:
    """The bytes of the answer to the frame of this number."""
    return encode(ACK, sequence, _ACK.pack(ack.status, *ack.pose))


def decode_ack(payload: bytes) -> Ack:
    """The payload of an ACK. Raises ProtocolError if it holds an unknown status."""
    status, *pose = _ACK.unpack(payload)
    if status >= len(STATUSES):
        raise ProtocolError(f"unknown status {status}")
    return Ack(status, tuple(pose))


_LONGEST_STEP = 0.05
"""Seconds; what a loop that was stalled makes up for."""


class Safety:
    """What stands between commands and motors; pure arithmetic, in the unit of `limits`.

    A command names where to go. `step` moves the pose there at a limited speed, which is also how
    the arm comes from wherever it is to the first command. After a silence it stays where it is.
    Every method is told the time, in seconds of any clock that doesn't go back.

    Attributes:
      pose: where the motors are commanded to be.
      target: where the pose is going; within the limits, unless it never left the first pose.
      heard: when the client last said something that was accepted.
    """

    def __init__(
        self,
        pose: tuple,
        limits: tuple,
        speed: float,
        now: float,
        margin: float = math.inf,
        hold_after: float = 0.25,
        rate: float = 250.0,
    ) -> None:
        """Starts where the arm is.

        Args:
          pose: where that is.
          limits: (lower, upper) of each joint.
          speed: highest speed of every joint, units a second.
          now: the time.
          margin: a command farther outside the limits is refused instead of clipped.
          hold_after: seconds of silence after which the arm stays where it is.
          rate: commands a second, on average; a quarter of a second's worth may come at once.
        """
        self._limits, self._speed, self._margin = limits, speed, margin
        self._hold_after, self._rate = hold_after, rate
        self._allowance = self._burst = max(1.0, rate / 4)
        self._counted = now
        self.restart(pose, now)

    def restart(self, pose: tuple, now: float) -> None:
        """Takes the arm to be at a pose, and stays there."""
        self.pose = self.target = tuple(pose)
        self.heard = self._stepped = now

    def command(self, target: tuple, now: float) -> int:
        """Takes a command, and says which of OK, LIMITED, REFUSED and FLOOD became of it."""
        earned = (now - self._counted) * self._rate
        self._allowance = min(self._burst, self._allowance + earned)
        self._counted = now
        if self._allowance < 1:
            return FLOOD
        self._allowance -= 1
        if len(target) != len(self._limits) or not all(map(self._plausible, target, self._limits)):
            return REFUSED
        self.heard = now
        self.target = tuple(min(max(t, low), up) for t, (low, up) in zip(target, self._limits))
        return OK if self.target == tuple(target) else LIMITED

    def _plausible(self, value: float, limit: tuple) -> bool:
        low, up = limit
        return math.isfinite(value) and low - self._margin <= value <= up + self._margin

    def alive(self, now: float) -> None:
        """A sign of life, without a command."""
        self.heard = now

    def hold(self) -> None:
        """Stays where it is."""
        self.target = self.pose

    def step(self, now: float) -> tuple:
        """The pose for the motors by now."""
        if now - self.heard > self._hold_after:
            self.hold()
        reach = self._speed * min(max(now - self._stepped, 0.0), _LONGEST_STEP)
        self._stepped = now
        self.pose = tuple(_towards(p, t, reach) for p, t in zip(self.pose, self.target))
        return self.pose


def _towards(start: float, end: float, reach: float) -> float:
    return end if abs(end - start) <= reach else start + math.copysign(reach, end - start)


class Session:
    """One client's conversation: bytes in, bytes out.

    Attributes:
      counts: how often each of `STATUSES` was the answer.
    """

    def __init__(self, safety: Safety, compatible: bool) -> None:
        self.counts = [0] * len(STATUSES)
        self._safety, self._compatible = safety, compatible
        self._unread, self._sequence = b"", 0

    def receive(self, data: bytes, now: float) -> bytes:
        """Acts on what a client sent, cut anywhere, and returns the answer.

        Raises:
          ProtocolError: if it isn't of the protocol; what came before it has been acted on.
        """
        self._unread += data
        return self._packets(now) if self._compatible else self._frames(now)

    def _packets(self, now: float) -> bytes:
        while len(self._unread) >= _ANGLES.size:
            packet, self._unread = self._unread[: _ANGLES.size], self._unread[_ANGLES.size :]
            self.counts[self._safety.command(decode_angles(packet), now)] += 1
        return b""

    def _frames(self, now: float) -> bytes:
        answers = b""
        while True:
            frame, self._unread = decode(self._unread)
            if frame is None:
                return answers
            status = self._act(frame, now)
            self.counts[status] += 1
            answers += encode_ack(frame.sequence, Ack(status, self._safety.pose))

    def _act(self, frame: Frame, now: float) -> int:
        if frame.kind == ACK:
            raise ProtocolError("a client doesn't acknowledge")
        if frame.kind == STOP:
            self._safety.hold()  # even if it's late: that does no harm
        if frame.sequence <= self._sequence:
            return STALE
        self._sequence = frame.sequence
        if frame.kind == TARGET:
            return self._safety.command(decode_angles(frame.payload), now)
        self._safety.alive(now)
        return OK


LIMITS = ((0.0, 180.0), (45.0, 135.0), (45.0, 135.0), (45.0, 135.0), (0.0, 180.0), (90.0, 90.0))
"""Those of the reacher task, which keep the gripper off the ground; the gripper itself is still."""

SPEED = 57.3
"""1 rad/s, the speed limit of the Dofbot's URDF."""

_MARGIN = 90.0
"""With it, all that a servo can be asked for is clipped; other numbers are garbage, and refused."""

_TICK = 0.01
"""Seconds between two commands to the servos, as in the original's server."""

DROP_AFTER = 5.0
"""Seconds of silence after which a client is dropped, so that another may take over."""

_LOOK, _ASTRAY, _AGREE = 0.5, 20.0, 5.0
"""Seconds between two looks at a servo, degrees that it may be away, besides its lag, and by which
two of its answers may differ that are believed."""

_LAG = 0.3
"""Seconds that servos are told to take, as in the original's server; long replaced by then."""


class DryRun:
    """Servos that aren't there.

    Attributes:
      pose: where they would be.
      low, high: the extremes that each has visited.
    """

    def __init__(self, pose: tuple = (90.0,) * 6) -> None:
        self.pose = self.low = self.high = pose

    def read(self) -> tuple:
        """Where the servos are."""
        return self.pose

    def write(self, pose: tuple) -> None:
        """Moves the servos."""
        self.pose = pose
        self.low = tuple(map(min, self.low, pose))
        self.high = tuple(map(max, self.high, pose))

    def near(self, servo: int, angle: float, slack: float) -> bool:
        """Whether a servo is as close to an angle."""
        return abs(self.pose[servo - 1] - angle) <= slack


class ArmLib:
    """The servos of a Dofbot, through the manufacturer's `Arm_Lib`.

    It turns servos 2 to 4 round by itself, ignores a whole command if one angle is too large, and
    says nothing of a command that didn't arrive.
    """

    def __init__(self) -> None:
        try:
            from Arm_Lib import Arm_Device
        except ImportError as error:
            hint = "the Dofbot's own computer has it; elsewhere use --dry-run"
            raise OSError(f"Arm_Lib is missing ({error}): {hint}") from error
        self._device = Arm_Device()
        time.sleep(0.1)

    def read(self) -> tuple:
        """Where the servos are. Raises OSError if one doesn't answer, or never the same twice."""
        return tuple(self._read(servo) for servo in range(1, 7))

    def near(self, servo: int, angle: float, slack: float) -> bool:
        """Whether a servo answers, and is as close to an angle."""
        return any(abs(reading - angle) <= slack for reading in self._readings(servo))

    def _read(self, servo: int) -> float:
        seen = []  # two must agree: the arm would leap to a garbled angle
        for reading in self._readings(servo):
            if any(abs(reading - other) <= _AGREE for other in seen):
                return reading
            seen.append(reading)
        hint = "the arm is off, or this servo outside its range: then turn it back by hand"
        what = f"answers {seen}, no two alike" if seen else f"doesn't answer: {hint}"
        raise OSError(f"servo {servo} {what}")

    def _readings(self, servo: int) -> object:
        """What a servo answers to some attempts; now and then, an answer is lost or garbled."""
        for _ in range(5):
            angle = self._device.Arm_serial_servo_read(servo)
            if angle is not None:
                yield float(angle)
            time.sleep(0.02)

    def write(self, pose: tuple) -> None:
        """Moves the servos."""
        self._device.Arm_serial_servo_write6(*pose, int(1000 * _LAG))


class Server:
    """Lets one client at a time move the servos; one thread, no waiting on any client.

    Between clients nothing is written, and others may move the arm: each starts where it is then.

    Attributes:
      address: (host, port) that it listens on.
    """

    def __init__(
        self,
        servos: object,
        bind: str = "127.0.0.1",
        port: int = PORT,
        compatible: bool = False,
        speed: float = SPEED,
    ) -> None:
        """Reads where the servos are, and listens. Raises OSError if one of them fails."""
        self._servos, self._compatible = servos, compatible
        self._safety = Safety(servos.read(), LIMITS, speed, time.monotonic(), _MARGIN)
        self._slack = _ASTRAY + _LAG * speed
        # The others come near the ends of their range, where servos don't answer.
        self._servo, self._looked = itertools.cycle((2, 3, 4)), 0.0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((bind, port))
        self._listener.listen(4)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self._client = self._session = self._name = None

    def serve(self, stopped: object) -> None:
        """Serves until `stopped()`; the arm then stays where it is."""
        due = time.monotonic()
        with contextlib.closing(self._listener):
            while not stopped():
                self._listen(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                if now >= due:
                    due = max(due + _TICK, now)
                    if self._client is not None:
                        self._move(now)
            if self._client is not None:
                self._drop("the server stops")

    def _move(self, now: float) -> None:
        self._servos.write(self._safety.step(now))
        if now - self._safety.heard > DROP_AFTER:
            self._drop(f"silent for {DROP_AFTER} s")
        elif now - self._looked > _LOOK:
            self._looked, servo = now, next(self._servo)
            # An arm that was off or held would leap to the pose as soon as it can.
            if not self._servos.near(servo, self._safety.pose[servo - 1], self._slack):
                self._drop(f"stopped: servo {servo} is off, or not where it's commanded to")

    def _listen(self, seconds: float) -> None:
        # The client first: one that has left makes room for the next.
        sockets = [self._listener] if self._client is None else [self._client, self._listener]
        for ready in select.select(sockets, [], [], seconds)[0]:
            if ready is self._listener:
                self._accept()
            else:
                self._converse()

    def _accept(self) -> None:
        try:
            client, address = self._listener.accept()
        except OSError:  # gone again
            return
        name = "{}:{}".format(*address[:2])
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._client is not None:
            _log(f"{name} turned away: {self._name} has the arm")
            with contextlib.closing(client), contextlib.suppress(OSError):
                if not self._compatible:
                    client.send(encode_ack(0, Ack(BUSY, self._safety.pose)))
            return
        try:
            self._safety.restart(self._servos.read(), time.monotonic())
        except OSError as error:
            _log(f"{name} turned away: {error}")
            return client.close()
        self._client, self._name, self._looked = client, name, time.monotonic()
        self._session = Session(self._safety, self._compatible)
        _log(f"{name} connected")

    def _converse(self) -> None:
        try:
            data = self._client.recv(4096)
            if not data:
                return self._drop("closed the connection")
            answer = self._session.receive(data, time.monotonic())
            if answer and self._client.send(answer) < len(answer):
                self._drop("doesn't read its answers")
        except ProtocolError as error:
            self._drop(f"doesn't speak this protocol: {error}")
        except OSError as error:
            self._drop(f"lost: {error}")

    def _drop(self, why: str) -> None:
        self._safety.hold()
        counts = zip(STATUSES, self._session.counts)
        told = ", ".join(f"{count} {name}" for name, count in counts if count)
        _log("{} {}; {}; the arm holds".format(self._name, why, told or "no commands"))
        self._client.close()
        self._client = self._session = self._name = None


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


def main(argv: object = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Serves a Dofbot's servos to one client.")
    say = parser.add_argument
    say("--bind", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the network")
    say("--port", type=int, default=PORT, help="0 takes a free one")
    say("--dry-run", action="store_true", help="no arm")
    say("--compatible", action="store_true", help="24-byte packets, no frames and no answers")
    say("--speed", type=float, default=SPEED, help="highest speed of a servo, degrees a second")
    options = parser.parse_args(argv)
    if not 0 < options.speed < math.inf:
        parser.error(f"--speed must be positive, got {options.speed}")
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    try:
        servos = DryRun() if options.dry_run else ArmLib()
        server = Server(servos, options.bind, options.port, options.compatible, options.speed)
        print("listening on {}:{}".format(*server.address[:2]), flush=True)
        server.serve(lambda: signals)
    except (OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.dry_run:
        for name, pose in (("lowest", servos.low), ("highest", servos.high)):
            print("{} {}".format(name, " ".join(f"{a:.3f}" for a in pose)))


if __name__ == "__main__":
    main()
