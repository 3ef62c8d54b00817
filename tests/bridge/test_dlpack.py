"""Tensors and arrays that share memory, or mustn't: each hazard of the exchange."""

import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxrobo.bridge.dlpack import to_jax, to_torch  # noqa: E402

DTYPES = {
    torch.bool: jnp.bool_,
    torch.uint8: jnp.uint8,
    torch.int8: jnp.int8,
    torch.int16: jnp.int16,
    torch.int32: jnp.int32,
    torch.float16: jnp.float16,
    torch.bfloat16: jnp.bfloat16,
    torch.float32: jnp.float32,
}


def address(x):
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.unsafe_buffer_pointer()


def table(dtype=torch.float32):
    return torch.arange(12).reshape(3, 4).to(dtype)


@pytest.mark.parametrize(("theirs", "ours"), DTYPES.items(), ids=str)
def test_there_and_back_is_the_same_memory(theirs, ours):
    tensor = table(theirs)
    array = to_jax(tensor, copy=False)
    assert array.dtype == ours
    back = to_torch(array)
    assert back.dtype == theirs
    assert address(tensor) == address(array) == address(back)
    assert torch.equal(back, tensor)
    assert array.astype(int).tolist() == tensor.int().tolist()


@pytest.mark.parametrize(("theirs", "ours"), DTYPES.items(), ids=str)
def test_a_copy_is_nobody_elses(theirs, ours):
    tensor = table(theirs)
    array = to_jax(tensor)
    before = np.array(array)
    tensor.zero_()
    np.testing.assert_array_equal(array, before)
    assert array.dtype == ours
    own = to_torch(array, copy=True)
    own.zero_()
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("theirs", "ours"), [(torch.int64, jnp.int32), (torch.float64, jnp.float32)]
)
def test_64_bits_become_32(theirs, ours):
    tensor = table(theirs)
    array = to_jax(tensor, copy=False)
    assert (array.dtype, array.tolist()) == (ours, tensor.tolist())
    tensor.zero_()
    assert array[2, 3] == 11  # a copy, asked for or not


def test_64_bits_stay_with_x64():
    with jax.enable_x64(True):
        tensor = table(torch.int64)
        array = to_jax(tensor, copy=False)
        assert array.dtype == jnp.int64
        assert address(array) == address(tensor)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_beyond_32_bits_are_an_error(value):
    edge = torch.tensor([2**31 - 1, -(2**31)])
    assert to_jax(edge).tolist() == edge.tolist()
    with pytest.raises(OverflowError, match=rf"\['ids'\] holds {value}, which 32 bits don't"):
        to_jax({"ids": torch.tensor([0, value])})


@pytest.mark.parametrize(
    ("cut", "shared"),
    [
        (lambda x: x[0].T, True),
        (lambda x: x.permute(2, 0, 1), True),
        (lambda x: x[:, 1:], False),
        (lambda x: x[::2], False),
        (lambda x: x[:1].expand(5, 8, 4), False),
        (lambda x: x.flip(0), False),
        (lambda x: x[0, 0, 0], True),
        (lambda x: x[:0], False),
        (lambda x: torch.complex(x, x).conj().imag, False),
    ],
    ids=[
        "transposed",
        "permuted",
        "slice",
        "steps",
        "broadcast",
        "flip",
        "scalar",
        "empty",
        "conj",
    ],
)
def test_views(cut, shared):
    whole = torch.arange(16 * 8 * 4, dtype=torch.float32).reshape(16, 8, 4)
    view = cut(whole)
    for copy in (False, True):
        array = to_jax(view, copy=copy)
        assert array.shape == tuple(view.shape)
        np.testing.assert_array_equal(array, view.resolve_neg().numpy())
        computed = jax.jit(lambda x: x + 0)(array)  # may read another order than is printed
        np.testing.assert_array_equal(computed, view.resolve_neg().numpy())
    if shared:
        assert address(to_jax(view, copy=False)) == address(view)
    assert address(to_jax(view)) != address(view) or view.numel() == 0


def test_gradients_are_left_behind():
    weight = torch.ones(3, requires_grad=True)
    np.testing.assert_array_equal(to_jax(2 * weight), [2, 2, 2])
    np.testing.assert_array_equal(to_jax(weight, copy=False), [1, 1, 1])


def test_trees_keep_their_shape():
    tree = {"policy": (torch.ones(2), [torch.zeros(1, dtype=torch.bool)]), "nothing": None}
    there = to_jax(tree)
    assert jax.tree.structure(there) == jax.tree.structure({"policy": (0, [0]), "nothing": None})
    back = to_torch(there)
    assert torch.equal(back["policy"][0], tree["policy"][0])
    assert back["nothing"] is None


def test_memory_lives_as_long_as_anyone_refers_to_it():
    array = to_jax(torch.full((1000,), 7.0), copy=False)
    gc.collect()
    rubbish = [torch.full((1000,), float(i)) for i in range(50)]
    assert (array == 7).all()
    tensor = to_torch(array * 2)
    gc.collect()
    more = [jnp.full((1000,), i) for i in range(50)]
    assert (tensor == 14).all()
    del rubbish, more


