"""Each convention, played by a script of it, against what really happened there."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxrobo import host
from jaxrobo.bridge import vector
from jaxrobo.env import Metric, Spec
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import ppo
from jaxrobo.policy import gaussian
from tests.outside import LIMIT, Walks, assert_live_rows_are

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch isn't installed")

NOISY = gaussian(lambda params, obs: (params * np.ones(1), np.zeros(1)))


class VecTask:
    """As `isaacgymenvs.tasks.base.vec_task`: physics, then resets, then what is shown; in place."""

    num_envs, max_episode_length = 3, LIMIT
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self):
        self.walks = Walks(3)
        self.obs_buf, self.rew_buf = torch.zeros(3, 2), torch.zeros(3)
        self.reset_buf, self.time_out = torch.ones(3, dtype=torch.long), torch.zeros(3).bool()

    def zero_actions(self):
        return torch.zeros(3, 1)

    def reset(self):
        return {"obs": self.obs_buf}

    def step(self, actions):
        actions.clamp_(-1, 1)  # of its own, or else JAX's array changes
        resets = self.reset_buf.numpy() > 0
        reward, terminated, cut, _ = self.walks.step(actions.numpy(), ~resets)
        self.walks.reset(resets)
        self._show(reward, terminated | cut, cut)
        extras = {"time_outs": self.time_out, "consecutive_successes": torch.tensor(1.0)}
        return {"obs": self.obs_buf}, self.rew_buf, self.reset_buf, extras

    def _show(self, reward, done, cut):
        self.obs_buf[:] = torch.from_numpy(self.walks.state)
        self.rew_buf[:] = torch.from_numpy(reward)
        self.reset_buf[:] = torch.from_numpy(done)
        self.time_out[:] = torch.from_numpy(cut)


class OmniTask(VecTask):
    """As `VecEnvRLGames` of OmniIsaacGymEnvs: resets, then physics; `reset` steps with zeros.

    Nobody tells which episodes were cut short; the task knows how long one lasts, which is over
    when `progress_buf` is one less, and how old each is.
    """

    zero_actions = max_episode_length = property()  # not there
    _resets = property(lambda self: self.reset_buf)

    def __init__(self):
        super().__init__()
        ages = torch.from_numpy(self.walks.state)[:, 1]
        self._task = SimpleNamespace(_max_episode_length=LIMIT + 1, progress_buf=ages)

    def reset(self):
        self.reset_buf[:] = 1
        return self.step(torch.zeros(3, 1))[0]

    def step(self, actions):
        self.walks.reset(self.reset_buf.numpy() > 0)
        reward, terminated, cut, _ = self.walks.step(actions.numpy())
        self._show(reward, terminated | cut, cut)
        return {"obs": self.obs_buf, "states": self.obs_buf}, self.rew_buf, self.reset_buf, {}


class Lab:
    """As `isaaclab.envs.ManagerBasedRLEnv`: what is over is reset before it's shown."""

    num_envs, max_episode_length = 3, LIMIT
    single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self):
        self.walks, self.seeds = Walks(3), []

    @property
    def unwrapped(self):
        return self

    def _obs(self):
        return {"policy": torch.from_numpy(self.walks.state), "critic": torch.zeros(3, 9)}

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.walks.rng = np.random.default_rng(seed)
        self.walks.reset(np.ones(3, bool))
        return self._obs(), {}

    def step(self, actions):
        reward, terminated, cut, _ = self.walks.step(actions.numpy())
        self.walks.reset(terminated | cut)
        return self._obs(), *map(torch.from_numpy, (reward, terminated, cut)), {"log": {}}


