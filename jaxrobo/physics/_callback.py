"""A host call inside jit that batches under `vmap` and never deadlocks.

`jax.pure_callback` puts its inputs on the device *inside* the callback and then waits for that
copy. The copy needs a thread of the pool that the callbacks occupy, so programs with several
devices, or one core, hang as soon as the arguments exceed about 100 kB. The primitive here hands
the host function the numpy views that the runtime already has. This is the only file that touches
private JAX API.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.callback import _callback_op_sharding
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

HostFunction = Callable[..., Sequence[np.ndarray]]


def host_call(
    fn: HostFunction, out: Sequence[jax.ShapeDtypeStruct], *args: jax.Array
) -> list[jax.Array]:
    """Calls `fn` on the host from inside a JAX program, once for a whole batch.

    Written for one sample. Every enclosing `vmap` adds a leading axis; `fn` sees them flattened
    into one.

    Args:
      fn: a pure, hashable, thread-safe function: XLA may drop, hoist or repeat its calls, and run
        several at once. It receives numpy arrays `[n, *arg.shape]`, read-only, and returns arrays
        `[n, *out.shape]`, where `n` is the number of samples (1 without `vmap`).
      out: shape and dtype of each result, for one sample.
      *args: arrays of one sample.

    Returns:
      The results, one array for each entry of `out`.

    Raises:
      NotImplementedError: when differentiated with respect to `args`.
    """
    return _host_call_p.bind(*map(jnp.asarray, args), fn=fn, out=tuple(out), lead=())


_host_call_p = Primitive("host_call")
_host_call_p.multiple_results = True


def _flat_call(*args: Any, fn: HostFunction, out: tuple, lead: tuple[int, ...]) -> tuple:
    """Runs `fn` with all leading axes flattened into one, and unflattens the results."""
    n = int(np.prod(lead, dtype=np.int64))
    flat = [np.asarray(a).reshape((n, *np.shape(a)[len(lead) :])) for a in args]
    return tuple(
        np.asarray(r, o.dtype).reshape((*lead, *o.shape))
        for r, o in zip(fn(*flat), out, strict=True)
    )


@_host_call_p.def_impl
def _impl(*args: Any, **params: Any) -> list[jax.Array]:
    return [jnp.asarray(r) for r in _flat_call(*args, **params)]


@_host_call_p.def_abstract_eval
def _abstract(*args: Any, fn: HostFunction, out: tuple, lead: tuple[int, ...]) -> list:
    return [jax.core.ShapedArray((*lead, *o.shape), o.dtype) for o in out]


def _batch(args: Sequence, dims: Sequence, *, fn: HostFunction, out: tuple, lead: tuple) -> tuple:
    n = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    full = [
        jnp.broadcast_to(a, (n, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, dims, strict=True)
    ]
    return _host_call_p.bind(*full, fn=fn, out=out, lead=(n, *lead)), [0] * len(out)


def _jvp(primals: Sequence, tangents: Sequence, **params: Any) -> tuple:
    if not all(isinstance(t, ad.Zero) for t in tangents):
        raise NotImplementedError(
            "the native engine runs on the host and has no derivative; apply jax.lax.stop_gradient "
            'to the state and the inputs, or use engine="mjx" (in reverse mode without '
            "constraints, or with iterations and ls_iterations of the model at 1)"
        )
    outs = _host_call_p.bind(*primals, **params)
    return outs, [ad.Zero.from_primal_value(o) for o in outs]


def _lower(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
    sharding = _callback_op_sharding(ctx.module_context.axis_context, None, ctx.avals_out)
    results, _, _ = mlir.emit_python_callback(
        ctx,
        partial(_flat_call, **params),
        None,
        list(args),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
        sharding=sharding,
    )
    return results


batching.primitive_batchers[_host_call_p] = _batch
ad.primitive_jvps[_host_call_p] = _jvp
mlir.register_lowering(_host_call_p, _lower, cacheable=False)
