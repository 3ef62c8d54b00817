"""Presets: what each task is trained with unless flags say otherwise, all in one place.

A preset may set any flag of `experiments.train`, by its Python name: options of the run, fields of
the task's `Config` or of the algorithm's.
"""

from typing import Any

PRESETS: dict[tuple[str, ...], dict[str, Any]] = {
    ("DofbotReacher", "ppo"): {
        "steps": 9_000_000,
        "evaluate_every": 1_000_000,
        "num_envs": 2048,
        "horizon": 16,
        "epochs": 3,
        "discount": 0.95,  # a goal takes 4 steps
    },
    # A goal takes 50 steps.
    ("DofbotReacher", "ppo", "servo"): {"discount": 0.98, "steps": 14_000_000},
}
"""By task and algorithm, or by task, algorithm and profile, which adds to the former."""


def preset(env: str, algo: str, profile: str | None = None) -> dict[str, Any]:
    """The flags that a task, an algorithm and a profile of the task stand for."""
    general = PRESETS.get((env, algo), {})
    return general | PRESETS.get((env, algo, profile), {}) if profile else general
