"""The host call inside jit: how it batches, what it refuses, and that it never deadlocks."""

import os
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.physics._callback import host_call

ROW = jax.ShapeDtypeStruct((3,), jnp.float32)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


class Host:
    """Affine on each row, `a * x + b`, and notes the number of rows of each call."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, a, b):
        self.rows.append(len(x))
        assert isinstance(x, np.ndarray)
        return a[:, None] * x + b[:, None], np.sum(x, axis=1)


@pytest.fixture
def host():
    return Host()


def affine(host, x, a=2.0, b=1.0):
    """`(a x + b, sum x)` of one sample `x [3]`."""
    return host_call(host, [ROW, SCALAR], x, jnp.float32(a), jnp.float32(b))


def grid(*lead):
    return jnp.arange(np.prod((*lead, 3)), dtype=jnp.float32).reshape(*lead, 3)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_calls_with_one_row_without_vmap(host, wrap):
    y, total = wrap(lambda x: affine(host, x))(grid())
    np.testing.assert_array_equal(y, [1.0, 3.0, 5.0])
    assert total == 3.0
    assert host.rows == [1]


def test_vmap_is_one_call_with_a_row_a_sample(host):
    x = grid(5)
    y, total = jax.jit(jax.vmap(lambda x: affine(host, x)))(x)
    np.testing.assert_array_equal(y, 2 * x + 1)
    np.testing.assert_array_equal(total, x.sum(1))
    assert host.rows == [5]


def test_nested_vmap_flattens_into_one_axis_in_row_major_order(host):
    x, a = grid(4, 5), jnp.arange(4.0)
    f = jax.vmap(jax.vmap(lambda x, a: affine(host, x, a), (0, None)), (0, 0))
    y, _ = jax.jit(f)(x, a)
    np.testing.assert_array_equal(y, a[:, None, None] * x + 1)
    assert host.rows == [20]


def test_unbatched_arguments_and_other_axes_are_broadcast_and_moved(host):
    x = grid(4)
    y = jax.vmap(lambda x, b: affine(host, x, b=b)[0], (1, None), out_axes=1)(x.T, 7.0)
    np.testing.assert_array_equal(y, (2 * x + 7).T)
    assert host.rows == [4]


def test_scan_calls_once_a_step_for_the_whole_batch(host):
    def run(x):
        return jax.lax.scan(lambda x, _: (affine(host, x)[0], x), x, length=4)

    last, before = jax.jit(jax.vmap(run))(grid(6))
    np.testing.assert_array_equal(last, 16 * grid(6) + 15)  # x -> 2x + 1 four times
    np.testing.assert_array_equal(before[:, 3], 8 * grid(6) + 7)
    assert host.rows == [6] * 4


def test_cond_on_an_unbatched_predicate_calls_only_when_taken(host):
    def step(x, flag):
        y = jax.lax.cond(flag, lambda x: affine(host, x)[0], lambda x: x, x)
        return y, None

    flags = jnp.array([False, True, False, True])
    run = jax.jit(jax.vmap(lambda x: jax.lax.scan(step, x, flags)[0]))
    np.testing.assert_array_equal(run(grid(2)), 4 * grid(2) + 3)
    assert host.rows == [2, 2]


def test_two_functions_and_several_batch_sizes_live_in_one_program():
    first, second = Host(), Host()

    def program(x, y):
        a = jax.vmap(lambda x: affine(first, x)[0])(x)
        b = jax.vmap(lambda y: affine(second, y, a=3.0)[0])(y)
        c = jax.vmap(lambda y: affine(first, y, a=-1.0)[0])(y)
        return a, b, c

    x, y = grid(2), grid(7)
    for got, want in zip(jax.jit(program)(x, y), (2 * x + 1, 3 * y + 1, 1 - y), strict=True):
        np.testing.assert_array_equal(got, want)
    assert sorted(first.rows) == [2, 7]
    assert second.rows == [7]


def test_results_keep_their_declared_dtypes():
    def fn(flag, count):
        return ~flag, count + 1, count / 2.0  # float64 on the host

    out = [jax.ShapeDtypeStruct((), t) for t in (jnp.bool_, jnp.int32, jnp.float32)]
    call = jax.jit(lambda f, c: host_call(fn, out, f, c))
    flag, count, half = call(jnp.array(True), jnp.array(3))
    assert (flag.dtype, count.dtype, half.dtype) == (jnp.bool_, jnp.int32, jnp.float32)
    assert (bool(flag), int(count), float(half)) == (False, 4, 1.5)


def test_an_unused_result_is_not_computed(host):
    jax.jit(lambda x: (affine(host, x), x)[1])(grid())
    assert host.rows == []


def test_gradient_through_the_call_is_refused_with_advice(host):
    with pytest.raises(NotImplementedError, match="stop_gradient"):
        jax.grad(lambda x: affine(host, x)[1])(grid())


def test_gradient_around_the_call_is_exact(host):
    def loss(w, x):  # L = sum(w * (2 x + 1)), of which the call is a constant
        y, _ = affine(host, jax.lax.stop_gradient(w * x))
        return jnp.sum(w * y)

    w, x = jnp.array([1.0, 2.0, 3.0]), grid()
    expected = 2 * w * x + 1
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(w, x), expected)
    tangent = jax.jvp(lambda w: loss(w, x), (w,), (jnp.ones(3),))[1]
    assert tangent == expected.sum()


def test_an_exception_on_the_host_surfaces_with_its_text():
    def fails(x):
        raise ValueError("the host gave up at row 7")

    call = jax.jit(lambda x: host_call(fails, [SCALAR], x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the host gave up at row 7"):
        jax.block_until_ready(call(jnp.zeros(())))


def test_calls_from_several_threads_overlap():
    """Every call waits until all three have entered the host function."""
    barrier = threading.Barrier(3, timeout=60)

    def meet(x):
        barrier.wait()
        return (x + 1,)

    call = jax.jit(lambda x: host_call(meet, [SCALAR], x)[0])
    compiled = call.lower(jnp.zeros(())).compile()
    results = {}

    def work(i):
        results[i] = float(compiled(jnp.float32(i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert results == {0: 1.0, 1: 2.0, 2: 3.0}


# In these settings jax.pure_callback hangs for ever: 4,096 simulations, 295 kB of qpos a device.

_SIMULATE = """
    import jax, jax.numpy as jnp, mujoco, numpy as np
    from jaxrobo.physics import make_physics

    body = '<body><freejoint/><geom size="0.1" mass="1"/></body>'
    option = '<option gravity="0 0 -10"><flag contact="disable"/></option>'
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{option}<worldbody>{body * 6}</worldbody></mujoco>"
    )
    physics = make_physics(model, "native")
    speed = jnp.linspace(-1.0, 1.0, 4096)

    def run(v, steps=3):
        state = physics.init(qvel=jnp.zeros(model.nv).at[0].set(v))
        step = lambda s, _: (physics.step(s)[0], None)
        return jax.lax.scan(step, state, length=steps)[0].qpos

    def check(qpos, steps=3):
        qpos, t = np.asarray(qpos).reshape(4096, 6, 7), steps * model.opt.timestep
        np.testing.assert_allclose(qpos[:, 0, 0], speed * t, atol=1e-6)
        fallen = -10 * model.opt.timestep * t * (steps + 1) / 2  # semi-implicit Euler
        np.testing.assert_allclose(qpos[:, :, 2], fallen, rtol=1e-4)