class LabThatTells(Lab):
    """With `cfg.compute_final_obs`, and episodes that begin at any age until told otherwise."""

    cfg = SimpleNamespace(compute_final_obs=True)

    def __init__(self):
        super().__init__()
        self.episode_length_buf = torch.zeros(3, dtype=torch.long)

    def reset(self, seed=None):
        self.episode_length_buf[:] = torch.tensor([0, 2, 4])
        return super().reset(seed)

    def step(self, actions):
        self.walks.state[:, 1] = self.episode_length_buf.numpy()
        reward, terminated, cut, _ = self.walks.step(actions.numpy())
        extras, over = {"log": {}}, terminated | cut
        if over.any():
            extras["final_obs"] = {"policy": torch.from_numpy(self.walks.state.copy())}
        self.walks.reset(over)
        self.episode_length_buf[:] = torch.from_numpy(self.walks.state[:, 1])
        return self._obs(), *map(torch.from_numpy, (reward, terminated, cut)), extras


class ManiSkill(Lab):
    """As `mani_skill.vector.wrappers.gymnasium.ManiSkillVectorEnv`."""

    auto_reset = True
    single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    _env = SimpleNamespace(env=SimpleNamespace(_max_episode_steps=LIMIT))

    def reset(self, seed=None):
        super().reset(seed)
        return torch.from_numpy(self.walks.state.copy()), {}

    def step(self, actions):
        reward, terminated, cut, success = self.walks.step(actions.numpy())
        obs = torch.from_numpy(self.walks.state.copy())
        info = {"success": torch.from_numpy(success), "elapsed_steps": torch.zeros(3)}
        if (terminated | cut).any():
            self.walks.reset(terminated | cut)
            ended = torch.from_numpy(terminated | cut)
            info = {"final_info": info, "_final_info": ended, "final_observation": obs}
            obs = torch.from_numpy(self.walks.state.copy())
        return obs, *map(torch.from_numpy, (reward, terminated, cut)), info


class One(gymnasium.Env):
    """A walk as gymnasium has it, whose actions are in [-3, 3]."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float32)

    def __init__(self):
        self.walks = Walks(1)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.walks.rng = np.random.default_rng(seed)
        self.walks.reset([True])
        return self.walks.state[0].copy(), {}

    def step(self, action):
        reward, terminated, cut, success = (x[0] for x in self.walks.step([action / 3]))
        info = {"success": bool(success)}
        return self.walks.state[0].copy(), float(reward), bool(terminated), bool(cut), info


class Many:
    """Gymnasium's own vector environment of walks."""

    def __init__(self, mode):
        self.inner = SyncVectorEnv([One] * 3, autoreset_mode=mode)

    @property
    def walks(self):
        history = [env.walks.history[0] for env in self.inner.envs]
        return SimpleNamespace(history=history)


def from_many(mode, **options):
    many = Many(mode)
    options = {"time_limit": LIMIT, "metric": Metric("success"), **options}
    env = vector.from_gymnasium(many.inner, **options)
    return many, env


def from_torch(kind, convert):
    inner = kind()
    return inner, convert(inner)


CASES = {
    "isaac gym": lambda: from_torch(VecTask, vector.from_isaac_gym),
    "omni": lambda: from_torch(OmniTask, vector.from_isaac_gym),
    "isaac lab": lambda: from_torch(Lab, vector.from_isaac_lab),
    "isaac lab, final": lambda: from_torch(LabThatTells, vector.from_isaac_lab),
    "maniskill": lambda: from_torch(ManiSkill, vector.from_maniskill),
    "gymnasium, same": lambda: from_many(AutoresetMode.SAME_STEP),
    "gymnasium, next": lambda: from_many(AutoresetMode.NEXT_STEP),
}


def make(name):
    if torch is None and "gymnasium" not in name:
        pytest.skip("torch isn't installed")
    inner, env = CASES[name]()
    for history in inner.walks.history:
        history.clear()
    return inner, env


def _cut(row):
    return (*row[:4], False, True)


