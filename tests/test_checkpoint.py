import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import checkpoint
from jaxrobo.checkpoint import RunError, Writer, fingerprint, load, newest, save


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def example():
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "empty": jnp.zeros((4, 0)),
        "flag": jnp.array([True, False]),
        "count": jnp.int32(-7),
        "half": jnp.array([1.5, np.nan], jnp.bfloat16),
        "tiny": jnp.array([1e-45, -0.0, np.inf], jnp.float32),
        "nested": [Pair(jnp.arange(6).reshape(2, 3), jnp.float32(0.1)), None, ()],
        "a/b": jnp.uint8(255),
    }


def bits(tree):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [(str(x.dtype), np.asarray(data(x)).tobytes()) for x in jax.tree.leaves(tree)]


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, example(), {"iteration": 3, "scores": [0.5, None]})
    tree, info = load(tmp_path, jax.eval_shape(example))
    assert jax.tree.structure(tree) == jax.tree.structure(example())
    assert bits(tree) == bits(example())
    assert info == {"iteration": 3, "scores": [0.5, None]}
    np.testing.assert_array_equal(
        jax.random.normal(tree["keys"][1]), jax.random.normal(example()["keys"][1])
    )


def test_a_path_may_lead_up_again_or_start_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(Path("../there"), {"x": jnp.float32(4)}, {})
    assert newest(tmp_path / "there").name == "1"
    for folder in (Path("../there"), tmp_path / "here/../there"):
        assert load(folder, {"x": jnp.float32(0)})[0]["x"] == 4


def test_the_newest_stays_and_older_ones_go(tmp_path):
    for i in range(3):
        save(tmp_path, {"x": jnp.float32(i)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    assert load(tmp_path, {"x": jnp.float32(0)})[0]["x"] == 2


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, {"x": jnp.float32(1)}, {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")  # never renamed
    assert load(tmp_path, {"x": jnp.float32(0)})[0]["x"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_remove_all_but", lambda *_: None)  # killed before it removes
        shutil.rmtree(tmp_path / "2.orbax-checkpoint-tmp")
        save(tmp_path, {"x": jnp.float32(2)}, {})
    (tmp_path / "1" / "state" / "manifest.ocdbt").unlink()  # or while it removes
    assert load(tmp_path, {"x": jnp.float32(0)})[0]["x"] == 2
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    save(tmp_path, {"x": jnp.float32(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["3"]


def _delete(path):
    path.unlink()


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _flip(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 255
    path.write_bytes(content)


# What tensorstore still reads of a damaged checkpoint may end after orbax has closed its loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_delete, _truncate, _empty, _flip])
def test_damage_is_noticed_or_harmless(tmp_path, damage):
    tree = {"w": jnp.arange(1000.0), "b": jnp.ones(3)}
    save(tmp_path / "whole", tree, {})
    messages = []
    for file in sorted(p for p in (tmp_path / "whole").rglob("*") if p.is_file()):
        shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        damage(tmp_path / "copy" / file.relative_to(tmp_path / "whole"))
        try:
            restored, _ = load(tmp_path / "copy", tree)
        except RunError as error:
            messages.append(str(error))
        else:
            assert bits(restored) == bits(tree)
        shutil.rmtree(tmp_path / "copy")
    assert len(messages) >= 4
    for message in messages:
        assert "is damaged, or not one of ours" in message
        assert len(message) < 200 + len(str(tmp_path))


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(tmp_path, monkeypatch):
    save(tmp_path, {"x": jnp.zeros(3)}, {"n": 1})
    restore = checkpoint._restore

    def late(path, *what):
        if path.name == "1":  # as if the run had just gone on
            save(tmp_path, {"x": jnp.ones(3)}, {"n": 2})
        return restore(path, *what)

    monkeypatch.setattr(checkpoint, "_restore", late)
    tree, info = load(tmp_path, {"x": jnp.zeros(3)})
    assert info == {"n": 2}
    np.testing.assert_array_equal(tree["x"], 1)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(RunError, match="there is no checkpoint in"):
        load(tmp_path / "nowhere", {})
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "notes.txt").write_text("something else")
    with pytest.raises(RunError, match="damaged, or not one of ours"):
        load(tmp_path, {"x": jnp.zeros(3)})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"x": jnp.zeros(4), "n": 1.0}, r"x is float32 \[3\], expected float32 \[4\]"),
        ({"x": jnp.zeros(3, int), "n": 1.0}, r"x is float32 \[3\], expected int32 \[3\]"),
        ({"x": jnp.zeros(3), "n": 1.0, "y": {"z": 1.0}}, r"y/z is nothing, expected float32"),
        ({"x": jnp.zeros(3)}, r"n is float32 \[\], expected nothing"),
    ],
)
def test_another_structure_is_refused_by_the_name_of_a_leaf(tmp_path, template, message):
    save(tmp_path, {"x": jnp.zeros(3), "n": jnp.float32(1)}, {})
    with pytest.raises(RunError, match=message):
        load(tmp_path, template)


def test_what_is_written_is_what_was_there_when_write_returned(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    x = {"x": jnp.arange(1_000_000.0)}
    with Writer() as writer:
        for i in range(3):
            writer.write((tmp_path / "a", x, {"i": i}), (tmp_path / "b", x, {"i": i}))
            x = overwrite(x)
    for name in ("a", "b"):
        tree, info = load(tmp_path / name, x)
        assert info == {"i": 2}
        np.testing.assert_array_equal(tree["x"], np.arange(1_000_000.0) + 2)


def test_an_error_while_writing_surfaces(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), Writer() as writer:
        writer.write((tmp_path / "file", {"x": jnp.zeros(3)}, {}))


def test_restored_arrays_can_be_donated(tmp_path):
    save(tmp_path, {"x": jnp.arange(1000.0)}, {})
    tree, _ = load(tmp_path, {"x": jnp.zeros(1000)})
    np.testing.assert_array_equal(
        jax.jit(lambda t: t["x"] + 1, donate_argnums=0)(tree), np.arange(1000.0) + 1
    )


def test_fingerprint_tells_names_types_shapes_and_contents_apart():
    trees = [
        {"x": jnp.zeros(4)},
        {"y": jnp.zeros(4)},
        {"x": jnp.zeros(4, int)},
        {"x": jnp.zeros((2, 2))},
        {"x": jnp.array([0.0, 0, 0, -0.0])},
        {"x": jax.random.key(0)},
        (),
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)
    assert fingerprint(trees[0]) == fingerprint({"x": np.zeros(4, np.float32)})


def test_newest_counts_as_numbers_do(tmp_path):
    for name in ("9", "10", "x", "11.tmp"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path).name == "10"