"""


def _run_alone(program, before="", **environment):
    """Runs a program in a process of its own; fails if it takes more than two minutes."""
    code = "\n".join(textwrap.dedent(part) for part in (before, _SIMULATE, program))
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint('finished')"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "finished\n", done.stderr[-2000:]


def test_4096_simulations_on_two_devices():
    program = """
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

        assert jax.device_count() == 2
        mesh = Mesh(jax.devices(), "d")
        batch = jax.vmap(run)
        check(jax.jit(jax.shard_map(batch, mesh=mesh, in_specs=P("d"), out_specs=P("d"),
                                    check_vma=False))(speed))
        check(jax.pmap(batch)(speed.reshape(2, 2048)))
        check(jax.jit(batch)(jax.device_put(speed, NamedSharding(mesh, P("d")))))
    """
    _run_alone(program, XLA_FLAGS="--xla_force_host_platform_device_count=2")


@pytest.mark.skipif(sys.platform != "linux", reason="sets the affinity of a process")
def test_4096_simulations_on_one_core():
    program = """
        batch = jax.jit(jax.vmap(run))
        x = speed
        for _ in range(6):  # dispatched while their inputs are pending
            x = 0.0 * batch(x)[:, 0] + speed
        check(batch(x))
    """
    one_core = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    _run_alone(program, before=one_core)
