"""A trained feed-forward policy for computers without this library: numpy, or StableHLO.

    network = extract(trainer, params)             # of PPO, or a cloned MLP
    save_npz(network, "policy.npz")                # for `runner.py`: numpy, Python 3.6 or later
    save_stablehlo(network, "policy.stablehlo")    # for jax.export.deserialize, and other runtimes

    network = load_npz("policy.npz")               # and back
    policy = restore(network, env)                 # its parameters are `network`

There is no ONNX: its only maintained converter from JAX, jax2onnx (0.17), demands an
orbax-checkpoint older than the one this library needs. Converters from StableHLO serve where ONNX
is wanted.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrobo._files import replacing
from jaxrobo.data import named
from jaxrobo.data.normaliser import MAX_OBSERVED
from jaxrobo.deploy import runner
from jaxrobo.env import Env, Spec
from jaxrobo.learning import bc, ppo
from jaxrobo.learning.normaliser import MAX_NORMALISED, deviation
from jaxrobo.learning.trainer import Trainer
from jaxrobo.networks import activation, flatten_observation, observation_size
from jaxrobo.policy import Params, Policy, receding

_EXAMPLES = 16
"""Observations and actions stored in an `.npz`, by which a computer can check itself."""

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@struct.dataclass
class Network:
    """All there is to a feed-forward policy; `runner` says what it computes.

    Attributes:
      weights: of each layer, `[in, out]`.
      biases: of each layer, `[out]`.
      offset, scale, clip: of each number of an observation, `[n]`.
      action_offset, action_scale: `[action_size]`.
      action_clip: []
      activation: its name.
      names: of the observation's entries, in the order in which they are put together.
      obs_horizon: observations that it reads.
      horizon: actions that it predicts.
      period: how many of them are carried out.
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    offset: jax.Array
    scale: jax.Array
    clip: jax.Array
    action_offset: jax.Array
    action_scale: jax.Array
    action_clip: jax.Array
    activation: str = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    obs_horizon: int = struct.field(pytree_node=False, default=1)
    horizon: int = struct.field(pytree_node=False, default=1)
    period: int = struct.field(pytree_node=False, default=1)


def extract(trainer: Trainer, params: Params) -> Network:
    """The network of a trained policy; of PPO, its mean, clipped to [-1, 1] as rollouts clip it.

    Args:
      trainer: of `ppo.make` or `bc.make`.
      params: what its policy acts with (`training.restore_policy`).

    Raises:
      ValueError: if the policy isn't one feed-forward network.
    """
    kind = type(trainer.config)
    if kind not in _EXTRACT:
        found = kind.__module__.rpartition(".")[2]
        valid = ", ".join(name for name, _ in _EXTRACT.values())
        raise ValueError(f"a policy of {found} is no feed-forward network; valid: {valid}")
    _, read = _EXTRACT[kind]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), read(trainer, params))


def _ppo(trainer: Trainer, params: Params) -> Network:
    config, spec = trainer.config, trainer.env.observation_spec
    size, actions = observation_size(spec), trainer.env.action_size
    stats, layers = params["observation_stats"], params["network"]["params"]
    offset, scale, clip = np.zeros(size), np.ones(size), np.full(size, np.inf)
    if config.normalise_observations:
        offset, scale, clip = stats.mean, deviation(stats), np.full(size, MAX_NORMALISED)
    return Network(
        *_dense(layers.get("trunk", {}), layers["mean"]),
        offset,
        scale,
        clip,
        action_offset=np.zeros(actions),
        action_scale=np.ones(actions),
        action_clip=1.0,
        activation=config.activation,
        names=_names(spec),
    )


def _bc(trainer: Trainer, params: Params) -> Network:
    config, spec = trainer.config, trainer.env.observation_spec
    normaliser, entries = params["normaliser"], named(spec)

    def each(values: dict[str, jax.Array], otherwise: float) -> jax.Array:
        """A number for each of the observation's; of entries without a normaliser, `otherwise`."""
        parts = [(values.get(name, otherwise), entries[name].shape) for name in _names(spec)]
        return jnp.concatenate([jnp.broadcast_to(x, shape).reshape(-1) for x, shape in parts])

    limits = dict.fromkeys(normaliser.offset, MAX_OBSERVED)
    return Network(
        *_dense(params["network"]["params"]),
        each(normaliser.offset, 0.0),
        each(normaliser.scale, 1.0),
        each(limits, np.inf),
        action_offset=normaliser.offset["action"],
        action_scale=normaliser.scale["action"],
        action_clip=1.0,
        activation=config.activation,
        names=_names(spec),
        obs_horizon=config.obs_horizon,
        horizon=config.horizon,
        period=config.action_horizon,
    )


