"""What every robot that a policy is streamed to has in common."""

from types import TracebackType
from typing import Protocol, Self

import numpy as np


class RobotError(RuntimeError):
    """The robot can't be reached, doesn't answer, or was asked for what it must not do."""


class Robot(Protocol):
    """A robot's joints, from the side of the policy; angles are in rad.

    Every command passes joint limits, a speed limit and a check that it's finite
    (`arm_server.Safety`), so that the first ones bring the robot slowly from wherever it is.

    Attributes:
      limited: commands that were clipped to the joint limits.
    """

    limited: int

    @property
    def pose(self) -> np.ndarray:
        """Where the joints are commanded to be, `[n]`."""

    def send(self, q: np.ndarray) -> np.ndarray:
        """Moves towards joint angles `[n]`, and returns what was commanded, `[n]`.

        Call it at a steady rate: the robot holds its pose when it hears nothing. Never waits.

        Raises:
          RobotError: if an angle isn't finite, or the robot is lost. It then holds its pose.
        """

    def stop(self) -> None:
        """Holds the pose. Raises RobotError if the robot didn't confirm it."""

    def __enter__(self) -> Self:
        """The robot itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Holds the pose and disconnects."""
