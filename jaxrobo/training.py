"""The host loop: budget, logs, evaluation, checkpoints, resume, and a clean stop on Ctrl-C.

    trainer = ppo.make(env, ppo.Config())
    result = training.run(trainer, "runs/first", steps=10_000_000, evaluate_every=500_000)
    policy, params = training.restore_policy("runs/first", trainer)

Everything else in the library is a pure function; this is the only loop that touches files and
clocks.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo import checkpoint, rundir
from jaxrobo._plan import Plan, Programs, compile_programs, estimate, state_template
from jaxrobo._signals import stop_on_signal
from jaxrobo.checkpoint import RunError
from jaxrobo.evaluation import Estimate, mean_of_seeds
from jaxrobo.learning.trainer import Trainer, TrainState
from jaxrobo.metrics import Display, Logs, find_wandb
from jaxrobo.policy import Params, Policy

__all__ = ["Result", "RunError", "restore_policy", "run"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
      steps: in the trainer's counter, over all calls.
      interrupted: whether it was stopped before its budget was used up.
      policy: acts by the mean.
      params: of the best checkpoint; if there are several seeds, what they learned, with a leading
        axis `[seeds]`.
      state: the last `TrainState`, likewise.
      evaluation: estimates on the test split, one dict a seed; empty if interrupted.
      wall_seconds: duration without compilation (of which a `HostEnv` has no part of its own), over
        all calls.
      compile_seconds: duration of compilations, over all calls.
    """

    steps: int
    interrupted: bool
    policy: Policy
    params: Params
    state: TrainState
    evaluation: tuple[dict[str, Estimate], ...]
    wall_seconds: float
    compile_seconds: float


def run(
    trainer: Trainer,
    run_dir: str | Path,
    *,
    steps: int,
    evaluate_every: int,
    seed: int = 0,
    seeds: int = 1,
    evaluation_episodes: int = 128,
    test_episodes: int = 256,
    patience: int | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    wandb: bool = False,
) -> Result:
    """Trains, keeps the policy that does best on the validation split, and tests it once.

    Ctrl-C (or SIGTERM) finishes the iteration, saves and returns; a second one aborts. A run that
    is resumed goes on bit for bit as if it had never stopped; with a `HostEnv`, all but its
    simulations, which start anew.

    Args:
      trainer: the algorithm.
      run_dir: a folder for everything that the run writes (`jaxrobo.rundir`).
      steps: budget in the trainer's counter, rounded up to whole iterations; may be raised on
        resume.
      evaluate_every: how many steps pass between evaluations, rounded to whole iterations. `last`
        is saved after each.
      seed: the first seed; seed k trains from `split_key("train", seed + k)`.
      seeds: how many are trained at once, in one program.
      evaluation_episodes: validation episodes of each evaluation.
      test_episodes: test episodes at the end.
      patience: the run ends when so many evaluations in a row have not raised the best score; never
        before its budget is used up if None.
      config: what else the run is defined by (names, options); stored, and compared on resume.
      resume: whether to go on with the run in `run_dir`.
      wandb: whether to log to Weights & Biases as well.

    Raises:
      RunError: before anything is compiled or overwritten, if an option is out of range, the folder
        is taken, can't be resumed or is written by another process, or wandb is missing.
    """
    plan = Plan(
        trainer,
        Path(run_dir),
        steps,
        evaluate_every,
        seed,
        seeds,
        evaluation_episodes,
        test_episodes,
        patience,
    )
    config = plan.complete(config or {})
    wandb_module = find_wandb() if wandb else None
    rundir.check(plan.run_dir, config, resume)
    with rundir.claimed(plan.run_dir):
        return _run(plan, config, resume, wandb_module)


def _run(
    plan: Plan, config: Mapping[str, Any], resume: bool, wandb_module: ModuleType | None
) -> Result:
    progress = _load(plan) if resume else None
    rundir.write_json(plan.run_dir / rundir.CONFIG, config)
    programs = compile_programs(plan)
    print(f"compiled in {programs.seconds:.1f} s", flush=True)
    progress = progress or _begin(plan, programs)
    progress.compile_seconds += programs.seconds
    done, total = plan.steps_after(progress.iteration), plan.steps_after(plan.iterations)
    kept = None if progress.is_new else progress.iteration
    with (
        checkpoint.Writer() as writer,
        Logs(plan.run_dir, plan.folders, kept, done, config, wandb_module) as logs,
        Display(total, done, plan.trainer.env.metric.name) as display,
    ):
        _Loop(plan, programs, progress, writer, logs, display).run()
    return _conclude(plan, programs, progress, config)