_EXTRACT = {bc.Config: ("bc", _bc), ppo.Config: ("ppo", _ppo)}


def _names(spec: Spec | dict[str, Spec]) -> tuple[str, ...]:
    return tuple(sorted(named(spec)))


def _dense(*stacks: Params) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Weights and biases of the layers of MLPs, one behind the other."""
    layers = [stack[f"Dense_{i}"] for stack in stacks for i in range(len(stack))]
    return tuple(d["kernel"] for d in layers), tuple(d["bias"] for d in layers)


def predict(network: Network, history: jax.Array) -> jax.Array:
    """A chunk of actions: `[obs_horizon, n]` -> `[horizon, action_size]`."""
    x = (history - network.offset) / network.scale
    x = jnp.clip(x, -network.clip, network.clip).reshape(-1)
    *hidden, (weight, bias) = zip(network.weights, network.biases, strict=True)
    for w, b in hidden:
        x = activation(network.activation)(x @ w + b)
    x = (x @ weight + bias).reshape(network.horizon, -1)
    x = jnp.clip(x, -network.action_clip, network.action_clip)
    return x * network.action_scale + network.action_offset


def save_npz(network: Network, path: str | Path) -> None:
    """Writes a network, and some examples of what it does, for `runner.Policy`."""
    histories = _examples(network)
    arrays = {f"weight{i}": w for i, w in enumerate(network.weights)}
    arrays |= {f"bias{i}": b for i, b in enumerate(network.biases)}
    fields = (*runner.ARRAYS, *runner.NUMBERS, "activation", "names")
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            format=runner.FORMAT,
            layers=len(network.weights),
            example_histories=histories,
            example_chunks=jax.vmap(predict, (None, 0))(network, histories),
            **arrays,
            **{name: np.asarray(getattr(network, name)) for name in fields},
        )


def load_npz(path: str | Path) -> Network:
    """Reads what `save_npz` wrote. Raises ValueError if it's damaged or of another format."""
    data = runner.read(str(path))
    layers = range(int(data["layers"]))
    return Network(
        weights=tuple(jnp.asarray(data[f"weight{i}"]) for i in layers),
        biases=tuple(jnp.asarray(data[f"bias{i}"]) for i in layers),
        **{name: jnp.asarray(data[name]) for name in runner.ARRAYS},
        **{name: int(data[name]) for name in runner.NUMBERS},
        activation=str(data["activation"]),
        names=tuple(map(str, data["names"])),
    )


def restore(network: Network, env: Env) -> Policy:
    """The policy whose parameters are the network, for an environment like the one of its training.

    Raises:
      ValueError: if the environment shows something else, or has other actions.
    """
    spec = env.observation_spec
    shows, size = _names(spec), observation_size(spec)
    if (shows, size) != (network.names, len(network.offset)):
        raise ValueError(
            f"the policy reads {len(network.offset)} numbers of {', '.join(network.names)}, but "
            f"the environment shows {size} of {', '.join(shows)}"
        )
    if (found := len(network.action_scale)) != env.action_size:
        raise ValueError(f"the policy's actions have {found} numbers, expected {env.action_size}")
    flat = lambda obs: flatten_observation(spec, obs)
    return receding(
        lambda network, seen, previous, key: predict(network, jax.vmap(flat)(seen)),
        network.horizon,
        env.action_size,
        network.period,
        network.obs_horizon,
    )


def save_stablehlo(network: Network, path: str | Path) -> None:
    """Writes `history [obs_horizon, n] -> chunk [horizon, action_size]` as StableHLO.

    The weights are in it, and it runs on any of JAX's platforms:

        run = jax.export.deserialize(bytearray(Path(path).read_bytes())).call
    """
    shape = network.obs_horizon, len(network.offset)
    program = jax.jit(lambda history: predict(network, history))
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(program, platforms=_PLATFORMS)(argument)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(exported.serialize())


def _examples(network: Network) -> np.ndarray:
    """Observations about as they were in training, and some beyond."""
    rng = np.random.default_rng(0)
    shape = _EXAMPLES, network.obs_horizon, len(network.offset)
    noise = 2 * rng.standard_normal(shape, np.float32)
    return np.asarray(network.offset + noise * network.scale)
