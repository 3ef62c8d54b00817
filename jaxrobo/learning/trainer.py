"""What every algorithm is: a few pure functions over one complete state, as in optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrobo.env import Env
from jaxrobo.policy import Params, Policy

TrainState = Any
Batch = Any
Metrics = dict[str, jax.Array]


class Trainer(NamedTuple):
    """An algorithm on an environment.

    Attributes:
      init: `(key, inputs) -> state`. The state holds everything that changes, and `iteration`.
      collect: `(state, inputs) -> (state, batch)`.
      update: `(state, batch, inputs) -> (state, metrics)`. `metrics` holds scalars; those of
        finished episodes are under `episode/`, NaN where none finished.
      step: `(state, inputs) -> (state, metrics)`: `collect` and `update`, jitted; donates the
        state.
      policy: `(state, deterministic) -> (policy, params)`. The params are leaves of `state`: the
        next call of `step` donates them, so act before it or copy them.
      inputs: what the functions read and never change (a dataset, a frozen policy); a pytree.
      env: the environment, without automatic resets.
      config: the algorithm's configuration, a dataclass.
      steps_per_iteration: environment steps (or gradient steps) of one call of `step`: budgets
        count these.
    """

    init: Callable[[jax.Array, Any], TrainState]
    collect: Callable[[TrainState, Any], tuple[TrainState, Batch]]
    update: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    policy: Callable[..., tuple[Policy, Params]]
    inputs: Any
    env: Env
    config: Any
    steps_per_iteration: int
