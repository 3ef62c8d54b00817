"""How fast is the UNet that denoises chunks, in training and in DDIM sampling, against torch?

In one run, with the same shapes, batches and threads: ours, and a UNet of torch's own layers with
diffusers' scheduler, eager and compiled. Ratios are to the faster of torch's two. Ours trains as
`diffusion_bc` does, several gradient steps in one program; torch in a loop. The processor's cores
are all used; `taskset` gives fewer.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import torch
import tyro
from diffusers import DDIMScheduler
from torch import nn

from benchmarks.common import best_of, report
from jaxrobo.diffusion import ddim_sample, ddim_steps, epsilon_loss, squared_cosine
from jaxrobo.networks import ConditionalUNet1D

STEPS = 100
LEARNING_RATE = 1e-4

GRADIENT_STEPS = 10
"""In a program; `diffusion_bc` has 100."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      widths: channels of each level.
      horizon: actions of a chunk.
      action: size of an action.
      condition: size of what is observed.
      train_batch: chunks in a training step.
      sample_batches: chunks sampled side by side.
      ddim_steps: steps of the sampler.
      repeats: times each is run; the fastest counts.
      out: where to write JSON.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    horizon: int = 16
    action: int = 10
    condition: int = 37
    train_batch: int = 256
    sample_batches: tuple[int, ...] = (1, 256)
    ddim_steps: tuple[int, ...] = (4, 16)
    repeats: int = 5
    out: Path | None = None


Runs = dict[str, Callable[[], object]]
"""What to time, by the name of the task: the same names for each of the networks."""


def main(options: Options) -> None:
    """Prints the table."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    networks = {
        "jaxrobo": _jaxrobo(options),
        "torch eager": _torch(options, lambda network: network),
        "torch.compile": _torch(options, lambda network: torch.compile(network, dynamic=False)),
    }
    # Each task by all networks at nearly the same time, since a machine's speed changes.
    rows = [
        _row(task, {name: runs[task] for name, runs in networks.items()}, options)
        for task in networks["jaxrobo"]
    ]
    title = f"{options.widths}, horizon {options.horizon}, {torch.get_num_threads()} threads"
    report(f"Training steps/s and sampled actions/s, widths {title}", rows, options.out)


def _row(task: str, runs: Runs, options: Options) -> dict:
    batch = int(task.rsplit(" ", 1)[1]) * options.horizon
    amount = GRADIENT_STEPS if task.startswith("train") else batch
    speeds = {name: _speed(run, amount, options.repeats) for name, run in runs.items()}
    peers = [v for name, v in speeds.items() if name != "jaxrobo" and isinstance(v, float)]
    return {"task": task, **speeds, "ratio": speeds["jaxrobo"] / max(peers)}


def _speed(run: Callable[[], object], amount: int, repeats: int) -> float | str:
    """A second's amount, or why there is none: torch.compile needs a C++ compiler."""
    try:
        return amount / best_of(run, repeats)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        return f"failed: {type(error.inner_exception).__name__}"


def _tasks(options: Options, train: Callable, sample: Callable[[int, int], Callable]) -> Runs:
    runs = {f"train, batch {options.train_batch}": train}
    for batch in options.sample_batches:
        for steps in options.ddim_steps:
            runs[f"DDIM, {steps} steps, batch {batch}"] = sample(batch, steps)
    return runs


def _jaxrobo(options: Options) -> Runs:
    unet, schedule = ConditionalUNet1D(options.widths), squared_cosine(STEPS)
    optimiser = optax.adamw(LEARNING_RATE)
    chunks, conditions = _data(options, options.train_batch)
    params = jax.jit(unet.init)(jax.random.key(0), chunks[0], 0, conditions[0])
    predict = lambda params, condition: lambda x, step: unet.apply(params, x, step, condition)

    def loss(params, chunk, condition, key):
        return epsilon_loss(schedule, predict(params, condition), chunk, key)

    def update(carry, key):
        params, state = carry
        keys = jax.random.split(key, options.train_batch)
        each = jax.vmap(loss, (None, 0, 0, 0))
        mean = lambda p: each(p, chunks, conditions, keys).mean()
        value, gradient = jax.value_and_grad(mean)(params)
        change, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), value

    compiled = jax.jit(lambda carry, keys: jax.lax.scan(update, carry, keys), donate_argnums=0)
    carry = [(jax.tree.map(jnp.copy, params), optimiser.init(params))]
    keys = jax.random.split(jax.random.key(1), GRADIENT_STEPS)

    def train():
        carry[0], losses = compiled(carry[0], keys)
        return losses

    def sample(batch, count):
        steps = ddim_steps(schedule, count)
        one = lambda p, x, c: ddim_sample(schedule, predict(p, c), x, steps)
        draw = jax.jit(
            lambda p, key, c: jax.vmap(one, (None, 0, 0))(
                p, jax.random.normal(key, (batch, options.horizon, options.action)), c
            )
        )
        observed = _data(options, batch)[1]
        return lambda: draw(params, jax.random.key(2), observed)

    return _tasks(options, train, sample)


