"""Our environments as gymnasium's, against gymnasium's own checker and its own loop over them."""

import copy
import functools
import importlib
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import envs
from jaxrobo import _opengl, rendering
from jaxrobo.bridge.gymnasium import GymnasiumEnv, GymnasiumVectorEnv, observation_space
from jaxrobo.env import ActionRepeat, Spec, TimeLimit
from jaxrobo.randomise import Randomise, Uniform
from tests.learning.diagnostic_envs import Aim, Tasks, Walk, endless
from tests.test_rendering import Slide, needs_gl

SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)


def dofbot():
    return envs.make("DofbotReacher", engine="native", threads=1, episode_steps=2)


def walk():
    return TimeLimit(Walk(), 4)


def one(make):
    """A `GymnasiumEnv` of its own, with programs that are compiled only once."""
    return copy.copy(_one(make))


@functools.cache
def _one(make):
    return GymnasiumEnv(make())


def loop(make, num_envs, mode):
    """Gymnasium's own loop over simulations."""
    return SyncVectorEnv([lambda: one(make)] * num_envs, autoreset_mode=mode)


def assert_same(a, b, rtol=0.0):
    """Equal trees of gymnasium: tuples, dicts, object arrays of observations or None, numbers."""
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, rtol)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], rtol)
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert [x is None for x in a] == [x is None for x in b]
        for x, y in zip(a, b, strict=True):
            if x is not None:
                assert_same(x, y, rtol)
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_allclose(a, b, rtol=rtol)


# Bounds that are infinite are meant: real numbers in an observation have no others.
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value is -?infinity")
@pytest.mark.parametrize("make", [dofbot, Aim], ids=["robot", "dict"])
def test_gymnasium_finds_nothing_wrong(make):
    check_env(one(make), skip_render_check=True)  # see tests/envs/test_gymnasium.py


def test_one_simulation_by_hand():
    """`x <- x + 0.5 a`, over beyond 1 and cut after 4 steps; the reward is x."""
    env = one(walk)
    env.action_space.seed(3)
    kinds = set()
    for episode in range(20):
        obs, info = env.reset(seed=3 if episode == 0 else None)
        assert info == {}
        for step in range(1, 5):
            action = env.action_space.sample()
            expected = obs[0] + 0.5 * action[0]
            obs, reward, terminated, truncated, info = env.step(action)
            np.testing.assert_allclose(obs, [expected, 1], rtol=1e-6)
            assert reward == obs[0]
            assert terminated is bool(abs(obs[0]) > 1)
            assert truncated is (step == 4 and not terminated)
            assert info == {"moved": abs(action[0])}
            if terminated or truncated:
                kinds.add(terminated)
                break
    assert kinds == {False, True}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("make", [walk, Tasks], ids=["array", "dict"])
def test_a_batch_is_gymnasiums_loop_over_single_simulations(make, mode):
    ours, theirs = GymnasiumVectorEnv(make(), 3, mode), loop(make, 3, mode)
    assert ours.metadata == theirs.metadata
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    ours.action_space.seed(0)

    def reset(seed, mask=None):
        options = lambda: None if mask is None else {"reset_mask": np.array(mask)}
        obs = ours.reset(seed=seed, options=options())
        assert_same(obs, theirs.reset(seed=seed, options=options()))

    ends = set()
    for start in (5, [7, None, 2], None):
        reset(start)
        for step in range(10):
            actions = 2 * ours.action_space.sample()
            seen = ours.step(actions)
            assert_same(seen, theirs.step(actions))
            over = seen[2] | seen[3]
            ends.add(int(over.sum()))
            if step == 6:
                reset([None, 4, 6], [False, True, over[2]])
                over[1:] &= [False, not over[2]]
            if mode is DISABLED and over.any():
                reset(None, over)
    assert len(ends) > 2  # none, some or many at once


def test_a_batch_of_robots_is_gymnasiums_loop_over_single_ones():
    ours, theirs = GymnasiumVectorEnv(dofbot(), 2), loop(dofbot, 2, SAME_STEP)
    assert ours.metadata == theirs.metadata
    assert ours.single_observation_space.shape == (26,)
    assert ours.single_action_space == gymnasium.spaces.Box(-1, 1, (5,), np.float32)
    ours.action_space.seed(0)
    assert_same(ours.reset(seed=1), theirs.reset(seed=1))
    for _ in range(5):
        actions = ours.action_space.sample()
        seen = ours.step(actions)
        assert_same(seen, theirs.step(actions), rtol=1e-5)
    assert seen[0] in ours.observation_space


