"""Does the native engine leak or drift over very many calls?

Batches of pendulums take turns, twice: the results of both turns are the same, bit for bit, and the
table says by how much the memory that the process holds has grown (Linux only).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

from benchmarks.common import report
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


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      times: how often 3 * 10^4 calls.
      out: where to write JSON.
    """

    times: int = 10
    out: Path | None = None


def main(options: Options) -> None:
    """Prints the table."""
    calls = {n: count * options.times for n, count in CALLS.items()}
    grown, total = soak(calls), sum(calls.values())
    row: dict[str, Any] = {"calls": total, "grown, kB": grown / 1e3, "a call, B": grown / total}
    report("Memory of the native engine", [row], options.out)


def soak(calls: dict[int, int]) -> int:
    """Bytes by which memory grows over `calls`, by the number of simulations, in two turns.

    Raises:
      AssertionError: results aren't finite, or differ between simulations or turns.
    """
    physics = make_physics(mujoco.MjModel.from_xml_string(PENDULUM), "native")

    @jax.jit
    def run(state: Any, steps: int) -> Any:
        one = lambda s: physics.step(s, {"ctrl": -s.qvel[:1]}, 1)[0]
        return jax.lax.fori_loop(0, steps, lambda _, s: jax.vmap(one)(s), state)

    starts = {n: jax.vmap(lambda _: physics.init())(jnp.arange(n)) for n in calls}
    for n in calls:  # compiles, and fills the pool of batches
        run(starts[n], 2)
    jax.effects_barrier()
    before, first = _resident(), {}
    for _ in range(2):
        for n, count in calls.items():
            end = np.asarray(jax.block_until_ready(run(starts[n], count // 2)).qpos)
            assert np.isfinite(end).all()
            assert (end == end[0]).all()
            np.testing.assert_array_equal(first.setdefault(n, end), end)
    return _resident() - before


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(tyro.cli(Options))
