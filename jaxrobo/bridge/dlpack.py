"""Torch tensors to JAX arrays and back, on the device where they are.

    import jax.numpy as jnp
    import torch
    from jaxrobo.bridge.dlpack import to_jax, to_torch

    shown = torch.zeros(4, 3)
    obs = to_jax(shown)                    # a copy: its owner may write to it
    action = to_torch(jnp.tanh(obs))       # the same memory

Both take whole trees: tensors or arrays in dicts, lists and tuples. Nothing passes through the
host.

What shares memory has two masters. JAX takes it for granted that an array never changes: a tensor
whose owner writes to it again, as simulators do with their buffers in every step, must be copied
(`copy=True`, the default of `to_jax`). The copy is torch's, in the order of torch's own stream, so
that whatever torch does next comes after it. And nobody may write into a tensor that shares its
memory with a JAX array (`copy=False`, the default of `to_torch`): not with `clamp_`, not with `+=`,
which would change the array.

Memory lives as long as either side refers to it. On a CPU `to_torch` waits until the array is
computed, and a program that such an array is donated to takes other memory for its result. On CUDA
each side waits, on the device, for what the other has queued; so says the protocol, and nothing of
it has been tested on a GPU yet. JAX takes 75 % of a GPU's memory when it starts: set
XLA_PYTHON_CLIENT_PREALLOCATE=false before importing it, or the simulator finds none.
"""

from typing import Any

import jax
import jax.numpy as jnp

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"jaxrobo.bridge.dlpack needs torch ({error}): pip install torch, or what your simulator "
        "brings along"
    ) from error

_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}
"""What JAX holds in 32 bits unless jax_enable_x64 is set."""


def to_jax(tree: Any, copy: bool = True) -> Any:
    """Torch tensors as JAX arrays, on their device.

    64-bit numbers become 32-bit ones, as everywhere in JAX without x64; that's a copy, as are
    strides that JAX doesn't know (slices of a row, broadcast axes) and, on a CPU, memory that
    doesn't begin at a multiple of 64 bytes. Gradients aren't followed.

    Args:
      tree: a tree of tensors.
      copy: False shares the memory where it's possible at all. Only for tensors that nobody writes
        to as long as an array, or a program that reads it, may live.

    Raises:
      TypeError: if something in the tree isn't a tensor, or of a type that JAX doesn't have.
      ValueError: if JAX doesn't see a tensor's device.
      OverflowError: on a 64-bit integer that 32 bits don't hold.
    """
    return jax.tree.map_with_path(lambda path, x: _to_jax(path, x, copy), tree)


def to_torch(tree: Any, copy: bool = False) -> Any:
    """JAX arrays as torch tensors, on their device.

    Args:
      tree: a tree of arrays.
      copy: whether the tensors are the caller's own; if not, don't write to them.

    Raises:
      TypeError: if something in the tree isn't an array, or of a type that torch doesn't have.
      ValueError: if an array is spread over several devices.
    """
    return jax.tree.map_with_path(lambda path, x: _to_torch(path, x, copy), tree)


def _to_jax(path: tuple, tensor: Any, copy: bool) -> jax.Array:
    where = jax.tree_util.keystr(path) or "the tree"
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{where} is a {type(tensor).__name__}, expected a torch tensor")
    if tensor.layout != torch.strided:
        raise TypeError(f"{where} is sparse, expected a dense tensor")
    if tensor.device.type not in _platforms():
        raise ValueError(
            f"{where} is on {tensor.device}, but JAX runs on {', '.join(sorted(_platforms()))}: "
            "install JAX for that device, or simulate on the cpu"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    given = tensor
    if not jax.config.jax_enable_x64 and tensor.dtype == torch.uint64:
        raise TypeError(f"{where} is uint64, which needs jax_enable_x64")
    if not jax.config.jax_enable_x64 and tensor.dtype in _NARROWED:
        _check_range(where, tensor)
        tensor = tensor.to(_NARROWED[tensor.dtype])
    if not _is_dense(tensor):
        tensor = tensor.contiguous()
    if copy and tensor is given:
        tensor = tensor.clone()
    try:
        return jax.dlpack.from_dlpack(tensor)
    except (BufferError, TypeError, RuntimeError) as error:
        raise TypeError(f"{where} can't become a JAX array: {error}") from error


def _to_torch(path: tuple, array: Any, copy: bool) -> torch.Tensor:
    where = jax.tree_util.keystr(path) or "the tree"
    if not isinstance(array, jax.Array):
        raise TypeError(f"{where} is a {type(array).__name__}, expected a JAX array")
    if len(array.devices()) > 1:
        raise ValueError(f"{where} is spread over {len(array.devices())} devices, expected one")
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{where} is a PRNG key: torch has no such type")
    try:
        tensor = torch.from_dlpack(array)
    except (BufferError, TypeError, RuntimeError) as error:
        raise TypeError(f"{where}, {array.dtype}, can't become a tensor: {error}") from error
    return tensor.clone() if copy else tensor


def _check_range(where: str, tensor: torch.Tensor) -> None:
    if tensor.dtype != torch.int64 or tensor.numel() == 0:
        return
    limits = torch.iinfo(torch.int32)
    low, high = (int(x) for x in torch.aminmax(tensor))
    if low < limits.min or high > limits.max:
        worst = low if low < limits.min else high
        raise OverflowError(f"{where} holds {worst}, which 32 bits don't: set jax_enable_x64")


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in whatever order of the axes."""
    if tensor.numel() < 2:
        return tensor.is_contiguous()
    axes = [i for i in range(tensor.dim()) if tensor.shape[i] > 1]
    order = sorted(axes, key=lambda i: tensor.stride(i), reverse=True)
    expected = 1
    for axis in reversed(order):
        if tensor.stride(axis) != expected:
            return False
        expected *= tensor.shape[axis]
    return True


def _platforms() -> set[str]:
    """Where JAX runs, in torch's words."""
    return {"cpu"} | {"cuda" if d.platform == "gpu" else d.platform for d in jax.devices()}
