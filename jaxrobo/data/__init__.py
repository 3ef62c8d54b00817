"""Demonstrations: collected, stored in the field's formats, and cut into what policies learn from.

demos = collect(env, env.expert(), None, episodes=50)
zarr.write("demos/peg.zarr", demos)
demos = read("demos/peg.zarr")
check_env(demos, env)
normaliser = fit(demos)
windows = make_windows(demos.episode_ends, horizon=32, action_horizon=8)
observations, actions = gather(demos, windows, index)
"""

from jaxrobo.data import hdf5, pickles, zarr
from jaxrobo.data.checks import check, check_env, check_settings
from jaxrobo.data.collection import NoSuccess, collect, stream
from jaxrobo.data.normaliser import (
    Normaliser,
    denormalise,
    fit,
    network_input,
    normalise,
    normalise_observation,
)
from jaxrobo.data.stores import (
    FORMATS,
    check_format,
    claimed,
    extend,
    format_of,
    read,
    read_normaliser,
    write_normaliser,
)
from jaxrobo.data.trajectories import (
    DataError,
    Metadata,
    Trajectories,
    concatenate,
    describe,
    named,
    take,
    task_options,
)
from jaxrobo.data.windows import Windows, gather, make_windows, split_episodes

__all__ = [
    "FORMATS",
    "DataError",
    "Metadata",
    "NoSuccess",
    "Normaliser",
    "Trajectories",
    "Windows",
    "check",
    "check_env",
    "check_format",
    "check_settings",
    "claimed",
    "collect",
    "concatenate",
    "denormalise",
    "describe",
    "extend",
    "fit",
    "format_of",
    "gather",
    "hdf5",
    "make_windows",
    "named",
    "network_input",
    "normalise",
    "normalise_observation",
    "pickles",
    "read",
    "read_normaliser",
    "split_episodes",
    "stream",
    "take",
    "task_options",
    "write_normaliser",
    "zarr",
]
