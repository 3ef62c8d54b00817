"""The UNet against an implementation in numpy, and against its parameters counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxrobo.networks import ConditionalUNet1D, step_embedding

WIDTHS = (8, 16, 24)
HORIZON, ACTION, CONDITION = 8, 3, 5
UNET = ConditionalUNet1D(WIDTHS)
apply = jax.jit(UNET.apply)


@pytest.fixture(scope="module")
def params():
    """Random everywhere: biases and norms that are zeros and ones would hide mistakes."""
    chunk, condition = jnp.zeros((HORIZON, ACTION)), jnp.zeros(CONDITION)
    shapes = jax.eval_shape(UNET.init, jax.random.key(0), chunk, 0, condition)
    rng = np.random.default_rng(0)
    draw = lambda x: rng.standard_normal(x.shape, np.float32) / np.sqrt(x.shape[0])
    return jax.tree.map(draw, shapes)


def samples(count):
    rng = np.random.default_rng(1)
    chunks = rng.standard_normal((count, HORIZON, ACTION), np.float32)
    return chunks, np.arange(count) * 7, rng.standard_normal((count, CONDITION), np.float32)


def count(widths, action, condition):
    unet = ConditionalUNet1D(widths)
    args = jnp.zeros((32, action)), jnp.zeros(()), jnp.zeros(condition)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *args)
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_the_parameters_of_robust_rearrangements_widths():
    """Observation 58, action 10, step embedding 256, so FiLM reads 314. With n in, m out, a block
    has 5nm + 5m² + 2 (m + 2m) + 314 · 2m + 2m = 5nm + 5m² + 636m, and nm + m where n isn't m.
    """
    block = lambda n, m: 5 * n * m + 5 * m * m + 636 * m + (n != m) * (n * m + m)
    conv = lambda kernel, n, m: kernel * n * m + m
    step = conv(1, 256, 1024) + conv(1, 1024, 256)
    down = block(10, 256) + block(256, 256) + conv(3, 256, 256)
    down += block(256, 512) + block(512, 512) + conv(3, 512, 512)
    down += block(512, 1024) + block(1024, 1024)
    middle = 2 * block(1024, 1024)
    up = block(2 * 1024, 512) + block(512, 512) + conv(4, 512, 512)
    up += block(2 * 512, 256) + block(256, 256) + conv(4, 256, 256)
    last = conv(5, 256, 256) + 2 * 256 + conv(1, 256, 10)
    assert (step, down, middle, up, last) == (525568, 27856384, 22274048, 15068672, 331018)
    assert count((256, 512, 1024), 10, 58) == step + down + middle + up + last == 66_055_690


@pytest.mark.parametrize(
    ("widths", "horizon"), [((32, 64, 128), 32), ((64, 128, 256), 16), ((8,), 5), ((8, 8), 2)]
)
def test_a_chunk_keeps_its_shape(widths, horizon):
    unet, chunk = ConditionalUNet1D(widths), jnp.zeros((horizon, 10))
    call = lambda key: unet.init_with_output(key, chunk, 3, jnp.zeros(58))[0]
    out = jax.eval_shape(call, jax.random.key(0))
    assert (out.shape, out.dtype) == ((horizon, 10), jnp.float32)


def test_the_network_equals_its_implementation_in_numpy(params):
    for chunk, step, condition in zip(*samples(3), strict=True):
        expected = reference(params["params"], chunk, step, condition)
        got = apply(params, chunk, step, condition)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_batch_equals_a_loop(params):
    """No sample is normalised by another's statistics."""
    chunks, steps, conditions = samples(4)
    chunks[0] *= 100
    batch = jax.jit(jax.vmap(UNET.apply, (None, 0, 0, 0)))(params, chunks, steps, conditions)
    loop = [apply(params, *args) for args in zip(chunks, steps, conditions, strict=True)]
    np.testing.assert_allclose(batch, np.stack(loop), rtol=1e-4, atol=1e-4)


def test_step_and_condition_act_through_film_alone(params):
    (chunk, _), _, (condition, other) = samples(2)
    base = apply(params, chunk, 3, condition)
    assert np.abs(apply(params, chunk, 3, other) - base).max() > 0.01
    assert np.abs(apply(params, chunk, 60, condition) - base).max() > 0.01
    deaf = traverse_util.path_aware_map(
        lambda path, x: jnp.zeros_like(x) if "film" in path else x, params
    )
    base = apply(deaf, chunk, 3, condition)
    np.testing.assert_array_equal(apply(deaf, chunk, 60, other), base)