@pytest.mark.parametrize("name", CASES)
def test_live_transitions_are_what_happened(name):
    inner, env = make(name)
    assert (env.num_envs, env.action_size, env.observation_spec.shape) == (3, 1, (2,))
    assert env.time_limit == LIMIT + (name == "omni")
    state = host.start(env, NOISY, jax.random.key(1))
    parts = []
    for _ in range(2):
        state, part = host.rollout(env, NOISY, 0.3, state, 20)
        parts.append(jax.device_get(part))
    batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    history = inner.walks.history
    if name == "omni":  # whose last step, as far as it tells, is always one too many
        history = [[_cut(row) if row[3][1] == LIMIT else row for row in rows] for rows in history]
    assert_live_rows_are(
        history, batch, tells_final=name != "isaac lab", first_steps=name != "omni"
    )
    waits = name in ("isaac gym", "omni", "gymnasium, next")
    assert (~batch.live).any() == waits
    if env.metric.name == "success":
        done = batch.live & (batch.terminated | batch.truncated)
        rows = [row for rows in inner.walks.history for row in rows if row[4] or row[5]]
        assert batch.episode["success"][done].sum() == sum(row[3][0] > 1 for row in rows)


@pytest.mark.parametrize("name", CASES)
def test_evaluation(name):
    right = gaussian(lambda params, obs: (np.ones(1), np.zeros(1)), deterministic=True)
    inner, env = make(name)
    estimates = evaluate(env, right, 0.0, episodes=6)
    starts = [row[0][0] for rows in inner.walks.history for row in rows if row[0][1] == 0]
    assert min(starts) < 0 < max(starts)
    if env.metric.name == "success":
        assert estimates["success"].mean == 1
    longest = np.ceil((1 - min(starts)) * 3)
    assert 2 <= estimates["length"].mean <= longest <= 5


@needs_torch
def test_isaac_lab_is_seeded_and_shows_the_group_that_is_asked_for():
    inner = Lab()
    env = vector.from_isaac_lab(inner, group="critic")
    assert env.observation_spec.shape == (9,)
    env.start(7)
    assert inner.seeds[-1] == 7
    with pytest.raises(ValueError, match="no observations 'image'; there are: policy, critic"):
        vector.from_isaac_lab(inner, group="image")


@needs_torch
def test_actions_of_isaac_lab_are_as_large_as_they_are_said_to_be():
    inner = Lab()
    env = vector.from_isaac_lab(inner, action_scale=0.5)
    env.start(0)
    env.advance(np.array([[1.0], [-2.0], [0.1]]))
    moved = [rows[-1][1] for rows in inner.walks.history]
    np.testing.assert_allclose(moved, [0.5, -0.5, 0.05], atol=1e-6)


@needs_torch
def test_an_episode_that_is_over_after_a_step_that_nobody_saw():
    """Of OmniIsaacGymEnvs: no row goes from one episode to another."""

    class Short(OmniTask):
        def step(self, actions):
            observations, reward, done, extras = super().step(actions)
            done[0] |= int(self.walks.state[0, 1] == 1 and len(self.walks.history[0]) == 5)
            return observations, reward, done, extras

    inner = Short()
    env = vector.from_isaac_gym(inner)
    state = host.start(env, NOISY, jax.random.key(1))
    _, batch = host.rollout(env, NOISY, 0.0, state, 30)
    step, live = batch.obs[:, 0, 1], batch.live[:, 0]
    ends = np.asarray(batch.terminated[:, 0])
    for t in np.flatnonzero(live):
        assert ends[t] or batch.next_obs[t, 0, 1] == step[t] + 1
    assert (~live).sum() >= 3


@needs_torch
@pytest.mark.parametrize("convention", [VecTask, OmniTask])
@pytest.mark.parametrize("often", [2, 99])
def test_an_episode_that_is_over_as_it_begins(convention, often):
    """After `start`, which asks until none is: no row goes from one episode to another."""

    class Stillborn(convention):
        times = 0

        def step(self, actions):
            observations, reward, done, extras = super().step(actions)
            if self.times < often:
                done[1], self.times = 1, self.times + 1
            return observations, reward, done, extras

    if often == 99:
        with pytest.raises(RuntimeError, match="episodes of Stillborn are over as they begin"):
            vector.from_isaac_gym(Stillborn())
        return
    inner = Stillborn()
    env = vector.from_isaac_gym(inner)
    inner.times = 0
    state = host.start(env, NOISY, jax.random.key(1))
    _, batch = host.rollout(env, NOISY, 0.0, state, 12)
    assert batch.live[0].all()
    goes_on = batch.next_obs[..., 1] == batch.obs[..., 1] + 1
    assert (goes_on | ~batch.live).all()


