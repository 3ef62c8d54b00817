"""What do the bridges cost?

How long a batch of observations takes from torch to JAX and back: sharing memory, copied on the
device, and by numpy arrays on the host. And what our loop on the host takes beside the simulator
that it steps: control steps a second of PPO's collection, with simulations that take no time.

Where torch and JAX both see a GPU, all is measured there.
"""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from benchmarks.common import best_of, report
from jaxrobo.bridge.dlpack import to_jax, to_torch
from jaxrobo.env import HostEnv, Metric, Outcome, Spec
from jaxrobo.learning import ppo


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      rows: simulations.
      columns: numbers that each shows.
      repeats: round trips that are timed together.
      out: where to write JSON.
    """

    rows: int = 2048
    columns: int = 64
    repeats: int = 300
    out: Path | None = None


def main(options: Options) -> None:
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    tensor = torch.randn(options.rows, options.columns, device=device)
    ways = {"shared": shared, "copied on the device": copied, "by numpy": by_numpy}
    seconds = {name: _time(way, tensor, options.repeats) for name, way in ways.items()}
    rows = [
        {
            "round trip": name,
            "us": 1e6 * seconds[name],
            "by numpy / this": seconds["by numpy"] / seconds[name],
            "same memory": _same_memory(way, tensor),
        }
        for name, way in ways.items()
    ]
    report(f"torch -> JAX -> torch, {tuple(tensor.shape)} float32, {device}", rows, options.out)
    out = options.out and options.out.with_stem(f"{options.out.stem}-loop")
    report("PPO's collection on the host, simulations that take no time", [_loop(options)], out)


def shared(tensor: torch.Tensor) -> torch.Tensor:
    return to_torch(to_jax(tensor, copy=False))


def copied(tensor: torch.Tensor) -> torch.Tensor:
    return to_torch(to_jax(tensor), copy=True)


def by_numpy(tensor: torch.Tensor) -> torch.Tensor:
    array = jnp.array(tensor.cpu().numpy())
    return torch.from_numpy(np.array(array)).to(tensor.device)


def _time(way, tensor: torch.Tensor, repeats: int) -> float:
    def run() -> None:
        for _ in range(repeats):
            way(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()

    return best_of(run) / repeats


def _same_memory(way, tensor: torch.Tensor) -> bool:
    return way(tensor).data_ptr() == tensor.data_ptr()


class Still(HostEnv):
    """Simulations that always show the same."""

    metric = Metric("reward", kind="count")
    time_limit = 100
    action_size = 8
    observation_spec = Spec(())

    def __init__(self, rows: int, columns: int) -> None:
        self.num_envs, self.observation_spec = rows, Spec((columns,))
        self._obs, self._flags = jnp.zeros((rows, columns)), jnp.zeros(rows, bool)
        self._outcome = Outcome(self._obs, jnp.zeros(rows), self._flags, self._flags, {}, self._obs)

    def start(self, seed: int) -> jax.Array:
        return self._obs

    def advance(self, action: jax.Array) -> Outcome:
        np.asarray(action)  # a simulator waits for it
        return self._outcome


def _loop(options: Options) -> dict[str, float]:
    env, steps = Still(options.rows, options.columns), 32
    trainer = ppo.make(env, ppo.Config(num_envs=options.rows, horizon=steps))
    state = trainer.init(jax.random.key(0), ())
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        state, batch = trainer.collect(state, ())
        jax.block_until_ready(batch)
        seconds.append(time.perf_counter() - begin)
    best = min(seconds)
    return {
        "simulations": options.rows,
        "control steps/s": options.rows * steps / best,
        "a step of all, ms": 1e3 * best / steps,
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