def restore_policy(
    run_dir: str | Path,
    trainer: Trainer,
    which: Literal["best", "last"] = "best",
    seed: int | None = None,
    deterministic: bool = True,
) -> tuple[Policy, Params]:
    """A trained policy and its parameters.

    Args:
      run_dir: the run's folder.
      trainer: made as it was for the run.
      which: the checkpoint: the best on the validation split, or the last.
      seed: one of the run's seeds; the first if None.
      deterministic: whether to act by the mean.

    Raises:
      RunError: if there's no such run, checkpoint or seed, or the checkpoint is damaged.
    """
    run_dir = Path(run_dir)
    config = rundir.read_config(run_dir)
    if "seeds" not in config:
        raise RunError(f"{run_dir} is not the run of one policy")
    first, seeds = config["seed"], config["seeds"]
    seed = first if seed is None else seed
    if not first <= seed < first + seeds:
        raise RunError(f"{run_dir} has no seed {seed}; valid: {first} to {first + seeds - 1}")
    state = state_template(trainer, seeds)
    if which == "best":
        learned, _ = checkpoint.load(run_dir / rundir.BEST, trainer.learned(state))
    elif which == "last":
        state, _ = checkpoint.load(run_dir / rundir.LAST, state)
        learned = trainer.learned(state)
    else:
        raise RunError(f"unknown checkpoint {which!r}; valid: best, last")
    if seeds > 1:
        learned = jax.tree.map(lambda x: x[seed - first], learned)
    return trainer.act(deterministic), trainer.complete(learned, trainer.inputs)


@dataclasses.dataclass
class _Progress:
    """How far a run is. `best` has a checkpoint of its own.

    Attributes:
      state: the `TrainState`.
      best: parameters of the best policy so far.
      scores: the metric of the best on the validation split, one a seed.
      best_steps: when that was, one a seed.
      iteration: how many are done.
      flat: evaluations in a row, up to the last, in which no seed's score has risen.
      wall_seconds: without compilation.
      compile_seconds: of compilation.
      is_new: whether nothing was evaluated yet.
    """

    state: TrainState
    best: Params
    scores: list[float]
    best_steps: list[int]
    iteration: int = 0
    flat: int = 0
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    is_new: bool = False


def _load(plan: Plan) -> _Progress | None:
    """Where a run stopped; None if it was killed before it saved anything."""
    last, best = plan.run_dir / rundir.LAST, plan.run_dir / rundir.BEST
    if checkpoint.newest(last) is None:
        print(f"nothing was saved in {plan.run_dir}: starting from step 0", flush=True)
        return None
    template = state_template(plan.trainer, plan.seeds)
    state, counters = checkpoint.load(last, template)
    if counters.pop("inputs") != checkpoint.fingerprint(plan.trainer.inputs):
        raise RunError(
            f"{plan.run_dir} was started with other inputs (a data set, a frozen policy)"
        )
    params, _ = checkpoint.load(best, plan.trainer.learned(template))
    print(f"resuming from step {plan.steps_after(counters['iteration']):,}", flush=True)
    return _Progress(state, params, **counters)


def _begin(plan: Plan, programs: Programs) -> _Progress:
    """A new run, whose best policy so far is the untrained one."""
    state = programs.init(plan.keys(), plan.trainer.inputs)
    best = jax.tree.map(jnp.copy, plan.trainer.learned(state))
    return _Progress(state, best, [-math.inf] * plan.seeds, [0] * plan.seeds, is_new=True)


class _Loop:
    """Advances a `_Progress`."""

    def __init__(
        self,
        plan: Plan,
        programs: Programs,
        progress: _Progress,
        writer: checkpoint.Writer,
        logs: Logs,
        display: Display,
    ) -> None:
        self.plan, self.programs, self.progress = plan, programs, progress
        self.writer, self.logs, self.display = writer, logs, display
        self.inputs = jax.device_put(plan.trainer.inputs)
        self.inputs_hash = checkpoint.fingerprint(plan.trainer.inputs)
        self.began = time.perf_counter() - progress.wall_seconds

    def run(self) -> None:
        """Iterates until the budget is used up, or a signal asks to stop."""
        plan, progress, previous = self.plan, self.progress, None
        with stop_on_signal("stopping after this iteration; again to abort") as stop_requested:
            if progress.is_new:
                self._evaluate_and_save()
            while not plan.over(progress.iteration, progress.flat):
                metrics = self._iterate()
                if previous is not None:  # it's finished by now: the device doesn't wait for logs
                    self._log(*previous)
                previous = progress.iteration, metrics
                stop = stop_requested()
                over = progress.iteration == plan.iterations
                due = over or progress.iteration % plan.interval == 0
                if due or stop:
                    self._log(*previous)
                    previous = None
                    (self._evaluate_and_save if due else self._save)()
                if stop:
                    break

    def _iterate(self) -> dict[str, jax.Array]:
        state, batch = self.programs.collect(self.progress.state, self.inputs)
        self.progress.state, metrics = self.programs.update(state, batch, self.inputs)
        self.progress.iteration += 1
        return {f"train/{name}": value for name, value in metrics.items()}

    def _log(self, iteration: int, values: Mapping[str, Any]) -> None:
        values = jax.device_get(values)  # waits for the iteration
        self._tick()
        steps = self.plan.steps_after(iteration)
        counters = {"iteration": iteration, "steps": steps, "seconds": self.progress.wall_seconds}
        self.logs.write(counters, values)
        self.display.show(steps)

    def _evaluate_and_save(self) -> None:
        """Evaluates; keeps the policy of each seed that did at least as well as ever.

        A score that isn't a number is the worst. The evaluation at the end of a budget may come
        earlier than planned; if the budget is raised then, patience doesn't count it.
        """
        plan, progress = self.plan, self.progress
        metric, steps = plan.trainer.env.metric.name, plan.steps_after(progress.iteration)
        learned = plan.trainer.learned(progress.state)
        estimates = estimate(plan, self.programs, learned, "validation", plan.evaluation_episodes)
        means = [e[metric].mean for e in estimates]
        scores = [-math.inf if math.isnan(mean) else mean for mean in means]
        better = [new >= old for new, old in zip(scores, progress.scores, strict=True)]
        risen = any(new > old for new, old in zip(scores, progress.scores, strict=True))
        planned = progress.iteration % plan.interval == 0
        progress.flat = 0 if risen else progress.flat + planned
        for k in np.flatnonzero(better):
            progress.scores[k], progress.best_steps[k] = scores[k], steps
        progress.best = _choose(better, learned, progress.best)
        self.display.score(means)
        self._log(progress.iteration, _rows(estimates))
        self._save(any(better))

    def _save(self, with_best: bool = False) -> None:
        progress, run_dir = self.progress, self.plan.run_dir
        self._tick()
        # All of them with the state: after a kill between the two, the evaluation that is made
        # again finds the scores of then.
        names = ("scores", "best_steps", "iteration", "flat", "wall_seconds", "compile_seconds")
        counters = {k: copy.copy(getattr(progress, k)) for k in names}
        best = (run_dir / rundir.BEST, progress.best, {})
        last = (run_dir / rundir.LAST, progress.state, counters | {"inputs": self.inputs_hash})
        self.writer.write(*([best, last] if with_best else [last]))

    def _tick(self) -> None:
        self.progress.wall_seconds = time.perf_counter() - self.began


