"""Checkpoints: pytrees on disk, written whole or not at all, and read back bit for bit.

A series of checkpoints is a folder with numbered ones in it. Only the newest is kept, and its
predecessor is deleted only when it's complete: a kill at any moment, also while writing, leaves one
that loads.
"""

import concurrent.futures
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

T = TypeVar("T")


class RunError(ValueError):
    """Why a run can't start, go on or be read; the message is for its user."""


class Writer:
    """Writes checkpoints in a thread of its own; a context manager, at whose end all is written."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: concurrent.futures.Future | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        self._wait()

    def write(self, *checkpoints: tuple[Path, Any, Mapping[str, Any]]) -> None:
        """Writes some checkpoints in this order, each given by the arguments of `save`.

        Returns when the trees are copied: their buffers may be donated from then on.
        """
        self._wait()  # so that one call's copies are in memory at most
        jobs = [(folder, _snapshot(tree), info) for folder, tree, info in checkpoints]
        self._running = self._pool.submit(lambda: [_save(*job) for job in jobs])

    def _wait(self) -> None:
        """Waits for what is being written, and raises what went wrong with it."""
        if self._running is not None:
            self._running.result()


def save(folder: Path, tree: Any, info: Mapping[str, Any]) -> None:
    """Adds a checkpoint to a series, then removes the older ones.

    Args:
      folder: the series.
      tree: a pytree of arrays and typed PRNG keys.
      info: what JSON can hold.
    """
    _save(folder, _snapshot(tree), info)


def load(folder: Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """Reads the newest checkpoint of a series.

    Args:
      folder: the series.
      template: a pytree of the same structure, of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The tree, in arrays of its own on the default device, and the `info` that was saved with it.

    Raises:
      RunError: if there is none, it's damaged, or holds something else than `template`.
    """
    path, (leaves, digest, info) = _of_newest(folder, _restore_meta)
    named = _named(template)
    blank = {k: np.empty(s.shape, s.dtype) for k, s in jax.eval_shape(_key_data, named).items()}
    if leaves != (expected := _describe(named)):
        raise RunError(f"{path} holds something else: {_difference(leaves, expected)}")
    stored = _without_empty(blank)
    try:
        _read_through(path / "state", stored)
        data = blank | _restore(path, "state", ocp.args.StandardRestore(stored))
    except Exception as error:
        if newest(folder) != path:
            return load(folder, template)
        raise _damaged(path, error) from error
    if _digest(_Snapshot(leaves, data)) != digest:
        raise _damaged(path, "its contents don't match their checksum")
    arrays = [_like(leaf, data[k]) for k, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(template), arrays), info


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a series, if there is one."""
    numbered = [p for p in folder.glob("*") if p.name.isdecimal()]
    return max(numbered, key=lambda p: int(p.name), default=None)


def stored_fingerprint(folder: Path) -> str:
    """The `fingerprint` of what the newest checkpoint of a series holds, as it was saved.

    Raises:
      RunError: if there is none, or it's damaged.
    """
    return _of_newest(folder, _restore_meta)[1][1]


def _of_newest(folder: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """The newest checkpoint and what `read` makes of it; of the next one if a run replaces it."""
    path = newest(folder)
    if path is None:
        raise RunError(f"there is no checkpoint in {folder}")
    try:
        return path, read(path)
    except Exception as error:  # orbax raises anything on files with any content
        if newest(folder) != path:
            return _of_newest(folder, read)
        raise _damaged(path, error) from error


def _restore_meta(path: Path) -> tuple[Any, str, dict[str, Any]]:
    meta = _restore(path, "meta", ocp.args.JsonRestore())
    return meta["leaves"], meta["digest"], meta["info"]


def fingerprint(tree: Any) -> str:
    """A hash of the names, types, shapes and contents of a pytree's leaves."""
    return _digest(_snapshot(tree))


class _Snapshot(NamedTuple):
    """What is written: type and shape of each leaf by its name, and its numbers on the host."""

    leaves: dict[str, list]
    data: dict[str, np.ndarray]


def _save(folder: Path, snapshot: _Snapshot, info: Mapping[str, Any]) -> None:
    previous = newest(folder)
    _remove_all_but(previous, folder)  # what a kill left half written
    path = folder / str(int(previous.name) + 1 if previous else 1)
    meta = {"leaves": snapshot.leaves, "digest": _digest(snapshot), "info": dict(info)}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(_without_empty(snapshot.data)), meta=ocp.args.JsonSave(meta)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args=items)  # elsewhere first, then renamed
    _remove_all_but(path, folder)


def _restore(path: Path, item: str, args: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path.resolve(), args=ocp.args.Composite(**{item: args}))
    return restored[item]


def _read_through(folder: Path, names: Iterable[str]) -> None:
    """Reads every array once, one by one, and raises ValueError if that's not possible.

    Orbax reads all at once: if one fails, the others' threads complain on stderr some time later.
    """
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = {key.decode() for key in store.list().result()}
    if missing := {f"{name}/.zarray" for name in names} - keys:
        raise ValueError(f"{min(missing)} is missing")
    for key in keys:
        store.read(key).result()


def _remove_all_but(kept: Path | None, folder: Path) -> None:
    """Removes other checkpoints, and unfinished ones, which orbax calls `<number>.<something>`."""
    for path in folder.glob("*"):
        if path != kept and path.name.split(".")[0].isdecimal():
            shutil.rmtree(path)


def _snapshot(tree: Any) -> _Snapshot:
    named = _named(tree)
    # np.array copies: on a CPU, device_get shows the buffer itself, which may soon be donated.
    data = {k: np.array(v) for k, v in jax.device_get(_key_data(named)).items()}
    return _Snapshot(_describe(named), data)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their path, as in "opt_state/0/mu"."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): v for path, v in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves have the same path, because a key contains '/'")
    return named


def _describe(named: Mapping[str, Any]) -> dict[str, list]:
    return {k: [str(jnp.result_type(v)), list(np.shape(v))] for k, v in named.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _key_data(named: Mapping[str, Any]) -> dict[str, Any]:
    """Typed PRNG keys as the numbers they consist of."""
    return {k: jax.random.key_data(v) if _is_key(v) else v for k, v in named.items()}


def _like(leaf: Any, data: np.ndarray) -> jax.Array:
    array = jnp.array(data)  # a copy: a borrowed buffer must not be donated
    if not _is_key(leaf):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))


def _without_empty(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Orbax refuses arrays without elements."""
    return {k: v for k, v in data.items() if v.size}


def _digest(snapshot: _Snapshot) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(snapshot.data):
        digest.update(repr((name, *snapshot.leaves[name])).encode())
        digest.update(np.ascontiguousarray(snapshot.data[name]).view(np.uint8).data)
    return digest.hexdigest()


def _difference(found: Mapping[str, list], expected: Mapping[str, list]) -> str:
    name = next(k for k in (*expected, *found) if found.get(k) != expected.get(k))
    words = [
        " ".join(map(str, leaf)) if leaf else "nothing"
        for leaf in (found.get(name), expected.get(name))
    ]
    return f"{name} is {words[0]}, expected {words[1]}"


def _damaged(path: Path, why: object) -> RunError:
    first_line = next(iter(str(why).splitlines()), type(why).__name__)
    return RunError(f"the checkpoint {path} is damaged, or not one of ours: {first_line[:120]}")
