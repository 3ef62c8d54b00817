"""Makes `reference.npz`: what the schedulers of diffusers return for networks in closed form.

Needs the extra `benchmarks`. Run from the root: `python tests/data_diffusers/make.py`.
"""

from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler

STEPS = 100
OPTIONS = dict(
    num_train_timesteps=STEPS,
    beta_schedule="squaredcos_cap_v2",
    clip_sample=True,
    prediction_type="epsilon",
)


def main():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 3)).astype(np.float32)
    noise = rng.standard_normal((STEPS, 4, 3)).astype(np.float32)
    ddim = DDIMScheduler(**OPTIONS, set_alpha_to_one=True, steps_offset=0)
    arrays = {
        "version": np.array(diffusers.__version__),
        "betas": ddim.betas.numpy(),
        "alphas_cumprod": ddim.alphas_cumprod.numpy(),
        "start": start,
        "noise": noise,
        "noisy": ddim.add_noise(
            torch.tensor(start), torch.tensor(noise[0]), torch.tensor([0, 33, 66, 99])
        ).numpy(),
    }
    for count in (4, 16):
        ddim.set_timesteps(count)
        arrays[f"ddim_steps_{count}"] = ddim.timesteps.numpy()
        arrays[f"ddim_{count}"] = sample(ddim, start)
    ddpm = DDPMScheduler(**OPTIONS, variance_type="fixed_small")
    ddpm.set_timesteps(STEPS)
    arrays["ddpm"] = sample(ddpm, start, noise)
    np.savez_compressed(Path(__file__).with_name("reference.npz"), **arrays)


def sample(scheduler, start, noise=()):
    """Runs all steps; `noise[i]` is what a step that draws draws the i-th time."""
    draws = iter(noise)
    draw = lambda *args, **kwargs: torch.tensor(next(draws))
    x = torch.tensor(start)
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw):
        for step in scheduler.timesteps:
            x = scheduler.step(predict(x, step), step, x).prev_sample
    return x.numpy()


def predict(noisy, step):
    """A wrong network: its estimates of clean samples leave [-1, 1] often."""
    return 0.6 * noisy + 0.3 * torch.sin(3 * noisy + 0.1 * step)


if __name__ == "__main__":
    main()
