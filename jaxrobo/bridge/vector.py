"""Vector environments of other libraries under our trainers.

    import gymnasium
    from gymnasium.vector import AutoresetMode
    from jaxrobo import training
    from jaxrobo.bridge.vector import from_gymnasium
    from jaxrobo.learning import ppo

    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    inner = gymnasium.make_vec("Pendulum-v1", num_envs=16, vector_kwargs=mode)
    trainer = ppo.make(from_gymnasium(inner), ppo.Config(num_envs=16, horizon=128, discount=0.9))
    training.run(trainer, "runs/pendulum", steps=300_000, evaluate_every=50_000)

Each function reads one convention: what `step` returns, what "done" means, when an episode's first
observation comes, and who knows the last one of the episode before. Tensors stay on their device
(`jaxrobo.bridge.dlpack`); of gymnasium's numpy arrays there's one copy, to JAX's device.

Evaluations run in the same simulations, which start new episodes for them, and again afterwards. A
run that is resumed goes on with all but the simulations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.env import HostEnv, Metric, Observation, Outcome, Spec

__all__ = ["VectorEnv", "from_gymnasium", "from_isaac_gym", "from_isaac_lab", "from_maniskill"]

UNSEEN_STEPS = 10
"""In how many steps simulations of Isaac Gym must all have begun an episode."""

_RETURN = Metric("reward", kind="count")


class VectorEnv(HostEnv):
    """Simulations of another library. Made by this module's functions.

    Attributes:
      inner: the other library's environment.
    """

    def __init__(
        self,
        inner: Any,
        num_envs: int,
        action_size: int,
        start: Callable[[int], Observation],
        step: Callable[[jax.Array], Outcome],
        autoreset: str,
        time_limit: int | None,
        metric: Metric = _RETURN,
        metric_names: tuple[str, ...] = (),
    ) -> None:
        """Starts the simulations once, to see what they show.

        Args:
          inner: the other library's environment.
          num_envs: how many simulations it has.
          action_size: the length of an action.
          start: `seed -> observation [num_envs, ...]`.
          step: `action [num_envs, action_size], clipped -> outcome`.
          autoreset: see `HostEnv`.
          time_limit: control steps after which every episode is over; None is an error.
          metric: what the task is judged by.
          metric_names: see `HostEnv`.

        Raises:
          ValueError: if nobody says when an episode is over, or what it shows isn't an array, or a
            flat dict of arrays, with the leading axis `num_envs`, or isn't on the device that JAX
            computes on.
        """
        if time_limit is None:
            raise ValueError(
                f"{type(inner).__name__} doesn't tell its time limit: pass time_limit=, the "
                "control steps after which every episode is over"
            )
        self.inner = inner
        self.num_envs = num_envs
        self.autoreset = autoreset
        self.metric, self.metric_names, self.time_limit = metric, metric_names, time_limit
        self._action_size, self._start, self._step = action_size, start, step
        first = start(0)
        self._spec = _spec_of(first, num_envs)
        _check_device(type(inner).__name__, first)

    @property
    def action_size(self) -> int:
        """See `Env.action_size`."""
        return self._action_size

    @property
    def observation_spec(self) -> Spec | dict[str, Spec]:
        """See `Env.observation_spec`."""
        return self._spec

    def start(self, seed: int) -> Observation:
        """See `HostEnv.start`."""
        return self._start(seed)

    def advance(self, action: jax.Array) -> Outcome:
        """See `HostEnv.advance`."""
        return self._step(jnp.clip(action, -1.0, 1.0))


def from_isaac_gym(env: Any, time_limit: int | None = None, copy: bool = True) -> VectorEnv:
    """A `VecTask` of IsaacGymEnvs, or a task of OmniIsaacGymEnvs behind its `VecEnvRLGames`.

    `step` returns `(observations, reward, done, extras)`; `observations["obs"]` is what is read. An
    episode that is done shows its last state; the next action is ignored, and what that step shows
    is the next episode's. `extras["time_outs"]` tells which were cut short; without it, those whose
    `progress_buf` says that their time was up, whatever else ended them. Simulations aren't seeded:
    they draw from what they were made with. Where an episode is over as it begins, all make a step
    of zeros, unseen, until none is.

    Args:
      env: the simulations.
      time_limit: control steps after which every episode is over; the task's own if None.
      copy: whether observations and rewards are copied; the simulator writes them anew in every
        step.

    Raises:
      RuntimeError: if episodes are still over as they begin after `UNSEEN_STEPS`.
    """
    from jaxrobo.bridge.dlpack import to_jax, to_torch

    action_size = math.prod(env.action_space.shape)

    def start(seed: int) -> jax.Array:
        del seed
        observations = env.reset()
        over = getattr(env, "_resets", None)  # after the step that VecEnvRLGames makes to reset
        if hasattr(env, "zero_actions"):  # of a VecTask: reset neither resets nor observes
            env.reset_buf[:] = 1
            over = env.reset_buf
        for _ in range(UNSEEN_STEPS):
            if over is None or not over.any():
                return to_jax(observations["obs"], copy)
            zeros = to_torch(jnp.zeros((env.num_envs, action_size)), copy=True)
            observations, _, over, _ = env.step(zeros)
        raise RuntimeError(f"episodes of {type(env).__name__} are over as they begin")

    def step(action: jax.Array) -> Outcome:
        observations, reward, done, extras = env.step(to_torch(action, copy=True))
        done = done != 0
        cut = extras.get("time_outs")
        if cut is None and own is not None and hasattr(task, "progress_buf"):
            cut = task.progress_buf >= own - 1  # as VecTask has it
        cut = done & (cut != 0) if cut is not None else done & False
        obs, reward = to_jax((observations["obs"], reward), copy)
        terminated, truncated = to_jax((done & ~cut, cut), copy=False)
        return Outcome(obs, reward, terminated, truncated, {})

    task = getattr(env, "_task", env)  # of OmniIsaacGymEnvs, behind its VecEnvRLGames
    limits = (getattr(task, name, None) for name in ("max_episode_length", "_max_episode_length"))
    own = _whole(next((x for x in limits if x is not None), None))
    return VectorEnv(
        env, env.num_envs, action_size, start, step, "next_step", _whole(time_limit) or own
    )


def from_isaac_lab(
    env: Any,
    group: str = "policy",
    action_scale: float = 1.0,
    time_limit: int | None = None,
    copy: bool = True,
) -> VectorEnv:
    """A `ManagerBasedRLEnv` or `DirectRLEnv` of Isaac Lab.

    `step` returns `(observations, reward, terminated, time_outs, extras)` and has reset what is
    over, so that `observations` are the next episode's first. The last ones are in
    `extras["final_obs"]` if `cfg.compute_final_obs` is set; if not, nobody tells them: where an
    episode was cut short, its last value is then taken from the observation one step before.

    Tasks that let episodes begin at a random age (`episode_length_buf`), so that not all end at
    once, begin at age 0 when all start: an evaluation is of whole episodes.

    Args:
      env: the simulations.
      group: the observations that are read; a group may be a dict.
      action_scale: what an action of 1 is there, where actions have no bounds; none is larger.
      time_limit: control steps after which every episode is over; `env.max_episode_length` if None.
      copy: whether observations and rewards are copied; the simulator may write them anew.

    Raises:
      ValueError: if there's no such group.
    """
    from jaxrobo.bridge.dlpack import to_jax, to_torch

    inner = env.unwrapped

    def read(observations: Mapping[str, Any]) -> Observation:
        if group not in observations:
            raise ValueError(f"no observations {group!r}; there are: {', '.join(observations)}")
        return to_jax(observations[group], copy)

    tells_final = getattr(getattr(inner, "cfg", None), "compute_final_obs", False)

    def start(seed: int) -> Observation:
        observations, _ = env.reset(seed=seed)
        if (ages := getattr(inner, "episode_length_buf", None)) is not None:
            ages[:] = 0
        return read(observations)

    def step(action: jax.Array) -> Outcome:
        scaled = to_torch(action, copy=True) * action_scale
        observations, reward, terminated, cut, extras = env.step(scaled)
        flags = to_jax((terminated.bool(), cut.bool()))
        outcome = Outcome(read(observations), to_jax(reward, copy), *flags, {})
        if not tells_final:
            return outcome
        final = extras.get("final_obs")  # only where an episode is over
        return outcome._replace(final_obs=outcome.obs if final is None else read(final))

    limit = _whole(time_limit or getattr(inner, "max_episode_length", None))
    action_size = math.prod(inner.single_action_space.shape)
    return VectorEnv(env, inner.num_envs, action_size, start, step, "same_step", limit)


def from_maniskill(env: Any, time_limit: int | None = None, copy: bool = False) -> VectorEnv:
    """A `ManiSkillVectorEnv` of ManiSkill 3, which resets automatically.

    `step` returns `(observation, reward, terminated, truncated, info)`; where an episode is over,
    `observation` is the next one's first and `info["final_observation"]` its last. An episode is a
    success if `info["success"]` is true in any of its steps.

    Args:
      env: the simulations.
      time_limit: control steps after which every episode is over; that of the task if None.
      copy: whether observations and rewards are copied. ManiSkill makes new tensors in every step,
        so that there is no need.

    Raises:
      ValueError: if the simulations don't start anew by themselves, don't tell of success, or have
        actions beyond [-1, 1], as some of the control modes have.
    """
    from jaxrobo.bridge.dlpack import to_jax, to_torch

    if not getattr(env, "auto_reset", False):
        raise ValueError("episodes must start anew by themselves: wrap it in ManiSkillVectorEnv")
    low, high = _bounds(env.unwrapped.single_action_space)
    if np.any(low != -1) or np.any(high != 1):
        raise ValueError(
            f"actions are in {low.round(2)} .. {high.round(2)}, expected [-1, 1]: choose another "
            "control_mode, as pd_joint_delta_pos"
        )
    succeeded = None

    def start(seed: int) -> Observation:
        nonlocal succeeded
        succeeded = None
        return to_jax(env.reset(seed=seed)[0], copy)

    def step(action: jax.Array) -> Outcome:
        nonlocal succeeded
        obs, reward, terminated, cut, info = env.step(to_torch(action, copy=True))
        over = terminated | cut
        ended = bool(over.any())
        last = info["final_info"] if ended else info
        if "success" not in last:
            raise ValueError(f"{type(env.unwrapped).__name__} doesn't tell of success")
        now = last["success"].bool()
        before = now & False if succeeded is None else succeeded
        succeeded = (before | now) & ~over
        values = obs, reward.float(), terminated, cut, {"success": (now & ~before).float()}
        final = to_jax(info["final_observation"], copy) if ended else None
        outcome = Outcome(*to_jax(values, copy))
        return outcome._replace(final_obs=outcome.obs if final is None else final)

    limit = time_limit or _limit_within(env._env)
    metric = Metric("success", beside=("length_of_success",))
    options = dict(metric=metric, metric_names=("success",))
    return VectorEnv(env, env.num_envs, len(low), start, step, "same_step", limit, **options)


def from_gymnasium(env: Any, time_limit: int | None = None, metric: Metric = _RETURN) -> VectorEnv:
    """A `gymnasium.vector.VectorEnv` with boxes as observations and actions.

    Actions are mapped from [-1, 1] to the box of actions. Ctrl-C reaches the processes of an
    `AsyncVectorEnv` too: let them ignore it (`signal.signal(signal.SIGINT, signal.SIG_IGN)` in the
    function that makes an environment), or a run can't be stopped cleanly.

    Args:
      env: the simulations, with `AutoresetMode.SAME_STEP` or `NEXT_STEP`.
      time_limit: control steps after which every episode is over; that of its `spec` if None.
      metric: what the task is judged by: "reward", or a key of `info` with a number for each
        simulation in every step, as "success"; a rate counts once an episode.

    Raises:
      ValueError: if episodes don't start anew by themselves, actions aren't in a bounded box, or
        nobody tells the time limit: simulations that weren't made by `make_vec` have no `spec`.
    """
    mode = env.metadata.get("autoreset_mode")
    name = getattr(mode, "name", mode)
    if name not in ("SAME_STEP", "NEXT_STEP"):
        raise ValueError(f"autoreset_mode must be SAME_STEP or NEXT_STEP, got {name}")
    low, high = _bounds(env.single_action_space)
    middle, half = high / 2 + low / 2, high / 2 - low / 2
    shape = env.single_action_space.shape
    names = () if metric.name == "reward" else (metric.name,)
    achieved, waits = np.zeros((2, env.num_envs), bool)

    def start(seed: int) -> Observation:
        achieved[:], waits[:] = False, False
        return _put(env.reset(seed=seed)[0])

    def step(action: jax.Array) -> Outcome:
        action = np.asarray(action) * half + middle
        obs, reward, terminated, cut, info = env.step(action.reshape(-1, *shape))
        over, metrics = np.asarray(terminated | cut, bool), {}
        for key in names:
            begun = waits.all()
            values = _values(key, info, over if name == "SAME_STEP" else over & False, begun)
            values = np.where(waits, 0.0, values)  # of the step that only starts an episode
            if metric.kind == "rate":
                new = (values > 0) & ~achieved
                achieved[:] = (achieved | new) & ~over
                values = new
            metrics[key] = values
        if name == "NEXT_STEP":
            waits[:] = over
        flags = jnp.array(terminated, bool), jnp.array(cut, bool)
        reward, metrics = jax.tree.map(lambda x: jnp.array(x, jnp.float32), (reward, metrics))
        outcome = Outcome(_put(obs), reward, *flags, metrics)
        if name == "NEXT_STEP" or not over.any():
            return outcome._replace(final_obs=outcome.obs)
        return outcome._replace(final_obs=_put(_final(obs, info["final_obs"], over)))

    limit = time_limit or getattr(env.spec, "max_episode_steps", None)
    options = dict(metric=metric, metric_names=names)
    size = math.prod(shape)
    return VectorEnv(env, env.num_envs, size, start, step, name.lower(), limit, **options)


def _spec_of(obs: Observation, num_envs: int) -> Spec | dict[str, Spec]:
    """What one of the simulations shows, an image where it has three axes or more.

    Raises:
      ValueError: if there isn't one of each.
    """

    def one(x: Any) -> Spec:
        if not isinstance(x, jax.Array):
            raise ValueError(
                f"observations must be an array or a flat dict of arrays, got a {type(x).__name__} "
                "in it"
            )
        if x.ndim < 2 or x.shape[0] != num_envs:
            raise ValueError(
                f"{num_envs} simulations show an array {x.shape}, expected [{num_envs}, ...]"
            )
        return Spec(x.shape[1:], x.dtype, "image" if x.ndim > 3 else "state")

    return {k: one(v) for k, v in obs.items()} if isinstance(obs, dict) else one(obs)


def _check_device(name: str, obs: Observation) -> None:
    """Raises ValueError if JAX would follow the simulator to another device than its own."""
    found = set().union(*(x.devices() for x in jax.tree.leaves(obs)))
    if found != (own := jnp.zeros(()).devices()):
        say = lambda devices: ", ".join(sorted(f"{d.platform}:{d.id}" for d in devices))
        raise ValueError(
            f"{name} simulates on {say(found)}, JAX computes on {say(own)}: simulate there, or "
            "choose another by jax_default_device or JAX_PLATFORMS=cpu"
        )


def _whole(limit: Any) -> int | None:
    """A number of steps that may be a tensor, or a float."""
    return None if limit is None else math.ceil(float(limit))


def _limit_within(env: Any) -> int | None:
    """The time limit that one of the wrappers of an environment knows."""
    while env is not None:
        if (limit := getattr(env, "_max_episode_steps", None)) is not None:
            return limit
        env = vars(env).get("env")
    return None


def _put(tree: Any) -> Any:
    """Numpy arrays on JAX's device; a copy, since their owner may write to them again."""
    return {k: _put(v) for k, v in tree.items()} if isinstance(tree, Mapping) else jnp.array(tree)


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a box of actions, flat. Raises ValueError if it isn't bounded."""
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"actions must be in a bounded box, got {space}")
    return low.reshape(-1), high.reshape(-1)


def _values(name: str, info: Mapping[str, Any], over: np.ndarray, begun: bool) -> np.ndarray:
    """A number for each simulation, from `info`, or from `info["final_info"]` where it's over.

    Zeros where all have only just `begun`, which is when nobody has to tell.

    Raises:
      ValueError: if neither has it.
    """
    final = info.get("final_info", {})
    if over.any() and name in final:
        live = np.asarray(info.get(name, np.zeros(over.shape)), np.float32)
        return np.where(over, np.asarray(final[name], np.float32), live)
    if name in info:
        return np.asarray(info[name], np.float32)
    if begun:
        return np.zeros(over.shape, np.float32)
    there = sorted(key for key in {*info, *final} if not key.startswith(("_", "final")))
    raise ValueError(f"info has no {name!r}; there are: {', '.join(there) or 'none'}")


def _final(obs: Any, final: np.ndarray, over: np.ndarray) -> Any:
    """What is shown after a step, before any reset: from gymnasium's array of objects."""
    if isinstance(obs, Mapping):
        return {k: _final(v, [f and f[k] for f in final], over) for k, v in obs.items()}
    whole = np.array(obs)
    for i in np.flatnonzero(over):
        whole[i] = final[i]
    return whole
