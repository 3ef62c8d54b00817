"""What every robot that a policy is streamed to has in common."""

import abc
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np


class RobotError(RuntimeError):
    """The robot can't be reached, doesn't answer, or was asked for what it must not do."""


_OVERSHOOT = 0.01
"""A joint that a drive brings to its limit is some mrad beyond it for a while, rad."""


def leaves(q: np.ndarray, limits: Sequence[tuple[float, float]]) -> bool:
    """Whether joint angles `[n]` are outside limits by more than 0.01 rad, a drive's overshoot."""
    low, high = np.transpose(limits)
    return bool(np.any(np.maximum(low - q, q - high) > _OVERSHOOT))


class Robot(abc.ABC):
    """A robot's joints, from the side of the policy; angles are in rad.

    Every command passes joint limits, a speed limit and a check that it's finite
    (`arm_server.Safety`), so that the first ones bring the robot slowly from wherever it is.
    Clients aren't thread-safe.

    Attributes:
      limited: commands that were clipped to the joint limits by more than 0.01 rad, which a
        simulated joint may overshoot.
    """

    limited: int

    @property
    @abc.abstractmethod
    def pose(self) -> np.ndarray:
        """Where the joints are commanded to be, `[n]`."""

    @abc.abstractmethod
    def send(self, q: np.ndarray) -> np.ndarray:
        """Moves towards joint angles `[n]`, and returns where it's commanded to be, `[n]`.

        That is, as far as it's known: a server tells a little late. Call it at a steady rate: the
        robot holds its pose when it hears nothing, and a server may drop who is silent for longer.
        Never waits.

        Raises:
          RobotError: if an angle isn't finite, or the robot is lost. It then holds its pose.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Holds the pose. Raises RobotError if the robot didn't confirm it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnects; the robot holds its pose."""

    def __enter__(self) -> Self:
        """The robot itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Holds the pose and disconnects."""
        try:
            with contextlib.suppress(RobotError):
                self.stop()
        finally:
            self.close()
