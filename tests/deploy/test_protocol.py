"""The wire and one client's conversation, without sockets."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobo.deploy import arm_server as wire

MIDDLE = (90.0,) * 6
TURNED = (100.0, 80.0, 95.0, 90.0, 120.0, 90.0)
FRAMES = [
    wire.Frame(wire.HEARTBEAT, 1, b""),
    wire.Frame(wire.TARGET, 2, wire.encode_angles(TURNED)),
    wire.Frame(wire.STOP, 2**32 - 1, b""),
]


def safety(pose=MIDDLE):
    return wire.Safety(pose, wire.LIMITS, wire.SPEED, 0.0, margin=wire._MARGIN)


def answers(data):
    """The acknowledgements in what a session answered: (sequence, status)."""
    found = []
    while data:
        frame, data = wire.decode(data)
        found.append((frame.sequence, wire.STATUSES[wire.decode_ack(frame.payload).status]))
    return found


def target(sequence, angles=TURNED):
    return wire.encode(wire.TARGET, sequence, wire.encode_angles(angles))


def test_a_target_is_these_bytes():
    """Little-endian on every machine; worked out by hand."""
    data = target(258, (0.0, 90.0, -90.0, 0.5, 1.0, 2.0))
    floats = "00000000 0000b442 0000b4c2 0000003f 0000803f 00000040"
    assert data == b"JXRB" + bytes.fromhex("01 02 1800 02010000" + floats)
    assert len(wire.encode_angles(MIDDLE)) == 24
    assert wire.encode_angles(TURNED) == struct.pack("<ffffff", *TURNED)


@given(st.data())
def test_frames_are_found_wherever_the_stream_is_cut(data):
    stream = b"".join(wire.encode(*frame) for frame in FRAMES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, unread = [], b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        unread += stream[start:end]
        while True:
            frame, unread = wire.decode(unread)
            if frame is None:
                break
            found.append(frame)
    assert found == FRAMES
    assert unread == b""


@given(st.integers(0, 5), st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_an_acknowledgement_is_read_as_it_was_written(status, pose):
    frame, rest = wire.decode(wire.encode_ack(7, wire.Ack(status, tuple(pose))))
    assert (frame.kind, frame.sequence, rest) == (wire.ACK, 7, b"")
    ack = wire.decode_ack(frame.payload)
    assert ack.status == status
    np.testing.assert_array_equal(ack.pose, pose)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"G", "bad magic b'G', expected b'JXRB'"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad magic b'GET '"),
        (b"JXRB" + bytes([2, 1]) + bytes(6), "version 2, expected 1"),
        (b"JXRB" + bytes([1, 9]) + bytes(6), r"unknown kind 9; valid: \[1, 2, 3, 4\]"),
        (b"JXRB" + bytes([1, 2, 0xFF, 0xFF]) + bytes(4), "65535 bytes of kind 2, expected 24"),
        (b"JXRB" + bytes([1, 2, 23, 0]) + bytes(4), "23 bytes of kind 2, expected 24"),
    ],
)
def test_foreign_bytes_are_refused_as_soon_as_they_show(data, words):
    with pytest.raises(wire.ProtocolError, match=words):
        wire.decode(data)
    with pytest.raises(wire.ProtocolError, match="unknown status 9"):
        wire.decode_ack(bytes([9]) + bytes(24))


def test_every_frame_is_acknowledged():
    session = wire.Session(safety(), compatible=False)
    data = wire.encode(wire.HEARTBEAT, 1) + target(2) + target(5, (*[0.0] * 5, 90.0))
    expected = [(1, "ok"), (2, "ok"), (5, "limited"), (6, "ok")]
    assert answers(session.receive(data + wire.encode(wire.STOP, 6), 0.1)) == expected
    assert session.counts == [3, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("again", [3, 2, 1, 0])
def test_replayed_and_late_frames_move_nothing(again):
    guard = safety()
    session = wire.Session(guard, compatible=False)
    session.receive(target(3), 0.0)
    elsewhere = (10.0, 50.0, 50.0, 50.0, 10.0, 90.0)
    assert answers(session.receive(target(again, elsewhere), 0.1)) == [(again, "stale")]
    assert guard.target == TURNED
    assert guard.heard == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -91.0])
@pytest.mark.parametrize("compatible", [False, True])
def test_one_bad_number_refuses_the_whole_target(value, compatible):
    guard = safety()
    session = wire.Session(guard, compatible)
    angles = (value, *TURNED[1:])
    session.receive(wire.encode_angles(angles) if compatible else target(1, angles), 0.0)
    assert session.counts[wire.REFUSED] == 1
    assert guard.target == MIDDLE


def test_stop_ends_a_movement():
    guard = safety()
    session = wire.Session(guard, compatible=False)
    session.receive(target(1), 0.0)
    where = guard.step(0.04)
    assert where != MIDDLE
    session.receive(wire.encode(wire.STOP, 2), 0.05)
    assert guard.step(0.1) == where


def test_a_late_stop_ends_a_movement_too():
    guard = safety()
    session = wire.Session(guard, compatible=False)
    session.receive(target(7), 0.0)
    where = guard.step(0.04)
    assert answers(session.receive(wire.encode(wire.STOP, 6), 0.05)) == [(6, "stale")]
    assert guard.step(0.1) == where


def test_every_pose_of_the_servos_can_be_started_from():
    """Servo 5 turns to 270 degrees, twice as far from its middle as the task's limits."""
    guard = safety(pose=(180.0, 0.0, 180.0, 0.0, 270.0, 0.0))
    session = wire.Session(guard, compatible=False)
    assert answers(session.receive(target(1, guard.pose), 0.0)) == [(1, "limited")]
    moved = guard.step(0.04)
    assert moved == pytest.approx((180.0, 2.292, 177.708, 2.292, 267.708, 2.292))