def test_a_seed_is_a_key_of_jax():
    key = jax.random.key(2**32 - 3)
    for seed in (2**32 - 3, 2**40 - 3):
        obs, _ = one(walk).reset(seed=seed)
        np.testing.assert_array_equal(obs, Walk().reset(jax.random.split(key)[1]).obs)


@pytest.mark.parametrize(
    "make",
    [lambda: one(walk), lambda: GymnasiumVectorEnv(Walk(), 2)],
    ids=["one", "many"],
)
def test_without_a_seed_each_is_different_and_can_be_repeated(make):
    env, other = make(), make()
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.reset()[0])
    np.testing.assert_array_equal(make().reset(seed=env.np_random_seed)[0], first)
    env.reset(seed=env.np_random_seed)
    np.testing.assert_array_equal(env.reset()[0], second)


def test_each_episode_is_a_new_one():
    batch = GymnasiumVectorEnv(TimeLimit(Walk(), 2), 2)
    seen = [batch.reset(seed=7)[0]]
    seen += [batch.step(np.zeros((2, 1)))[0] for _ in range(6)]
    assert len(np.unique(np.array(seen)[::2, :, 0])) == 8


def test_outputs_belong_to_the_caller():
    batch = GymnasiumVectorEnv(endless(3), 2)
    obs, _ = batch.reset(seed=0)
    obs[:] = np.nan
    obs, reward, terminated, truncated, _ = batch.step(np.zeros((2, 1)))
    kept = obs.copy()
    for array in (reward, terminated, truncated):
        array[:] = 1
    batch.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(obs, kept)
    np.testing.assert_array_equal(obs, np.ones((2, 1)))


@pytest.mark.parametrize("mode", [SAME_STEP, NEXT_STEP])
def test_gymnasium_counts_the_episodes(mode):
    batch = RecordEpisodeStatistics(GymnasiumVectorEnv(endless(3), 2, mode))
    batch.reset(seed=0)
    for _ in range(6 + (mode is NEXT_STEP)):
        *_, infos = batch.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(infos["episode"]["r"], [3, 3])
    np.testing.assert_array_equal(infos["episode"]["l"], [3, 3])


def test_a_step_is_compiled_once():
    """Where a reset's numbers are arrays and a step's are constants, too."""
    traced = []

    class Weak(Walk):
        def step(self, state, action):
            traced.append(1)
            return super().step(state, action).replace(reward=2.0 * jnp.ones((), bool))

    batch = GymnasiumVectorEnv(Weak(), 2)
    batch.reset()
    for _ in range(3):
        batch.step(np.zeros((2, 1)))
        batch.reset(options={"reset_mask": np.array([True, False])})
    assert len(traced) == 1


def test_observations_are_of_their_types_in_double_precision_too():
    with jax.enable_x64(True):
        env, many = GymnasiumEnv(walk()), GymnasiumVectorEnv(walk(), 2)
        assert env.observation_space.contains(env.reset(seed=0)[0])
        assert env.observation_space.contains(env.step(np.zeros(1))[0])
        assert many.observation_space.contains(many.reset(seed=0)[0])
        assert many.observation_space.contains(many.step(np.zeros((2, 1)))[0])


def test_a_state_may_hold_numbers_of_python():
    class Plain(Walk):
        def reset(self, key, model=None):
            return super().reset(key, model).replace(reward=0.0, done=0.0)

    env = GymnasiumEnv(Plain())
    env.reset(seed=0)
    assert env.step(np.ones(1))[1] != 0


@needs_gl
def test_pictures_are_those_of_films():
    env = GymnasiumEnv(Slide(), "rgb_array")
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": pytest.approx(1 / 0.02)}
    assert GymnasiumEnv(ActionRepeat(Slide(), 4)).metadata["render_fps"] == pytest.approx(1 / 0.08)
    pictures, states = [], []
    for step in range(2):
        env.step(np.array([0.3])) if step else env.reset(seed=5)
        pictures.append(env.render())
        states.append(env._state.data)
    env.close()
    pictures.append(env.render())  # on a new canvas
    states.append(env._state.data)
    env.close()
    over_time = lambda name: np.stack([getattr(s, name) for s in states])[None]
    poses = map(over_time, ("qpos", "mocap_pos", "mocap_quat"))
    film = rendering.render(env.env.visual_model, rendering.Trajectory(*poses, {}, np.ones((1, 3))))
    np.testing.assert_array_equal(pictures, list(film))
    assert (pictures[0] != pictures[1]).any()


