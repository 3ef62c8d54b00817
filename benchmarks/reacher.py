"""What does PPO reach on the reacher tasks from scratch, and how does that compare with the expert?

Trains each variant with its preset, for several seeds one after another, and scores the best
checkpoint of each and the greedy inverse-kinematics expert on the same test episodes. They start
as the original's do, whatever the preset trains from. Wall time includes compilation, but no tests.

The targets of the variants with quirks are the plateaus of the originals' published learning curves
(`docs/media` of OmniIsaacGymEnvs-DofbotReacher, -UR10Reacher, -KukaReacher and -HiwinReacher): a
moving average over training episodes with exploration, in PhysX; ours is of the mean action, on
test episodes.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import tyro

import envs
from benchmarks.common import report
from experiments import train
from experiments.common import load
from jaxrobo import rundir
from jaxrobo.env import Env
from jaxrobo.evaluation import Estimate, evaluate


class Variant(NamedTuple):
    """A task.

    Attributes:
      env: its name.
      flags: of `experiments.train`.
      target: goals an episode.
    """

    env: str
    flags: tuple[str, ...] = ()
    target: float | None = None


_QUIRKS = ("--upstream-quirks",)
_SAFE = ("--safety",)
_SERVO = ("--profile", "servo")

VARIANTS = {
    "dofbot": Variant("DofbotReacher", target=150),
    "dofbot-3.14": Variant("DofbotReacher", ("--velocity-cap", "3.14"), 30),
    "dofbot-servo": Variant("DofbotReacher", _SERVO, 10),
    "dofbot-quirks": Variant("DofbotReacher", _QUIRKS, 47),
    "ur10": Variant("UR10Reacher"),
    "ur10-servo": Variant("UR10Reacher", _SERVO),
    "ur10-quirks": Variant("UR10Reacher", _QUIRKS, 12),
    "ur10-safety": Variant("UR10Reacher", _SAFE),
    "ur10-deployed": Variant("UR10Reacher", (*_SAFE, *_SERVO, "--real-goals")),
    "ur10-safety-quirks": Variant("UR10Reacher", _SAFE + _QUIRKS, 62),
    "kuka": Variant("KukaReacher"),
    "kuka-servo": Variant("KukaReacher", _SERVO),
    "kuka-quirks": Variant("KukaReacher", _QUIRKS, 10.6),
    "hiwin": Variant("HiwinReacher"),
    "hiwin-servo": Variant("HiwinReacher", _SERVO),
    "hiwin-quirks": Variant("HiwinReacher", _QUIRKS, 10),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      variants: which tasks.
      seeds: how many runs each.
      budget: how many times the steps of the presets.
      episodes: test episodes.
      run_dir: where the runs are kept; a temporary folder if None.
      out: where to write JSON.
    """

    variants: tuple[str, ...] = ("dofbot", "dofbot-3.14", "dofbot-servo")
    seeds: int = 3
    budget: float = 1.0
    episodes: int = 256
    run_dir: Path | None = None
    out: Path | None = None


def main(options: Options) -> None:
    if unknown := set(options.variants) - VARIANTS.keys():
        raise SystemExit(f"unknown variants {sorted(unknown)}; valid: {', '.join(VARIANTS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = options.run_dir or Path(folder)
        for name in options.variants:
            expert = _expert(VARIANTS[name], options.episodes)
            for seed in range(options.seeds):
                rows.append(_train(options, name, seed, root / f"{name}-{seed}", expert))
                print(rows[-1], flush=True)
    report("goals an episode on the test split", rows, options.out)


def _env(variant: Variant) -> Env:
    task = train.parse(["--env", variant.env, *variant.flags])[1]
    options = dataclasses.asdict(task) | {"reset_noise": type(task).reset_noise}
    return envs.make(variant.env, **options)


def _expert(variant: Variant, episodes: int) -> Estimate:
    env = _env(variant)
    return evaluate(env, env.expert(), (), "test", 0, episodes)[env.metric.name]


def _train(options: Options, name: str, seed: int, run_dir: Path, expert: Estimate) -> dict:
    variant = VARIANTS[name]
    flags = ["--env", variant.env, *variant.flags]
    steps = round(options.budget * train.parse(flags)[0].steps)
    flags += ["--steps", str(steps), "--seed", str(seed), "--run-dir", str(run_dir)]
    flags += ["--resume"] if (run_dir / rundir.CONFIG).exists() else []
    train.main([*flags, "--test-episodes", "1"])  # what counts is tested below
    result = json.loads((run_dir / rundir.RESULT).read_text())
    _, policy, params = load(run_dir)
    goals = evaluate(_env(variant), policy, params, "test", 0, options.episodes)["goals"]
    return {
        "variant": name,
        "seed": seed,
        "goals": _show(goals),
        "target": variant.target,
        "expert": _show(expert),
        "ratio": goals.mean / expert.mean,
        "steps": result["steps"],
        "wall s": result["wall_seconds"] + result["compile_seconds"],
        "of it compiling s": result["compile_seconds"],
    }


def _show(e: Estimate) -> str:
    return f"{e.mean:.1f} [{e.low:.1f}, {e.high:.1f}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