def test_compatible_packets_are_24_bytes_wherever_they_are_cut():
    guard = safety()
    session = wire.Session(guard, compatible=True)
    stream = wire.encode_angles(MIDDLE) + wire.encode_angles(TURNED)
    for i in range(len(stream)):
        assert session.receive(stream[i : i + 1], 0.0) == b""
        assert guard.target == (TURNED if i == 47 else MIDDLE)


def test_a_client_does_not_acknowledge():
    session = wire.Session(safety(), compatible=False)
    with pytest.raises(wire.ProtocolError, match="a client doesn't acknowledge"):
        session.receive(wire.encode_ack(1, wire.Ack(wire.OK, MIDDLE)), 0.0)


def fuzzed(rng, sequence, compatible):
    """A packet that went wrong in one of many ways."""
    angles = np.append(rng.uniform(10, 170, 5), 90.0)
    if rng.integers(2):
        angles[rng.integers(6)] = rng.choice([500.0, -1e9, np.nan, np.inf, -np.inf, 3e38])
    payload = wire.encode_angles(angles)
    data = payload if compatible else wire.encode(wire.TARGET, sequence, payload)
    way = rng.integers(6)
    if way == 0:
        data = rng.bytes(rng.integers(1, 200))
    elif way == 1:
        data = data[: rng.integers(1, len(data))]
    elif way == 2:
        data = bytearray(data)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif way == 3:
        data *= rng.integers(2, 5)
    elif way == 4 and not compatible:
        data = wire.encode(rng.integers(0, 6), sequence, rng.bytes(rng.integers(0, 100)))
    return bytes(data)


@pytest.mark.parametrize("compatible", [False, True])
def test_10000_fuzzed_packets_never_leave_the_limits(compatible):
    rng = np.random.default_rng(0)
    guard, now, dropped = safety(), 0.0, 0
    session, previous, sequence = wire.Session(guard, compatible), guard.pose, 0
    counts = np.zeros(len(wire.STATUSES), int)
    low, high = np.transpose(wire.LIMITS)
    poses = []
    for _ in range(10_000):
        sequence += 1
        try:
            session.receive(fuzzed(rng, sequence, compatible), now)
            left = rng.integers(20) == 0  # behind a cut packet, 24-byte packets make no sense
        except wire.ProtocolError:
            dropped, left = dropped + 1, True
        if left:
            counts += session.counts
            session, sequence = wire.Session(guard, compatible), 0
        now += rng.choice([0.0, 0.01, 0.3])
        poses.append(guard.step(now))
    poses = np.array(poses)
    assert np.all((poses >= low) & (poses <= high))
    assert np.abs(np.diff([previous, *poses], axis=0)).max() <= wire.SPEED * 0.05 + 1e-9
    counts += session.counts
    assert counts[wire.OK] + counts[wire.LIMITED] > 500  # the others tell nothing without these
    assert counts[wire.REFUSED] > 1000
    assert compatible or dropped > 1000
    assert np.ptp(poses, axis=0)[0] > 10  # it did move


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=100), max_size=10), st.booleans())
def test_any_bytes_are_acted_on_or_refused(chunks, compatible):
    session = wire.Session(safety(), compatible)
    try:
        for chunk in chunks:
            session.receive(chunk, 0.0)
    except wire.ProtocolError:
        assert not compatible
