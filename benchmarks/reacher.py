"""What does PPO reach on DofbotReacher from scratch, and how does that compare with the expert?

Trains each drive profile with its preset, for several seeds one after another, and scores the best
checkpoint of each and the greedy inverse-kinematics expert on the same test episodes. Wall time
includes compilation.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import tyro

import envs
from benchmarks.common import report
from experiments import train
from jaxrobo.evaluation import Estimate, evaluate

PROFILES = {
    "isaac": ["--profile", "isaac"],
    "3.14 rad/s": ["--profile", "isaac", "--velocity-cap", "3.14"],
    "servo": ["--profile", "servo"],
}
TARGETS = {"isaac": 150, "3.14 rad/s": 30, "servo": 10}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      profiles: which drives.
      seeds: how many runs each.
      episodes: test episodes.
      run_dir: where the runs are kept; a temporary folder if None.
      out: where to write JSON.
    """

    profiles: tuple[str, ...] = tuple(PROFILES)
    seeds: int = 3
    episodes: int = 256
    run_dir: Path | None = None
    out: Path | None = None


def main(options: Options) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = options.run_dir or Path(folder)
        for profile in options.profiles:
            expert = _expert(profile, options.episodes)
            for seed in range(options.seeds):
                run_dir = root / f"{profile.replace(' ', '-').replace('/', '-')}-{seed}"
                rows.append(_train(profile, seed, run_dir, options.episodes, expert))
    report("DofbotReacher, goals an episode (599 steps) on the test split", rows, options.out)


def _expert(profile: str, episodes: int) -> Estimate:
    task = train.parse(["--env", "DofbotReacher", *PROFILES[profile]])[1]
    env = envs.make("DofbotReacher", **dataclasses.asdict(task))
    return evaluate(env, env.expert(), (), "test", 0, episodes)[env.metric.name]


def _train(profile: str, seed: int, run_dir: Path, episodes: int, expert: Estimate) -> dict:
    begin = time.perf_counter()
    flags = ["--env", "DofbotReacher", "--seed", str(seed), "--run-dir", str(run_dir)]
    train.main([*flags, "--test-episodes", str(episodes), *PROFILES[profile]])
    seconds = time.perf_counter() - begin
    result = json.loads((run_dir / "result.json").read_text())
    goals = Estimate(*(result["goals"][k] for k in Estimate._fields))
    return {
        "drive": profile,
        "seed": seed,
        "goals": _show(goals),
        "target": TARGETS[profile],
        "expert": _show(expert),
        "ratio": goals.mean / expert.mean,
        "steps": result["steps"],
        "wall s": seconds,
        "of it compiling s": result["compile_seconds"],
    }


def _show(e: Estimate) -> str:
    return f"{e.mean:.1f} [{e.low:.1f}, {e.high:.1f}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
