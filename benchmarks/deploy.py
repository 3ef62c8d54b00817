"""Does a policy reach the arm in time?

How often a second the exported policy acts in numpy on one core; how many periods of the 60 Hz loop
are right up to 5 ms, with the simulation, the policy and a server without an arm on this computer;
and whether any of many fuzzed packets moves that arm outside its limits. `--short` takes seconds.

The policy is a fresh one, as large as the preset's: what it does costs the same.
"""

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import envs
from benchmarks.common import report
from experiments import train
from jaxrobo.deploy import Dofbot, Twin, arm_server, extract, follow, runner, save_npz
from jaxrobo.deploy.dry_run import dry_run
from jaxrobo.learning import ppo
from jaxrobo.learning.normaliser import init_stats

RATE, SHARE = 1_000, 99.9
"""What is wanted: calls a second, and per cent of the periods within 5 ms."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      seconds: how long the loop runs.
      packets: how many are fuzzed, in each protocol.
      short: 10 seconds and 1,000 packets instead.
      out: where to write JSON.
    """

    seconds: float = 600.0
    packets: int = 10_000
    short: bool = False
    out: Path | None = None


def main(options: Options) -> None:
    seconds, packets = (10.0, 1_000) if options.short else (options.seconds, options.packets)
    env = envs.make("DofbotReacher", "native", profile="servo")
    trainer = ppo.make(env, train.parse(["--env", "DofbotReacher"])[2])
    network = ppo.actor_critic(env, trainer.config).init(jax.random.key(0), jnp.zeros(26))
    params = {"network": network, "observation_stats": init_stats((26,))}
    rows = [_runner(trainer, params), _loop(trainer, params, seconds)]
    rows += [_fuzz(packets, compatible) for compatible in (False, True)]
    report("Deployment of DofbotReacher", rows, options.out)


def _row(what: str, measured: float, unit: str, wanted: str, remark: str) -> dict:
    return dict(what=what, measured=measured, unit=unit, wanted=wanted, remark=remark)


def _runner(trainer, params) -> dict:
    """The best of some rounds, on one core."""
    with tempfile.TemporaryDirectory() as folder, _one_core():
        path = Path(folder) / "policy.npz"
        save_npz(extract(trainer, params), path)
        policy = runner.Policy(str(path))
        rate = max(runner.rate(policy) for _ in range(5))
        remark = f"differs by {policy.check():.1e} from the original"
    return _row("numpy runner, one core", rate, "actions/s", f">= {RATE:,}", remark)


def _loop(trainer, params, seconds: float) -> dict:
    twin = Twin(trainer.env, trainer.act(True), params, jax.random.key(0))
    with dry_run() as server:
        with Dofbot("127.0.0.1", server.port) as arm:
            timing = follow(arm, twin, 60.0, seconds=seconds).timing
        low, high, _ = server.stop()
    share = 100 * timing.within(5e-3)
    print(timing)
    remark = f"longest {1e3 * timing.periods.max():.1f} ms; {_visited(low, high)}"
    return _row(f"60 Hz loop, {seconds:g} s", share, "% within 5 ms", f">= {SHARE}", remark)


def _fuzz(packets: int, compatible: bool) -> dict:
    rng, flags = np.random.default_rng(0), ["--compatible"] * compatible
    begin = time.perf_counter()
    with dry_run(*flags, "--speed", "2000") as server:
        _send(server.port, (_fuzzed(rng, n, compatible) for n in range(1, packets + 1)))
        low, high, _ = server.stop()
    lower, upper = np.transpose(arm_server.LIMITS)
    excess = float(np.max([lower - low, high - upper, np.zeros(6)]))
    name = "24-byte" if compatible else "framed"
    remark = f"{time.perf_counter() - begin:.0f} s; {_visited(low, high)}"
    return _row(f"{packets:,} fuzzed {name} packets", excess, "degrees outside", "0", remark)


def _fuzzed(rng: np.random.Generator, sequence: int, compatible: bool) -> bytes:
    """A packet of a plausible target, or of absurd numbers, whole or damaged."""
    angles = np.append(rng.uniform(0, 180, 5), 90.0)
    if rng.integers(2):
        angles[rng.integers(6)] = rng.choice([500.0, -1e9, np.nan, np.inf, -np.inf, 3e38])
    data = arm_server.encode_angles(angles)
    if not compatible:
        data = arm_server.encode(arm_server.TARGET, sequence, data)
    way = rng.integers(4)
    if way == 0:
        return rng.bytes(rng.integers(1, 200))
    if way == 1:
        return data[: rng.integers(1, len(data))]
    if way == 2:
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        return bytes(damaged)
    return data


def _send(port: int, packets: Iterable[bytes]) -> None:
    """Sends packets slowly enough to be acted on, and connects anew whenever the server hangs up.

    And after 20 in any case: behind one that was cut, packets without frames make no sense.
    """
    connect = lambda: socket.create_connection(("127.0.0.1", port), 5)
    link = connect()
    for k, packet in enumerate(packets, 1):
        try:
            link.sendall(packet)
            time.sleep(0.004)
            over = k % 20 == 0
        except ConnectionError:
            over = True
        if over:
            link.close()
            time.sleep(0.004)
            link = connect()
    link.close()


def _visited(low: np.ndarray, high: np.ndarray) -> str:
    return f"servo 1 within {low[0]:.0f} .. {high[0]:.0f} degrees"


@contextlib.contextmanager
def _one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main(tyro.cli(Options))
