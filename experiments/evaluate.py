"""Evaluates a trained policy, and films it.

python -m experiments.evaluate --run-dir runs/DofbotReacher-ppo-0 --video
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from experiments import cli
from experiments.common import restore_trainer, show
from jaxrobo import rundir
from jaxrobo._files import obstacle
from jaxrobo.evaluation import evaluator
from jaxrobo.rollout import check_seed, episode_key
from jaxrobo.training import RunError, restore_policy

_FILMED = 4
"""Episodes in a video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an evaluation.

    Attributes:
      run_dir: the folder of the run.
      checkpoint: the best on the validation split, or the last.
      engine: the engine to evaluate on; auto takes mjx where JAX has an accelerator.
      split: validation to choose by; test for final tables only.
      seed: which draw of the split; training uses 0.
      episodes: how many.
      video: film the first episodes with the policy of the run's first seed.
    """

    run_dir: Path
    checkpoint: Literal["best", "last"] = "best"
    engine: Literal["auto", "native", "mjx"] = "auto"
    split: Literal["train", "validation", "test"] = "test"
    seed: int = 0
    episodes: int = 256
    video: bool = False

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        check_seed(self.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    o = cli.parse(Options, argv, "python -m experiments.evaluate", __doc__)
    with cli.failing(RunError):
        trainer = restore_trainer(o.run_dir, o.engine)
        stored = rundir.read_config(o.run_dir)
        if why := obstacle(o.run_dir / "evaluation"):
            raise RunError(why)
        seeds = range(stored["seed"], stored["seed"] + stored["seeds"])
        params = {k: restore_policy(o.run_dir, trainer, o.checkpoint, k)[1] for k in seeds}
    evaluate = evaluator(trainer.env, trainer.act(True), o.episodes)
    estimates = {f"seed {k}": evaluate(p, o.split, o.seed) for k, p in params.items()}
    show(f"{stored['env']}: {o.episodes} {o.split} episodes, {o.checkpoint} checkpoint", estimates)
    conditions = dataclasses.asdict(o) | {"engine": trainer.env.engine}
    name = f"{o.checkpoint}-{o.split}-{o.seed}-{conditions['engine']}-{o.episodes}"
    path = o.run_dir / f"evaluation-{name}.json"
    rundir.write_json(path, {"options": conditions, "estimates": estimates})
    print(path)
    if o.video:
        from jaxrobo.rendering import RendererUnavailable, record_video

        keys = jax.vmap(lambda i: episode_key(o.split, o.seed, i))(jnp.arange(_FILMED))
        path = o.run_dir / f"video-{name}.mp4"
        with cli.failing(RendererUnavailable):
            record_video(trainer.env, trainer.act(True), params[seeds[0]], path, keys)
        print(path)


if __name__ == "__main__":
    cli.start(main)