@needs_torch
def test_a_shared_buffer_is_shared_and_a_copied_one_is_not():
    for copy in (False, True):
        inner = ManiSkill()
        env = vector.from_maniskill(inner, copy=copy)
        shown = torch.zeros(3, 2)
        inner.reset = lambda seed=None, shown=shown: (shown, {})
        same = env.start(0).unsafe_buffer_pointer() == shown.data_ptr()
        assert same == (not copy)


def test_actions_of_gymnasium_fill_their_box():
    many, env = from_many(AutoresetMode.NEXT_STEP)
    env.start(0)
    env.advance(np.array([[1.0], [-1.0], [5.0]]))
    moved = [rows[-1][1] for rows in many.walks.history]
    np.testing.assert_allclose(moved, [1, -1, 1], atol=1e-6)


class Dictionary(One):
    """The same walk, whose observation is a dict, and whose resets tell of a success."""

    observation_space = gymnasium.spaces.Dict(
        {"place": gymnasium.spaces.Box(-9, 9, (1,)), "step": gymnasium.spaces.Box(0, 9, (1,))}
    )

    def _split(self, obs):
        return {"place": obs[:1], "step": obs[1:]}

    def reset(self, **options):
        obs, _ = super().reset(**options)
        return self._split(obs), {"success": True}  # of the reset: no success of any episode

    def step(self, action):
        obs, reward, terminated, cut, info = super().step(action)
        return self._split(obs), reward, terminated, cut, info


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_observations_that_are_dicts(mode):
    inner = SyncVectorEnv([Dictionary] * 3, autoreset_mode=mode)
    env = vector.from_gymnasium(inner, LIMIT, Metric("success"))
    assert {k: v.shape for k, v in env.observation_spec.items()} == {"place": (1,), "step": (1,)}
    state = host.start(env, NOISY, jax.random.key(1))
    _, batch = host.rollout(env, NOISY, 1.0, state, 20)
    done = batch.live & (batch.terminated | batch.truncated)
    assert done.sum() > 5
    live = batch.live
    np.testing.assert_allclose(batch.next_obs["step"][live], batch.obs["step"][live] + 1)
    success = batch.next_obs["place"][..., 0][done] > 1
    np.testing.assert_array_equal(batch.episode["success"][done], success)


def split(obs):
    return {"place": obs[:, :1], "step": obs[:, 1:]}


class LabOfDicts(Lab):
    """Whose group of observations is a dict."""

    def _obs(self):
        observations = super()._obs()
        return {**observations, "policy": split(observations["policy"])}


class ManiSkillOfDicts(ManiSkill):
    """In an observation mode that is a flat dict."""

    def reset(self, seed=None):
        obs, info = super().reset(seed)
        return split(obs), info

    def step(self, actions):
        obs, *rest, info = super().step(actions)
        if "final_observation" in info:
            info["final_observation"] = split(info["final_observation"])
        return split(obs), *rest, info


@needs_torch
@pytest.mark.parametrize(
    ("kind", "convert"),
    [(LabOfDicts, vector.from_isaac_lab), (ManiSkillOfDicts, vector.from_maniskill)],
)
def test_dicts_of_torch_tensors(kind, convert):
    inner = kind()
    env = convert(inner)
    assert {k: v.shape for k, v in env.observation_spec.items()} == {"place": (1,), "step": (1,)}
    for history in inner.walks.history:
        history.clear()
    state = host.start(env, NOISY, jax.random.key(1))
    _, batch = jax.device_get(host.rollout(env, NOISY, 0.3, state, 40))
    join = lambda obs: np.concatenate([obs["place"], obs["step"]], axis=-1)
    batch = batch.replace(obs=join(batch.obs), next_obs=join(batch.next_obs))
    assert_live_rows_are(inner.walks.history, batch, tells_final=kind is ManiSkillOfDicts)