def _torch(options: Options, wrap: Callable[[nn.Module], Callable]) -> Runs:
    unet = _UNet(options)
    network = wrap(unet)
    scheduler = DDIMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2")
    optimiser = torch.optim.AdamW(unet.parameters(), LEARNING_RATE, fused=True)
    to_torch = lambda arrays: [torch.tensor(jax.device_get(x)) for x in arrays]
    chunks, conditions = to_torch(_data(options, options.train_batch))

    def train():
        for _ in range(GRADIENT_STEPS):
            loss = gradient_step()
        return loss

    def gradient_step():
        steps = torch.randint(0, STEPS, (options.train_batch,))
        noise = torch.randn_like(chunks)
        predicted = network(scheduler.add_noise(chunks, noise, steps), steps, conditions)
        loss = nn.functional.mse_loss(predicted, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    def sample(batch, count):
        _, observed = to_torch(_data(options, batch))

        @torch.no_grad()
        def run():
            scheduler.set_timesteps(count)
            x = torch.randn(batch, options.horizon, options.action)
            for step in scheduler.timesteps:
                predicted = network(x, step.expand(batch), observed)
                x = scheduler.step(predicted, step, x).prev_sample
            return x

        return run

    return _tasks(options, train, sample)


def _data(options: Options, batch: int) -> tuple[jax.Array, jax.Array]:
    chunks = jax.random.normal(jax.random.key(3), (batch, options.horizon, options.action))
    return chunks, jax.random.normal(jax.random.key(4), (batch, options.condition))


class _UNet(nn.Module):
    """The layers of `ConditionalUNet1D`, with as many parameters; channels are torch's axis 1."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        widths, size = options.widths, 256 + options.condition
        self.step = nn.Sequential(nn.Linear(256, 1024), nn.Mish(), nn.Linear(1024, 256))
        pair = lambda n, m: nn.ModuleList([_Block(n, m, size), _Block(m, m, size)])
        inputs = (options.action, *widths)
        self.down = nn.ModuleList(map(pair, inputs, widths))
        self.halve = nn.ModuleList(nn.Conv1d(w, w, 3, 2, 1) for w in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(pair(2 * n, m) for n, m in up)
        self.twice = nn.ModuleList(nn.ConvTranspose1d(m, m, 4, 2, 1) for _, m in up)
        last = nn.Conv1d(widths[0], options.action, 1)
        self.last = nn.Sequential(_conv_block(widths[0], widths[0]), last)
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.linspace(0, 1, 128)))

    def forward(self, x, step, condition):
        angles = step[:, None] * self.frequencies
        step = self.step(torch.cat([angles.sin(), angles.cos()], -1))
        condition = torch.cat([step, condition], -1)
        x, skips = x.transpose(1, 2), []
        for i, blocks in enumerate(self.down):
            x = _apply(blocks, x, condition)
            skips.append(x)
            if i < len(self.halve):
                x = self.halve[i](x)
        x = _apply(self.middle, x, condition)
        for blocks, twice in zip(self.up, self.twice, strict=True):
            x = twice(_apply(blocks, torch.cat([x, skips.pop()], 1), condition))
        return self.last(x).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, n: int, m: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = _conv_block(n, m), _conv_block(m, m)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * m))
        self.residual = nn.Identity() if n == m else nn.Conv1d(n, m, 1)

    def forward(self, x, condition):
        scale, shift = self.film(condition)[..., None].chunk(2, 1)
        return self.residual(x) + self.second((1 + scale) * self.first(x) + shift)


def _conv_block(n: int, m: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(n, m, 5, padding=2), nn.GroupNorm(8, m), nn.Mish())


def _apply(blocks: nn.ModuleList, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x, condition)
    return x


if __name__ == "__main__":
    main(tyro.cli(Options))
