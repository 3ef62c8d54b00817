"""Multi-layer perceptrons, and the Gaussian actor-critic made of them."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.env import Observation, Spec

_ACTIVATIONS = {"elu": nn.elu, "relu": nn.relu, "tanh": nn.tanh, "swish": nn.swish, "gelu": nn.gelu}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function of a name. Raises ValueError if there is none."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; valid: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def check_layers(hidden: Sequence[int], name: str) -> None:
    """Raises ValueError on a hidden layer without width, or an unknown activation."""
    if not all(width >= 1 for width in hidden):
        raise ValueError(f"hidden must be widths of at least 1, got {tuple(hidden)}")
    activation(name)


def flatten_observation(spec: Spec | dict[str, Spec], observation: Observation) -> jax.Array:
    """Concatenates an observation's entries, in the order of their names, into one vector `[n]`.

    Raises:
      ValueError: if an entry isn't of kind "state": points and images need another encoder.
    """
    specs = _states(spec)
    if not isinstance(observation, dict):
        if len(specs) > 1:
            raise ValueError(f"the observation is an array, expected {', '.join(specs)}")
        observation = dict.fromkeys(specs, observation)
    return jnp.concatenate([observation[k].reshape(-1) for k in sorted(specs)])


def observation_size(spec: Spec | dict[str, Spec]) -> int:
    """How many numbers `flatten_observation` gives. Raises ValueError as that does."""
    return sum(math.prod(entry.shape) for entry in _states(spec).values())


def _states(spec: Spec | dict[str, Spec]) -> dict[str, Spec]:
    specs = spec if isinstance(spec, dict) else {"observation": spec}
    for name, entry in specs.items():
        if entry.kind != "state":
            raise ValueError(
                f"an MLP reads observations of kind 'state'; {name!r} is {entry.kind!r}"
            )
    return specs


class MLP(nn.Module):
    """Dense layers with an activation between them; `[..., n]` -> `[..., sizes[-1]]`.

    Attributes:
      sizes: the width of each layer.
      activation: name of the activation.
      activate_final: whether the last layer has one too.
      final_scale: gain of the last layer's initial weights.
    """

    sizes: Sequence[int]
    activation: str = "tanh"
    activate_final: bool = False
    final_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers."""
        for i, size in enumerate(self.sizes):
            last = i == len(self.sizes) - 1
            scale = self.final_scale if last and not self.activate_final else np.sqrt(2)
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale))(x)
            if not last or self.activate_final:
                x = activation(self.activation)(x)
        return x


class ActorCritic(nn.Module):
    """A Gaussian policy and a value, on one trunk or on two.

    The value may read less than the policy does: the first `value_inputs` numbers of the input.

    Attributes:
      action_size: the length of an action.
      hidden: widths of the hidden layers.
      activation: name of the activation.
      shared: whether policy and value share the hidden layers.
      init_log_std: initial logarithm of the standard deviation, which doesn't depend on the
        observation.
      learn_std: whether the standard deviation is learned, or stays as it is.
      mean_scale: gain of the initial weights of the mean; at 0 it is 0 everywhere.
      value_inputs: how much of the input the value reads, if not all; without a shared trunk.
    """

    action_size: int
    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    shared: bool = True
    init_log_std: float = 0.0
    learn_std: bool = True
    mean_scale: float = 0.01
    value_inputs: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`[..., n]` -> mean `[..., a]`, log_std `[..., a]`, value `[...]`."""
        trunk = MLP(self.hidden, self.activation, activate_final=True, name="trunk")(x)
        critic = trunk
        if not self.shared:
            seen = x[..., : self.value_inputs]
            critic = MLP(self.hidden, self.activation, activate_final=True, name="critic")(seen)
        mean = MLP((self.action_size,), final_scale=self.mean_scale, name="mean")(trunk)
        value = MLP((1,), name="value")(critic)[..., 0]
        log_std = self.param(
            "log_std", nn.initializers.constant(self.init_log_std), (self.action_size,)
        )
        log_std = log_std if self.learn_std else jax.lax.stop_gradient(log_std)
        return mean, jnp.broadcast_to(log_std, mean.shape), value
