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
_EPSILON = 1e-5
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
        levels = (*self.widths, self.widths[-1], *self.widths[-2::-1])  # down, middle, up
        films = iter(_Film([w for w in levels for _ in range(2)], name="film")(step, condition))
        block = lambda x, name: _ResidualBlock(name=name)(x, *next(films))
        x, skips = chunk, []
        for i, width in enumerate(self.widths):
            x = block(x, f"down{i}_0")
            x = block(x, f"down{i}_1")
            skips.append(x)
            if i < len(self.widths) - 1:
                x = _Conv(width, 3, stride=2, name=f"halve{i}")(x)
        x = block(x, "middle_0")
        x = block(x, "middle_1")
        for i in reversed(range(1, len(self.widths))):
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = block(x, f"up{i}_0")
            x = block(x, f"up{i}_1")
            x = _Double(name=f"double{i}")(x)
        x = _ConvBlock(self.widths[0], name="last")(x)
        return nn.Dense(chunk.shape[-1], name="out")(x)


def step_embedding(step: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of a step, `[] -> [size]`, with periods from 2π to 2π · 10000 steps.

    As in Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.5, with all
    sines before all cosines.
    """
    frequencies = _MAX_PERIOD ** -jnp.linspace(0.0, 1.0, size // 2)
    return jnp.concatenate([jnp.sin(step * frequencies), jnp.cos(step * frequencies)])


class _Film(nn.Module):
    """What step and condition tell each block: a factor and a summand of each channel, `[width]`.

    Perez et al., "FiLM" (arXiv 1709.07871), by one linear layer for all blocks. Its two parts are
    apart because a sampler's step is the same for a whole batch, and its condition in all steps.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, step: jax.Array, condition: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        size = 2 * sum(self.widths)
        x = nn.Dense(4 * _STEP_SIZE, name="encode_0")(step_embedding(step, _STEP_SIZE))
        x = nn.Dense(_STEP_SIZE, name="encode_1")(_mish(x))
        film = nn.Dense(size, name="step")(_mish(x))
        film += nn.Dense(size, use_bias=False, name="condition")(_mish(condition))
        parts = jnp.split(film, np.cumsum(np.repeat(self.widths, 2))[:-1])
        return list(zip(parts[::2], parts[1::2], strict=True))


class _ResidualBlock(nn.Module):
    """Two convolutions with the condition in between.

    The factor is one plus what the condition says, so that a fresh network passes its input on.
    """

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        width = len(scale)
        y = _ConvBlock(width)(x)
        y = _ConvBlock(width)((1 + scale) * y + shift)
        if x.shape[-1] != width:
            x = nn.Dense(width, name="residual")(x)
        return x + y


class _ConvBlock(nn.Module):
    """Convolution over time, group normalisation, Mish: `[horizon, n] -> [horizon, width]`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _mish(_GroupNorm()(_Conv(self.width, _KERNEL)(x)))


class _Conv(nn.Module):
    """Convolution over time, padded with zeros: `[horizon, n] -> [horizon / stride, width]`.

    One product of matrices: on CPUs several times as fast as XLA's own convolution, above all its
    gradient. Over a long horizon it's that of `x` and all taps of the kernel side by side, whose
    results are shifted and added; over a short one, of each time's neighbours side by side, which
    takes more copies of `x`, but none of the kernel.
    """

    width: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (horizon, n), size, half = x.shape, self.size, self.size // 2
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, n, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        if horizon < size or self.stride > 1:
            padded = jnp.pad(x, ((half, half), (0, 0)))
            taps = [padded[j : j + horizon : self.stride] for j in range(size)]
            return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, self.width) + bias
        total, products = bias, x @ kernel.transpose(1, 0, 2).reshape(n, -1)
        for shift, y in zip(range(half, -half - 1, -1), jnp.split(products, size, -1), strict=True):
            kept = y[max(-shift, 0) : horizon - max(shift, 0)]
            total += jnp.pad(kept, ((max(shift, 0), max(-shift, 0)), (0, 0)))
        return total


class _Double(nn.Module):
    """Transposed convolution of kernel 4 and stride 2: `[horizon, n] -> [2 horizon, n]`.

    Each pair of neighbours `x[t - 1], x[t]` makes the rows `2 t - 1` and `2 t`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        padded = jnp.pad(x, ((1, 1), (0, 0)))
        pairs = jnp.concatenate([padded[:-1], padded[1:]], axis=-1)
        rows = nn.Dense(2 * width, use_bias=False)(pairs).reshape(-1, width)[1:-1]
        return rows + self.param("bias", nn.initializers.zeros, (width,))


class _GroupNorm(nn.Module):
    """Each group of channels of one sample gets mean 0 and variance 1, over time as well.

    Wu and He, "Group Normalization" (arXiv 1803.08494). Time is reduced before channels, and the
    result is one factor and one summand a channel: fewer passes over `x` than Flax's own takes.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        mean, square = _group_mean(x), _group_mean(jnp.square(x))
        variance = jnp.maximum(square - jnp.square(mean), 0)
        factor = jax.lax.rsqrt(variance + _EPSILON).repeat(width // _GROUPS) * scale
        return factor * x + (bias - mean.repeat(width // _GROUPS) * factor)


def _group_mean(x: jax.Array) -> jax.Array:
    """`[horizon, width] -> [groups]`."""
    return x.mean(0).reshape(_GROUPS, -1).mean(1)


def _mish(x: jax.Array) -> jax.Array:
    """`x tanh(log(1 + exp x))` (Misra, arXiv 1908.08681), with the exponential alone."""
    e = jnp.exp(jnp.minimum(x, 20.0))  # from there on the factor is 1 in single precision
    n = e * (e + 2)
    return x * (n / (n + 2))


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
