"""Video files."""

import contextlib
import math
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from jaxrobo._files import replacing


def real_time(dt: float, fps: float) -> tuple[int, Fraction]:
    """How to show something in real time that has a state every `dt` seconds.

    Args:
      dt: seconds between states.
      fps: wanted frames a second; what is returned exceeds it by 5 % at most, so that 60.2 Hz is
        shown at 30.1 rather than 20.1.

    Returns:
      How many states apart the frames are, and the frames a second.

    Raises:
      ValueError: if `fps` isn't positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    stride = max(1, math.ceil(0.95 / (dt * fps)))
    return stride, Fraction(1 / (dt * stride)).limit_denominator(1000)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float | Fraction) -> None:
    """Encodes frames as H.264 in a file that any player and browser shows (yuv420p).

    Args:
      path: where to write, an `.mp4`; a file that's there is replaced once the new one is whole.
      frames: `[height, width, 3]` each, uint8, all of one size with even sides.
      fps: frames a second.

    Raises:
      OSError: if the encoder fails; the message is its own.
      ValueError: if there are no frames, or on a frame of a wrong shape or type.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs at least 1 frame")
    if first.ndim != 3 or first.shape[2] != 3 or first.shape[0] % 2 or first.shape[1] % 2:
        raise ValueError(f"a frame must be [height, width, 3] with even sides, got {first.shape}")
    with replacing(Path(path)) as temporary, _encoder(temporary, first.shape, fps) as stream:
        stream.write(_pixels(first, first.shape))
        for frame in frames:
            stream.write(_pixels(frame, first.shape))


@contextlib.contextmanager
def _encoder(path: Path, shape: tuple[int, ...], fps: float | Fraction) -> Iterator[Any]:
    """A stream that takes raw pixels and encodes them into `path`."""
    rate = str(Fraction(fps).limit_denominator(1000))
    source = f"-f rawvideo -pix_fmt rgb24 -s {shape[1]}x{shape[0]} -r {rate} -i -"
    target = "-an -c:v libx264 -crf 20 -pix_fmt yuv420p -movflags +faststart"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
    command += [*source.split(), *target.split(), str(path)]
    with tempfile.TemporaryFile() as log:
        streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        # In a session of its own: Ctrl-C is for the caller to handle.
        with subprocess.Popen(command, **streams, start_new_session=True) as process:
            try:
                with contextlib.suppress(BrokenPipeError):  # its own words, below, say more
                    yield process.stdin
            except BaseException:
                process.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        if process.returncode:
            log.seek(0)
            raise OSError(f"ffmpeg failed to write {path.name}: {log.read().decode().strip()}")


def _pixels(frame: np.ndarray, shape: tuple[int, ...]) -> bytes:
    if frame.shape != shape or frame.dtype != np.uint8:
        raise ValueError(f"a frame is {frame.dtype} {frame.shape}, expected uint8 {shape}")
    return frame.tobytes()