class Filmed(One):
    """A walk that shows a picture as well."""

    observation_space = gymnasium.spaces.Dict(
        {"place": One.observation_space, "rgb": gymnasium.spaces.Box(0, 255, (8, 6, 3), np.uint8)}
    )

    def reset(self, **options):
        obs, info = super().reset(**options)
        return {"place": obs, "rgb": np.zeros((8, 6, 3), np.uint8)}, info


def test_pictures_are_refused_by_name():
    env = vector.from_gymnasium(SyncVectorEnv([Filmed] * 2, autoreset_mode="SameStep"), LIMIT)
    assert env.observation_spec["rgb"] == Spec((8, 6, 3), np.uint8, "image")
    assert env.observation_spec["place"].kind == "state"
    with pytest.raises(ValueError, match="reads observations of kind 'state'; 'rgb' is 'image'"):
        trained_by_ppo(env)


def trained_by_ppo(env):
    trainer = ppo.make(env, ppo.Config(num_envs=env.num_envs, horizon=8))
    return trainer.policy(trainer.init(jax.random.key(0), ()))


def test_a_metric_that_nobody_tells_is_an_error():
    _, env = from_many(AutoresetMode.NEXT_STEP, metric=Metric("is_success"))
    env.start(0)
    with pytest.raises(ValueError, match="info has no 'is_success'; there are: success"):
        env.advance(np.zeros((3, 1)))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_a_metric_that_nobody_ever_reports_is_refused(mode):
    """And isn't 0 in every episode, as if the policy failed."""

    class Silent(One):
        def step(self, action):
            return *super().step(action)[:4], {}

    inner = SyncVectorEnv([Silent] * 2, autoreset_mode=mode)
    env = vector.from_gymnasium(inner, time_limit=LIMIT, metric=Metric("success"))
    env.start(0)
    with pytest.raises(ValueError, match="info has no 'success'; there are: none"):
        env.advance(np.zeros((2, 1)))


def test_simulations_on_another_device_are_refused():
    """In a process of its own, whose CPU counts as two."""
    program = """
        import jax, jax.numpy as jnp
        from jaxrobo.bridge.vector import VectorEnv

        _, second = jax.devices()
        start = lambda seed: {"obs": jax.device_put(jnp.zeros((3, 2)), second)}
        make = lambda: VectorEnv("elsewhere", 3, 1, start, None, "same_step", time_limit=5)
        try:
            make()
        except ValueError as error:
            print(error)
        with jax.default_device(second):
            make()
    """
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("str simulates on cpu:1, JAX computes on cpu:0: simulate")


def test_what_isnt_understood_is_refused():
    disabled = SyncVectorEnv([One], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="must be SAME_STEP or NEXT_STEP, got DISABLED"):
        vector.from_gymnasium(disabled)
    pole = gymnasium.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(ValueError, match="actions must be in a bounded box, got Discrete"):
        vector.from_gymnasium(pole)
    with pytest.raises(ValueError, match="SyncVectorEnv doesn't tell its time limit: pass time_l"):
        from_many(AutoresetMode.NEXT_STEP, time_limit=None)
    with pytest.raises(ValueError, match=r"expected \[4, \.\.\.\]"):
        vector._spec_of(jax.numpy.zeros((3, 2)), 4)
    if torch is not None:
        inner = ManiSkill()
        inner.auto_reset = False
        with pytest.raises(ValueError, match="wrap it in ManiSkillVectorEnv"):
            vector.from_maniskill(inner)
        inner.auto_reset, inner.single_action_space = True, Lab.single_action_space
        with pytest.raises(ValueError, match="actions must be in a bounded box"):
            vector.from_maniskill(inner)
        inner.single_action_space = gymnasium.spaces.Box(-2.0, 1.0, (1,))
        with pytest.raises(ValueError, match=r"actions are in \[-2.\] .* pd_joint_delta_pos"):
            vector.from_maniskill(inner)
    with pytest.raises(ValueError, match="a flat dict of arrays, got a dict in it"):
        vector._spec_of({"agent": {"qpos": jax.numpy.zeros((3, 2))}}, 3)