@needs_gl
def test_pictures_of_many_show_each_with_its_own_model():
    env = Randomise(TimeLimit(Slide(), 4), {"geom_size": Uniform(0.5, 2.0)})
    ours = GymnasiumVectorEnv(env, 2, render_mode="rgb_array")
    single = GymnasiumEnv(env, "rgb_array")
    theirs = SyncVectorEnv([lambda: copy.copy(single)] * 2, autoreset_mode=SAME_STEP)
    assert ours.metadata == theirs.metadata
    assert ours.render_mode == theirs.render_mode
    for batch in (ours, theirs):
        batch.reset(seed=3)
        batch.step(np.array([[0.1], [-0.4]]))
    pictures, expected = ours.render(), theirs.render()
    ours.close()
    theirs.close()
    assert isinstance(pictures, tuple)
    np.testing.assert_array_equal(pictures, expected)
    red = [np.sum((p[..., 0] > 100) & (p[..., 2] < 50)) for p in pictures]
    assert abs(red[0] - red[1]) > 0.1 * max(red)  # two sizes of the ball


def test_where_nothing_can_be_drawn_it_says_so(monkeypatch):
    for make in (GymnasiumEnv, lambda env, mode: GymnasiumVectorEnv(env, 2, render_mode=mode)):
        assert make(Walk(), None).metadata["render_modes"] == []
        with pytest.raises(ValueError, match="Walk can't be drawn: it has no MuJoCo model"):
            make(Walk(), "rgb_array")
        with pytest.raises(ValueError, match="unknown render mode 'human'; valid: None, 'rgb_arr"):
            make(Slide(), "human")
        env = make(Slide(), None)
        env.reset()
        with pytest.raises(RuntimeError, match="render needs render_mode='rgb_array'"):
            env.render()
        with monkeypatch.context() as patch:
            patch.setenv("MUJOCO_GL", "off")
            with pytest.raises(_opengl.RendererUnavailable, match="MUJOCO_GL=off"):
                make(Slide(), "rgb_array")
            patch.setenv("MUJOCO_GL", "egl")
            with pytest.raises(RuntimeError, match="call reset before render"):
                make(Slide(), "rgb_array").render()


def test_spaces_of_observations():
    image = observation_space(Spec((4, 4, 3), np.uint8, "image"))
    assert image == gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    both = observation_space({"a": Spec((2,)), "b": Spec((5, 3), kind="points")})
    assert both["b"] == gymnasium.spaces.Box(-np.inf, np.inf, (5, 3), np.float32)
    assert list(both.keys()) == ["a", "b"]


def test_misuse_of_one_is_refused():
    env = GymnasiumEnv(endless(1))
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(np.zeros(1))
    with pytest.raises(ValueError, match="takes no options, got 'start', 'goal'"):
        env.reset(options={"start": 1, "goal": 2})
    with pytest.raises(gymnasium.error.Error, match="-1"):
        env.reset(seed=-1)
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(1,\)"):
        env.step(np.zeros(3))
    env.step(np.zeros(1))
    with pytest.raises(RuntimeError, match="the episode is over"):
        env.step(np.zeros(1))


def test_misuse_of_many_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GymnasiumVectorEnv(Walk(), 0)
    with pytest.raises(ValueError, match="'Never'; valid: NextStep, SameStep, Disabled"):
        GymnasiumVectorEnv(Walk(), 2, "Never")
    batch = GymnasiumVectorEnv(endless(1), 2, "Disabled")
    with pytest.raises(RuntimeError, match="call reset before step"):
        batch.step(np.zeros((2, 1)))
    with pytest.raises(RuntimeError, match="reset all simulations before some"):
        batch.reset(options={"reset_mask": np.array([True, False])})
    batch.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 1\)"):
        batch.step(np.zeros((2, 3)))
    batch.step(np.zeros((2, 1)))
    batch.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(RuntimeError, match=r"simulations \[1\] are over"):
        batch.step(np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "option 'mask'; valid: reset_mask", {"options": {"mask": 1}}),
        (TypeError, "bool, got list", {"options": {"reset_mask": [True, False]}}),
        (TypeError, "bool, got int64", {"options": {"reset_mask": np.array([1, 0])}}),
        (
            ValueError,
            r"shape \(3,\), expected \(2,\)",
            {"options": {"reset_mask": np.eye(3)[0] > 0}},
        ),
        (ValueError, "nowhere", {"options": {"reset_mask": np.zeros(2, bool)}}),
        (ValueError, "3 seeds for 2 simulations", {"seed": [1, 2, 3]}),
        (gymnasium.error.Error, "-1", {"seed": -1}),
        (gymnasium.error.Error, "float", {"seed": [1, 2.0]}),
    ],
)
def test_a_wrong_reset_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        GymnasiumVectorEnv(Walk(), 2).reset(**call)


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "jaxrobo.bridge.gymnasium")
    with pytest.raises(ImportError, match=r"pip install 'jaxrobo\[gymnasium\]'"):
        importlib.import_module("jaxrobo.bridge.gymnasium")
