"""Stored episodes as `jaxrobo.rendering` films them. Apart, for it needs what draws."""

import numpy as np

from jaxrobo.data.trajectories import DataError, Trajectories
from jaxrobo.rendering import Trajectory


def to_film(trajectories: Trajectories) -> Trajectory:
    """What the episodes looked like before each step; one that is over stays as it was last.

    Raises:
      DataError: if the episodes were collected without poses.
    """
    if not trajectories.poses:
        raise DataError(
            "there are no poses to film: collect with poses (experiments.collect --states)"
        )
    lengths = trajectories.lengths[:, None]
    time = np.arange(lengths.max())
    rows = trajectories.episode_ends[:, None] - lengths + np.minimum(time, lengths - 1)
    poses = {k: v[rows] for k, v in trajectories.poses.items()}
    return Trajectory(**poses, model=trajectories.model, live=time < lengths)