def test_an_array_that_isnt_computed_yet_is_waited_for():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.sin(y @ x), x))
    x = jnp.ones((200, 200)) / 200
    expected = np.array(slow(x))
    for _ in range(3):
        assert np.array_equal(to_torch(slow(x)).numpy(), expected)


def overwritten(device, steps):
    """As a simulator does, whose step comes while JAX still computes with what it showed."""
    buffer, read = torch.zeros(512, 512, device=device), jax.jit(lambda x: jnp.mean(x @ x) / 512)
    shared = to_jax(buffer, copy=False)
    assert address(to_torch(shared)) == address(shared) == address(buffer)
    sums = []
    for step in range(steps):
        buffer.fill_(step)
        sums.append(read(to_jax(buffer)))
        buffer.fill_(-1)
    np.testing.assert_allclose(sums, np.arange(steps) ** 2, rtol=1e-5)
    print("finished")


def test_a_buffer_that_is_overwritten_right_away_was_copied_before():
    overwritten("cpu", 30)


def run_alone(program, **environment):
    """Runs a program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.endswith("finished\n"), done.stderr[-2000:]


def jax_has_cuda():
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


@pytest.mark.skipif(not (torch.cuda.is_available() and jax_has_cuda()), reason="needs a GPU")
def test_the_same_on_cuda():
    program = "from tests.bridge.test_dlpack import overwritten; overwritten('cuda', 300)"
    run_alone(program, JAX_PLATFORMS="cuda,cpu", XLA_PYTHON_CLIENT_PREALLOCATE="false")


@pytest.mark.parametrize(("first", "shared"), [(0, True), (1, False), (8, False), (16, True)])
def test_memory_that_begins_off_a_multiple_of_64_bytes_is_copied(first, shared):
    view = torch.arange(64.0)[first : first + 20]
    array = to_jax(view, copy=False)
    assert (address(array) == address(view)) == shared
    before = view.clone()
    view.zero_()
    np.testing.assert_array_equal(array, view if shared else before)


@pytest.mark.parametrize("theirs", [True, False])
def test_donating_what_torch_refers_to_leaves_it_as_it_was(theirs):
    """JAX knows that memory isn't its own alone, and takes other memory for the result."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.arange(1000.0)
    tensor = torch.arange(1000.0) if theirs else to_torch(array)
    array = to_jax(tensor, copy=False) if theirs else array
    result = add(array)
    assert array.is_deleted() == theirs
    assert address(result) != address(tensor)
    np.testing.assert_array_equal(result, np.arange(1000.0) + 1)
    assert torch.equal(tensor, torch.arange(1000.0))


def test_arrays_on_several_devices_are_refused():
    program = """
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jaxrobo.bridge.dlpack import to_torch

        whole = jnp.arange(8.0)
        spread = NamedSharding(jax.make_mesh((2,), ("d",)), P("d"))
        try:
            to_torch({"obs": jax.device_put(whole, spread)})
        except ValueError as error:
            assert "['obs'] is spread over 2 devices, expected one" in str(error), error
            assert to_torch(jax.device_put(whole, jax.devices()[1]))[7] == 7
            print("finished")
    """
    run_alone(program, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_what_shares_memory_shows_what_is_written():
    """Why nothing that lasts may be shared: the array changes under JAX's hands."""
    tensor = torch.zeros(64)
    array = to_jax(tensor, copy=False)
    tensor.fill_(3)
    assert np.asarray(array)[0] == 3
    back = to_torch(array)
    back += 1
    assert (np.asarray(array)[0], tensor[0]) == (4, 4)


@pytest.mark.parametrize(
    ("convert", "tree", "error", "message"),
    [
        (
            to_jax,
            {"obs": np.ones(2)},
            TypeError,
            r"\['obs'\] is a ndarray, expected a torch tensor",
        ),
        (to_jax, 1.0, TypeError, "the tree is a float, expected a torch tensor"),
        (to_torch, [np.ones(2)], TypeError, r"\[0\] is a ndarray, expected a JAX array"),
        (to_torch, {"key": jax.random.key(0)}, TypeError, r"\['key'\] is a PRNG key"),
        (to_torch, jnp.ones(2, jnp.int4), TypeError, "the tree, int4, can't become a tensor"),
        (to_jax, torch.ones(2, device="meta"), ValueError, "is on meta, but JAX runs on cpu"),
        (to_jax, torch.ones(1).to(torch.uint64), TypeError, "is uint64, which needs jax_enable_x6"),
        (to_jax, torch.eye(2).to_sparse(), TypeError, "is sparse, expected a dense tensor"),
    ],
)
def test_what_cant_be_exchanged_is_named(convert, tree, error, message):
    with pytest.raises(error, match=message):
        convert(tree)