def test_step_embedding():
    """Frequencies are 10000^(-i / (n - 1)), i = 0 .. n - 1: for n = 3 1, 0.01 and 0.0001."""
    angles = 20 * np.array([1, 1e-2, 1e-4])
    expected = [*np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(step_embedding(jnp.asarray(20), 6), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "chunk", "condition", "message"),
    [
        ((8, 16, 24), (6, 3), (5,), "horizon must be a multiple of 4 for 3 levels, got 6"),
        ((8, 16), (0, 3), (5,), "horizon must be a multiple of 2 for 2 levels, got 0"),
        ((8, 20), (8, 3), (5,), r"widths must be multiples of 8, got \(8, 20\)"),
        ((), (8, 3), (5,), r"widths must be multiples of 8, got \(\)"),
        ((8, 16), (4, 8, 3), (4, 5), r"ranks \(2, 0, 1\), got \(3, 0, 2\); use jax.vmap"),
    ],
)
def test_refusals(widths, chunk, condition, message):
    unet = ConditionalUNet1D(widths)
    with pytest.raises(ValueError, match=message):
        unet.init(jax.random.key(0), jnp.zeros(chunk), 0, jnp.zeros(condition))


def reference(p, chunk, step, condition):
    """The network in numpy, in double precision."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    films = iter(film(p["film"], step, condition))
    block = lambda x, name: residual_block(p[name], x, *next(films))
    blocks = lambda x, name: block(block(x, f"{name}_0"), f"{name}_1")
    down0 = blocks(chunk, "down0")
    down1 = blocks(conv(p["halve0"], down0, 3)[::2], "down1")
    down2 = blocks(conv(p["halve1"], down1, 3)[::2], "down2")
    x = blocks(np.concatenate([blocks(down2, "middle"), down2], 1), "up2")
    x = blocks(np.concatenate([double(p["double2"], x), down1], 1), "up1")
    return dense(p["out"], conv_block(p["last"], double(p["double1"], x)))


def film(p, step, condition):
    """Scale and shift of each block, in the order of the blocks."""
    angles = step * 10_000.0 ** (-np.arange(128) / 127)
    hidden = dense(p["encode_0"], np.concatenate([np.sin(angles), np.cos(angles)]))
    said = np.concatenate([dense(p["encode_1"], mish(hidden)), condition])
    kernel = np.concatenate([p["step"]["kernel"], p["condition"]["kernel"]])
    parts = mish(said) @ kernel + p["step"]["bias"]
    for width in (8, 8, 16, 16, 24, 24, 24, 24, 16, 16, 8, 8):
        yield parts[:width], parts[width : 2 * width]
        parts = parts[2 * width :]


def residual_block(p, x, scale, shift):
    y = conv_block(p["_ConvBlock_0"], x)
    y = conv_block(p["_ConvBlock_1"], y * (1 + scale) + shift)
    return y + (dense(p["residual"], x) if "residual" in p else x)


def conv_block(p, x):
    groups = conv(p["_Conv_0"], x, 5).reshape(len(x), 8, -1)
    mean, var = groups.mean((0, 2), keepdims=True), groups.var((0, 2), keepdims=True)
    y = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(len(x), -1)
    return mish(y * p["_GroupNorm_0"]["scale"] + p["_GroupNorm_0"]["bias"])


def conv(p, x, size):
    """Row t is the sum over j of x[t + j - size // 2] @ kernel[j]."""
    kernel = p["kernel"]
    x = np.pad(x, ((size // 2, size // 2), (0, 0)))
    length = len(x) - size + 1
    return p["bias"] + sum(x[j : j + length] @ k for j, k in enumerate(kernel))


def double(p, x):
    """The transpose of a convolution of kernel 4, stride 2: row t adds to rows 2t-1 .. 2t+2."""
    n = x.shape[1]
    (odd_after, even_after), (odd, even) = p["Dense_0"]["kernel"].reshape(2, n, 2, n).swapaxes(1, 2)
    y = np.zeros((2 * len(x) + 2, n))
    for j, kernel in enumerate([odd, even, odd_after, even_after]):
        y[j : j + 2 * len(x) : 2] += x @ kernel
    return y[1:-1] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def mish(x):
    return x * np.tanh(np.logaddexp(0, x))
