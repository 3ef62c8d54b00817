"""A convolutional network over time that denoises a chunk of actions, given what is observed.

The architecture of Janner et al., "Planning with Diffusion" (arXiv 2205.09991), conditioned as in
Chi et al., "Diffusion Policy" (arXiv 2303.04137): the condition scales and shifts the channels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_KERNEL = 5
_GROUPS = 8
_STEP_SIZE = 256
_MAX_PERIOD = 10_000.0


class ConditionalUNet1D(nn.Module):
    """Maps one noisy chunk, its noise level and a condition to a chunk.

    Each level has two residual blocks; between two levels the horizon is halved, or doubled on the
    way back, where each level also sees what went down at its own resolution. robust-rearrangement
    uses (256, 512, 1024): 66 M parameters. (32, 64, 128) and (64, 128, 256) suit a CPU.

    Attributes:
      widths: channels of each level, multiples of 8.
    """

    widths: Sequence[int] = (256, 512, 1024)

    @nn.compact
    def __call__(self, chunk: jax.Array, step: jax.Array, condition: jax.Array) -> jax.Array:
        """Applies the network to one sample; `vmap` makes batches.

        Args:
          chunk: `[horizon, action_size]`.
          step: `[]`, the noise level: a diffusion step, or a time scaled like one.
          condition: `[c]`.

        Returns:
          `[horizon, action_size]`.

        Raises:
          ValueError: on other ranks, a width that isn't a multiple of 8, or a horizon that can't be
            halved between all levels.
        """
        _check(self.widths, chunk, step, condition)
        condition = jnp.concatenate([_StepEncoder(name="step")(step), condition])
        block = lambda x, width, name: _ResidualBlock(width, name=name)(x, condition)
        x, skips = chunk, []
        for i, width in enumerate(self.widths):
            x = block(x, width, f"down{i}_0")
            x = block(x, width, f"down{i}_1")
            skips.append(x)
            if i < len(self.widths) - 1:
                x = nn.Conv(width, (3,), strides=2, padding=1, name=f"halve{i}")(x)
        x = block(x, self.widths[-1], "middle_0")
        x = block(x, self.widths[-1], "middle_1")
        for i in reversed(range(1, len(self.widths))):
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = block(x, self.widths[i - 1], f"up{i}_0")
            x = block(x, self.widths[i - 1], f"up{i}_1")
            x = nn.ConvTranspose(self.widths[i - 1], (4,), strides=(2,), name=f"double{i}")(x)
        x = _ConvBlock(self.widths[0], name="last")(x)
        return nn.Dense(chunk.shape[-1], name="out")(x)


def step_embedding(step: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of a step, `[] -> [size]`, with periods from 2π to 2π · 10000 steps.

    As in Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.5, with all
    sines before all cosines.
    """
    frequencies = _MAX_PERIOD ** -jnp.linspace(0.0, 1.0, size // 2)
    return jnp.concatenate([jnp.sin(step * frequencies), jnp.cos(step * frequencies)])


class _StepEncoder(nn.Module):
    """`[] -> [256]`."""

    @nn.compact
    def __call__(self, step: jax.Array) -> jax.Array:
        x = nn.Dense(4 * _STEP_SIZE)(step_embedding(step, _STEP_SIZE))
        return nn.Dense(_STEP_SIZE)(_mish(x))


class _ResidualBlock(nn.Module):
    """Two convolutions with the condition in between: FiLM (Perez et al., arXiv 1709.07871).

    The scale is one plus what the condition says, so that a fresh network passes its input on.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = _ConvBlock(self.width)(x)
        film = nn.Dense(2 * self.width, name="film")(_mish(condition))
        scale, shift = jnp.split(film, 2)
        y = _ConvBlock(self.width)((1 + scale) * y + shift)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="residual")(x)
        return x + y


class _ConvBlock(nn.Module):
    """Convolution over time, group normalisation, Mish: `[horizon, n] -> [horizon, width]`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (_KERNEL,))(x)
        # Flax takes the first axis for the batch, unless it's told to reduce over time as well.
        return _mish(nn.GroupNorm(_GROUPS, epsilon=1e-5, reduction_axes=(0, 1))(x))


def _mish(x: jax.Array) -> jax.Array:
    """`x tanh(log(1 + exp x))` (Misra, arXiv 1908.08681)."""
    return x * jnp.tanh(jax.nn.softplus(x))


def _check(widths: Sequence[int], chunk: jax.Array, step: jax.Array, condition: jax.Array) -> None:
    ranks = (np.ndim(chunk), np.ndim(step), np.ndim(condition))
    if ranks != (2, 0, 1):
        raise ValueError(
            f"the UNet takes one chunk, step and condition, of ranks (2, 0, 1), got {ranks}; use "
            "jax.vmap for a batch"
        )
    if not widths or any(w < 1 or w % _GROUPS for w in widths):
        raise ValueError(f"the UNet's widths must be multiples of {_GROUPS}, got {tuple(widths)}")
    factor = 2 ** (len(widths) - 1)
    if chunk.shape[0] % factor or not chunk.shape[0]:
        raise ValueError(
            f"the horizon must be a multiple of {factor} for {len(widths)} levels, got "
            f"{chunk.shape[0]}"
        )
