"""Thousands of calls of the native engine, at many sizes: nothing leaks, nothing drifts."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics

CALLS = {1: 18_000, 3: 6_000, 16: 4_500, 128: 1_300, 1024: 180, 8192: 20}
"""How often, by the number of simulations; 3 * 10^4 in all."""

PENDULUM = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom name="wall" type="plane" size="1 1 1" zaxis="1 0 0" pos="-0.1 0 0"/>
    <body pos="0 0 1"><joint name="hinge" axis="0 1 0" damping="0.01"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.2"/></body>
  </worldbody>
  <actuator><motor joint="hinge" gear="0.1"/></actuator>
</mujoco>
"""


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_thirty_thousand_calls_leave_memory_flat_and_results_the_same():
    assert sum(CALLS.values()) == 30_000
    physics = make_physics(mujoco.MjModel.from_xml_string(PENDULUM), "native")

    def run(state, steps):
        def step(_, state):
            one = lambda s: physics.step(s, {"ctrl": -s.qvel[:1]}, 1)[0]
            return jax.vmap(one)(state)

        return jax.lax.fori_loop(0, steps, step, state)

    run = jax.jit(run)
    starts = {n: jax.vmap(lambda _: physics.init())(jnp.arange(n)) for n in CALLS}
    for n in CALLS:  # compiles, and fills the pool of batches
        run(starts[n], 2)
    jax.effects_barrier()
    before, first = resident(), {}
    for _ in range(2):  # two halves, the sizes taking turns
        for n, calls in CALLS.items():
            end = jax.block_until_ready(run(starts[n], calls // 2))
            assert np.isfinite(end.qpos).all()
            assert (np.asarray(end.qpos) == np.asarray(end.qpos)[0]).all()
            np.testing.assert_array_equal(first.setdefault(n, end.qpos), end.qpos)
    assert resident() - before < 9.6e6  # 320 bytes a call
