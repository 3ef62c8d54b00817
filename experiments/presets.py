"""Presets: what each task is trained with unless flags say otherwise, all in one place.

A preset may set any flag of `experiments.train`, by its Python name: options of the run, fields of
the task's `Config` or of the algorithm's.
"""

from typing import Any

_REACHER = {"evaluate_every": 1_000_000, "num_envs": 2048, "horizon": 16, "epochs": 3}
"""What all reachers have in common."""

_LARGE_REACHER = _REACHER | {"schedule": "adaptive_cosine", "horizon": 32, "hidden": (128, 128)}
"""What all arms but the Dofbot have in common."""

_SLOW_REACHER = _LARGE_REACHER | {"reset_noise": 1.0, "training_episode_steps": 150}
"""What the arms whose drives lag by a second have in common.

A goal takes about 50 steps. One behind the arm is reached with the waist turned away, bent over its
back, or the long way round, as the waist has an end. Turning the waist to its end brings the tip
nearer at first; a policy that looks only a few steps ahead, or never started bent over, stays
there. Drives this slow hardly show the noise of one step, so actions are held; the discount is from
one held action to the next. The KUKA, whose waist turns twice as far as the HIWIN's, learns faster
if they are held for half as long.
"""

_PEG_HOLE = {"terminate_on_success": True, "observe_errors": True, "action": "delta"}
"""What the task is for all algorithms that train on a CPU. A network that gives poses as changes
needs tenths of a millimetre of some centimetres, not of the table's width."""

_PEG_HOLE_PAPER = {"observe_errors": False, "action": "pos"}

_CLONING = {"steps": 20_000, "evaluate_every": 2_000}

GENERAL: dict[str, dict[str, Any]] = {"bc": _CLONING, "diffusion_bc": _CLONING}
"""By algorithm: for tasks without a preset."""

PRESETS: dict[tuple[str, ...], dict[str, Any]] = {
    # A goal takes 4 steps.
    ("DofbotReacher", "ppo"): _REACHER | {"steps": 9_000_000, "discount": 0.95},
    # A goal takes 50 steps.
    ("DofbotReacher", "ppo", "servo"): {"discount": 0.98, "steps": 14_000_000},
    # A goal takes about 8 steps. It's reached bent over the front or, with the waist turned away,
    # over the back. Who bends to one side only is faster, by a half; who has learned both doesn't
    # unlearn it. An episode starts bent over the front, and a short one stays there.
    ("UR10Reacher", "ppo"): _LARGE_REACHER
    | {
        "steps": 24_000_000,
        "discount": 0.98,
        "training_episode_steps": 100,
    },
    # A goal takes about 50 steps.
    ("UR10Reacher", "ppo", "servo"): {"training_episode_steps": None},
    ("KukaReacher", "ppo"): _SLOW_REACHER
    | {"steps": 84_000_000, "action_repeat": 2, "discount": 0.96},
    ("HiwinReacher", "ppo"): _SLOW_REACHER
    | {"steps": 96_000_000, "action_repeat": 4, "discount": 0.93},
    ("PegHole", "bc"): _PEG_HOLE
    | {
        "steps": 64_000,
        "evaluate_every": 64_000,
        "horizon": 4,
        "action_horizon": 4,
        "activation": "swish",
    },
    # In as many gradient steps, diffusion is right in a few per cent of the episodes that a flow is
    # right in. What follows on a kick can't be foreseen: demonstrations differ in it at random, and
    # so would plans from noise.
    ("PegHole", "diffusion_bc"): _PEG_HOLE
    | {
        "steps": 30_000,
        "evaluate_every": 10_000,
        "objective": "flow",
        "temperature": 0.0,
        "horizon": 4,
        "action_horizon": 4,
        "widths": (32, 64, 128),
    },
    ("PegHole", "residual_ppo"): _PEG_HOLE
    | {
        "steps": 500_000,
        "evaluate_every": 160_000,
        "num_envs": 256,
        "horizon": 64,
        "epochs": 8,
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "init_log_std": -2.0,  # a step's target moves by less than a millimetre
    },
    # Twice the demonstrations, and more steps: for the last per cent.
    ("PegHole", "bc", "long"): {
        "steps": 128_000,
        "evaluate_every": 128_000,
    },
    ("PegHole", "residual_ppo", "long"): {
        "steps": 1_200_000,
    },
    # As robust-rearrangement trains (config/base_residual_rl.yaml and the peg's runs of BC); its
    # weight decay of 1e-6 and the actor's warm-up of 5 iterations are left out.
    ("PegHole", "diffusion_bc", "paper"): _PEG_HOLE_PAPER
    | {
        "steps": 5_000_000,
        "evaluate_every": 10_000,
        "gradient_steps": 1_000,
        "warmup_steps": 10_000,
        "learning_rate": 1e-4,
        "objective": "epsilon",
        "temperature": 1.0,
        "widths": (256, 512, 1024),
        "horizon": 16,
        "action_horizon": 4,
    },
    ("PegHole", "residual_ppo", "paper"): _PEG_HOLE_PAPER
    | {
        "steps": 1_000_000_000,
        "evaluate_every": 1_024_000,
        "num_envs": 1024,
        "horizon": 200,
        "whole_episodes": True,
        "truncation_as_done": True,
        "epochs": 50,
        "minibatches": 1,
        "discount": 0.999,
        "learning_rate": 3e-4,
        "critic_learning_rate": 5e-3,
        "schedule": "cosine",
        "kl_stop": 0.1,
        "init_log_std": -1.0,
    },
}
"""By task and algorithm; or by task, algorithm and profile (of the task, or a preset of
`experiments.refine`), which adds to the former. The preset "cpu" adds nothing."""

SCALES = ("cpu", "long", "paper")
"""The presets of `experiments.refine`."""

REFINEMENTS: dict[tuple[str, str], dict[str, Any]] = {
    # Parts are kicked every tenth step or so: what to do about a peg that isn't where it should be.
    ("PegHole", "cpu"): {"episodes": 4000, "clone": "bc", "perturbation": 0.1},
    ("PegHole", "long"): {"episodes": 8000, "clone": "bc", "perturbation": 0.1},
    ("PegHole", "paper"): {"episodes": 50, "clone": "diffusion_bc"},
}
"""By task and preset: options of `experiments.refine`, and what is different in the task while
demonstrations are collected."""


def preset(env: str, algo: str, profile: str | None = None) -> dict[str, Any]:
    """The flags that a task, an algorithm and a profile stand for."""
    general = PRESETS.get((env, algo), GENERAL.get(algo, {}))
    return general | PRESETS.get((env, algo, profile), {}) if profile else general


def check_preset(env: str, algo: str, chosen: str) -> None:
    """Raises ValueError if a preset of `experiments.refine` has nothing for a task's stage."""
    if chosen not in SCALES:
        raise ValueError(f"unknown preset {chosen!r}; valid: {', '.join(SCALES)}")
    if ((env, algo) if chosen == "cpu" else (env, algo, chosen)) not in PRESETS:
        raise ValueError(f"{env} has no preset {chosen!r} for {algo}")


def refinement(env: str, chosen: str) -> dict[str, Any]:
    """What a task and a preset of `experiments.refine` stand for; see `REFINEMENTS`."""
    return REFINEMENTS.get((env, chosen), {})