def _choose(better: list[bool], new: Params, old: Params) -> Params:
    """Each seed's new parameters if they're better; copied, for the new ones will be donated."""
    mask = jnp.asarray(better if len(better) > 1 else better[0])
    pick = lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o)
    return jax.tree.map(pick, new, old)


def _rows(estimates: list[dict[str, Estimate]]) -> dict[str, np.ndarray]:
    """Estimates of each seed as what `Logs.write` takes; NaN where a seed has none."""
    rows, unknown = {}, Estimate(math.nan, math.nan, math.nan)
    for name in dict.fromkeys(name for e in estimates for name in e):
        mean, low, high = np.transpose([e.get(name, unknown) for e in estimates])
        rows |= {f"validation/{name}": mean}
        rows |= {f"validation/{name}/low": low, f"validation/{name}/high": high}
    return rows


def _conclude(
    plan: Plan, programs: Programs, progress: _Progress, config: Mapping[str, Any]
) -> Result:
    """Tests the best policies, unless the run isn't complete, and writes the results."""
    trainer = plan.trainer
    interrupted = not plan.over(progress.iteration, progress.flat)
    steps = plan.steps_after(progress.iteration)
    tests: list[dict[str, Estimate]] = []
    if interrupted:
        print(f"stopped at step {steps:,}; the run can be resumed from there", flush=True)
    else:
        tests = estimate(plan, programs, progress.best, "test", plan.test_episodes)
        _write_results(plan, progress, config, tests)
    return Result(
        steps=steps,
        interrupted=interrupted,
        policy=plan.trainer.act(True),
        params=progress.best if plan.seeds > 1 else trainer.complete(progress.best, trainer.inputs),
        state=progress.state,
        evaluation=tuple(tests),
        wall_seconds=progress.wall_seconds,
        compile_seconds=progress.compile_seconds,
    )


def _write_results(
    plan: Plan, progress: _Progress, config: Mapping[str, Any], tests: list[dict[str, Estimate]]
) -> None:
    """A `result.json` for each seed, and one for all if there are several."""
    metric = plan.trainer.env.metric.name
    names = {k: config[k] for k in ("env", "algo", "engine") if k in config}
    costs = {
        "steps": plan.steps_after(progress.iteration),
        "wall_seconds": progress.wall_seconds,
        "compile_seconds": progress.compile_seconds,
        "split": "test",
        "episodes": plan.test_episodes,
        "metric": metric,
    }
    if plan.patience is not None:
        costs["ended_early"] = progress.iteration < plan.iterations
    context = {"hardware": rundir.hardware(), "config": config}

    def write(folder: Path, who: dict, value: Estimate, more: dict) -> None:
        parts = names | who | costs | {metric: value} | more | context
        rundir.write_json(folder / rundir.RESULT, parts)

    seeds = [plan.seed + k for k in range(plan.seeds)]
    for k, (folder, estimates) in enumerate(zip(plan.folders, tests, strict=True)):
        more = {"best_steps": progress.best_steps[k], "estimates": estimates}
        write(folder, {"seed": seeds[k]}, estimates[metric], more)
    if plan.seeds > 1:
        means = [estimates[metric].mean for estimates in tests]
        mean = mean_of_seeds(means, plan.trainer.env.metric.kind)
        write(plan.run_dir, {"seeds": seeds}, mean, {"each": means})
