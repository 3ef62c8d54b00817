"""What the reacher tasks share, on every robot, against their tables and by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats

import envs
from jaxrobo.rollout import run_episode, split_key

KEY = jax.random.key(3)
NAMES = ["DofbotReacher", "UR10Reacher", "KukaReacher", "HiwinReacher"]
BIG = NAMES[1:]
PI = math.pi

# Limits (rad) between which a task moves the joints; goals: of |x| and |y| the least and greatest,
# and of z (m).
TABLE = {
    "UR10Reacher": (
        [
            [-2 * PI, 2 * PI],
            [-7 * PI / 8, -PI / 8],
            [-7 * PI / 8, 7 * PI / 8],
            [-PI, 0],
            [-PI, PI],
            [-2 * PI, 2 * PI],
        ],
        (0.5, 0.9),
        (0.1, 0.9),
    ),
    "KukaReacher": (
        np.deg2rad(
            [[-185, 185], [-155, 35], [-130, 154], [-350, 350], [-130, 130], [-350, 350]]
        ).tolist(),
        (1.0, 1.5),
        (0.2, 1.5),
    ),
    "HiwinReacher": (
        np.deg2rad(
            [[-90, 90], [-135, 100], [-80, 190], [-200, 200], [-130, 130], [-180, 180]]
        ).tolist(),
        (0.5, 1.1),
        (0.2, 1.1),
    ),
}
SAFE = np.deg2rad([[-135, 135], [-180, -60], [0, 180], [-180, 0], [-180, 0], [-180, 180]])


def make(name, **options):
    return envs.make(name, engine="native", threads=1, **options).unwrapped


def marker(env, data):
    return np.asarray(data.site_xpos)[..., env.mj_model.site("marker").id, :]


def simulate(env, actions, key=KEY):
    """The first state and those after each action."""
    start = jax.jit(env.reset)(key)
    step = lambda s, a: ((s := env.step(s, a)), s)
    return jax.device_get((start, jax.jit(lambda s: jax.lax.scan(step, s, actions)[1])(start)))


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "q", "pos"),
    # computed from the URDFs, with the marker's offset from the hand in world axes at q = 0
    [
        ("UR10Reacher", [0] * 6, [1.1843, 0.306141, 0.0116]),
        ("UR10Reacher", [0, -PI / 2, 0, -PI / 2, 0, 0], [0, 0.306141, 1.4273]),
        ("KukaReacher", [0] * 6, [2.765, 0, 0.634]),
        ("KukaReacher", [0, -PI / 2, PI / 2, 0, 0, 0], [1.615, 0, 1.784]),
        ("HiwinReacher", [0] * 6, [0.05, 1.045, 1.445]),
        ("HiwinReacher", [PI / 2, 0, 0, 0, 0, 0], [-1.045, 0.05, 1.445]),
    ],
)
def test_the_marker_is_where_the_original_has_it(name, q, pos):
    model = make(name).mj_model
    data = mujoco.MjData(model)
    data.qpos = q
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("marker").xpos, pos, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UR10Reacher", {"episode_steps": 600, "moving_average": 0.1}),
        ("KukaReacher", {"episode_steps": 599, "moving_average": 1.0}),
        ("HiwinReacher", {"episode_steps": 599, "moving_average": 1.0}),
    ],
)
def test_defaults_are_the_originals(name, options):
    shared = {"success_tolerance": 0.1, "distance_scale": -2.0, "action_scale": -2e-4}
    shared |= {"goal_bonus": 250.0, "speed_scale": 20.0, "reset_noise": 0.2}
    config = dataclasses.asdict(envs.config_class(name)())
    assert {k: config[k] for k in shared | options} == shared | options
    assert envs.make(name, engine="native").time_limit == options["episode_steps"]


@pytest.mark.parametrize("name", BIG)
def test_targets_and_goals_are_the_tables(name):
    limits, near, height = TABLE[name]
    env = make(name)
    np.testing.assert_allclose(env.arm.limits, limits, atol=1e-9)
    pos = np.asarray(jax.vmap(env.arm.goals.sample)(jax.random.split(KEY, 4000))[0])
    uniform = lambda low, high: stats.uniform(low, high - low).cdf
    for axis in (0, 1):
        assert stats.kstest(abs(pos[:, axis]), uniform(*near)).pvalue > 0.01
    assert stats.kstest(pos[:, 2], uniform(*height)).pvalue > 0.01
    quadrant = (pos[:, 0] > 0) + 2 * (pos[:, 1] > 0)
    np.testing.assert_allclose(np.bincount(quadrant) / 4000, 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("options", "near", "height"),
    [
        ({"safety": True}, (0.40, 0.72), (0.1, 0.9)),
        ({"real_goals": True}, (0.35, 0.45), (0.3, 0.8)),
        ({"safety": True, "real_goals": True}, (0.28, 0.36), (0.3, 0.8)),
    ],
)
def test_a_real_ur10_has_its_goals_in_one_quadrant(options, near, height):
    env = make("UR10Reacher", **options)
    pos = np.asarray(jax.vmap(env.arm.goals.sample)(jax.random.split(KEY, 2000))[0])
    for axis, (low, high) in enumerate((near, near, height)):
        cdf = stats.uniform(low, high - low).cdf
        assert stats.kstest(pos[:, axis], cdf).pvalue > 0.01
    expected = SAFE if options.get("safety") else TABLE["UR10Reacher"][0]
    np.testing.assert_allclose(env.arm.limits, expected, atol=1e-9)


# --- the task -------------------------------------------------------------------------------------


TOLERANCE = {"UR10Reacher": 1.2, "KukaReacher": 3.0, "HiwinReacher": 2.0}
"""So wide that goals are reached now and then by chance, m."""


@pytest.fixture(scope="module", params=BIG)
def episode(request):
    """Random actions, each held for a while."""
    env = make(request.param, success_tolerance=TOLERANCE[request.param], moving_average=0.3)
    actions = jax.random.uniform(KEY, (6, 6), minval=-1.2, maxval=1.2)
    actions = jnp.repeat(actions, 50, axis=0)
    start, states = simulate(env, actions)
    return env, start, np.clip(actions, -1, 1), states


def test_rewards_are_computed_by_hand(episode):
    env, start, actions, states = episode
    goal = np.concatenate([start.info["goal_pos"][None], states.info["goal_pos"][:-1]])
    distance = np.linalg.norm(marker(env, states.data) - goal, axis=-1)
    reached = distance <= env.config.success_tolerance
    expected = -2 * distance - 2e-4 * np.sum(actions**2, -1) + 250 * reached
    np.testing.assert_allclose(states.reward, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(states.metrics["goals"], reached)
    np.testing.assert_allclose(np.sum(states.metrics["final_distance"]), distance[-1], atol=1e-4)
    steps = np.abs(np.diff(actions, axis=0, prepend=0)).mean(-1)
    np.testing.assert_allclose(states.metrics["action_change"], steps, rtol=1e-5)
    changed = (goal != states.info["goal_pos"]).any(-1)
    np.testing.assert_array_equal(changed, reached)
    assert 0 < reached.sum() < 300


def test_observations_are_scaled_by_the_tasks_limits(episode):
    env, start, actions, states = episode
    low, high = env.arm.limits.T
    obs, data = states.obs, states.data
    assert env.observation_spec.shape == start.obs.shape == (29,)
    scaled = 2 * (data.qpos - low) / (high - low) - 1
    np.testing.assert_allclose(obs[:, :6], scaled, atol=1e-5)
    np.testing.assert_allclose(obs[:, 6:12], np.clip(0.2 * data.qvel, -5, 5), atol=1e-5)
    np.testing.assert_array_equal(obs[:, 12:15], states.info["goal_pos"])
    np.testing.assert_allclose(obs[:, 23:], actions, atol=1e-6)


def test_targets_are_scaled_smoothed_and_held_by_the_limits(episode):
    env, start, actions, states = episode
    low, high = env.arm.limits.T
    target = start.data.ctrl
    for action, ctrl in zip(actions, states.data.ctrl, strict=True):
        target = 0.3 * (low + (action + 1) / 2 * (high - low)) + 0.7 * target
        np.testing.assert_allclose(ctrl, target, atol=2e-5)
    slack = 5e-3  # joints pull at each other
    assert (states.data.qpos >= low - slack).all()
    assert (states.data.qpos <= high + slack).all()


def test_relative_control_is_not_smoothed():
    """The UR10's targets, smoothed to a tenth by default, move by 20 rad/s x 16.6 ms x action."""
    env = make("UR10Reacher", relative_control=True)
    assert env.config.moving_average == 0.1
    action = jnp.array([1.0, 0.5, -0.5, 0.0, 0.1, -1.0])
    start, states = simulate(env, action[None])
    expected = np.clip(start.data.ctrl + 20 * 0.0166 * action, *env.arm.limits.T)
    np.testing.assert_allclose(states.data.ctrl[0], expected, atol=1e-6)


@pytest.mark.parametrize(("name", "cap"), [("UR10Reacher", None), ("KukaReacher", 0.7)])
def test_joints_keep_to_their_speeds(name, cap):
    env = make(name, profile="servo", velocity_cap=cap, moving_average=1.0)
    actions = jnp.repeat(jnp.array([[1.0] * 6, [-1.0] * 6]), 40, axis=0)
    _, states = simulate(env, actions)
    speeds = env.arm.max_speed if cap is None else np.full(6, cap)
    fastest = abs(states.data.qvel).max(0)
    assert (fastest <= 1.02 * speeds).all()
    assert (fastest[:3] > 0.9 * speeds[:3]).all()


def test_episodes_start_within_the_tasks_limits():
    """A fifth of the limits is outside of them where 0 is."""
    starts = {}
    for quirks in (False, True):
        env = make("UR10Reacher", upstream_quirks=quirks)
        reset = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 256))
        low, high = env.arm.limits.T
        starts[quirks] = np.asarray(reset.data.qpos)
        np.testing.assert_array_equal(reset.data.ctrl, starts[quirks])
    raw = starts[True]
    assert (raw >= 0.2 * low - 1e-6).all()
    assert (raw <= 0.2 * high + 1e-6).all()
    assert (raw[:, 1] > high[1]).any()
    np.testing.assert_allclose(starts[False], np.clip(raw, low, high), atol=1e-6)


# --- the original's quirks ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BIG, "DofbotReacher"])
def test_quirks_pin_the_sixth_joint(name):
    options = {"gripper": True} if name == "DofbotReacher" else {}
    action = jnp.array([0.2, -0.1, 0.3, 0.1, -0.4, 0.8])
    moved = {}
    for quirks in (False, True):
        env = make(name, upstream_quirks=quirks, moving_average=1.0, **options)
        _, states = simulate(env, jnp.tile(action, (3, 1)))
        moved[quirks] = states
        taken = action if not quirks else action.at[5].set(0.0)
        np.testing.assert_allclose(states.obs[:, -6:], np.tile(taken, (3, 1)), atol=1e-6)
        low, high = env.arm.limits.T
        target = low + (np.asarray(taken) + 1) / 2 * (high - low)
        np.testing.assert_allclose(states.data.ctrl[-1], target, atol=2e-6)
        squared = np.sum(np.square(taken))
        np.testing.assert_allclose(states.metrics["reward/action"], -2e-4 * squared, rtol=1e-5)
    assert moved[True].data.ctrl[-1, 5] == pytest.approx(env.arm.limits[5].mean())


def test_quirks_judge_the_pose_before_the_step():
    env = make("KukaReacher", upstream_quirks=True)
    start, states = simulate(env, jnp.ones((2, 6)))
    goal = start.info["goal_pos"]
    distance = np.linalg.norm(marker(env, start.data) - goal)
    assert states.reward[0] == pytest.approx(-2 * distance - 5 * 2e-4, rel=1e-5)
    env = make("KukaReacher")
    _, states = simulate(env, jnp.ones((2, 6)))
    distance = np.linalg.norm(marker(env, states.data)[0] - goal)
    assert states.reward[0] == pytest.approx(-2 * distance - 6 * 2e-4, rel=1e-5)


def test_a_dofbot_with_a_gripper_has_six_joints_and_a_quick_wrist():
    env = make("DofbotReacher", gripper=True)
    assert (env.action_size, env.observation_size) == (6, 29)
    assert env.mj_model.jnt_range[5] == pytest.approx([-PI / 6, PI / 3])
    start, states = simulate(env, jnp.array([[0.0] * 4 + [1.0, 1.0]] * 3))
    left = states.data.ctrl - states.data.qpos
    ratio = left[0, 4:] / (states.data.ctrl[0] - start.data.qpos)[4:]
    # two steps of 8.3 ms: q' = q + 0.83 (target - q) with a lag of 0.01 s
    np.testing.assert_allclose(ratio, (1 - 0.83) ** 2, atol=0.02)
    plain = make("DofbotReacher")
    for name in ("marker", "tolerance"):
        site = [m.site(name).pos for m in (env.mj_model, plain.mj_model)]
        np.testing.assert_allclose(*site)
    mass = [m.body_mass.sum() for m in (env.mj_model, plain.mj_model)]
    assert mass[0] == pytest.approx(mass[1])


# --- randomisation --------------------------------------------------------------------------------


def test_randomised_episodes_differ_in_what_the_options_name():
    env = envs.make(
        "DofbotReacher",
        engine="native",
        threads=1,
        stiffness_scale=(0.5, 1.0),
        damping_scale=(1.0, 2.0),
        mass_scale=(0.8, 1.2),
        action_latency=(0, 2),
        observation_latency=(1, 1),
        observation_noise=(0.01, 0.02),
    )
    states = jax.device_get(jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 64)))
    nominal, model = env.mj_model, states.data.model
    for field, low, high in (
        ("actuator_gainprm", 0.5, 1.0),
        ("dof_damping", 1.0, 2.0),
        ("body_mass", 0.8, 1.2),
    ):
        there = getattr(nominal, field) != 0
        factor = (model[field] / np.where(there, getattr(nominal, field), 1))[:, there]
        assert low - 1e-6 <= factor.min() < factor.max() <= high + 1e-6
        assert np.ptp(factor[:, 0]) > 0.5 * (high - low)
    assert set(states.info["latency"]["action_steps"].tolist()) == {0, 1, 2}
    assert set(states.info["latency"]["observation_steps"].tolist()) == {1}
    std = states.info["observation_noise"]["std"]
    assert 0.01 <= std.min() < 0.012 < 0.018 < std.max() <= 0.02


def test_nothing_is_randomised_by_default():
    env = envs.make("UR10Reacher", engine="native", threads=1)
    state = env.reset(KEY)
    assert not state.data.model
    assert not {"latency", "observation_noise"} & state.info.keys()


# --- the expert -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("UR10Reacher", {}, 9),
        ("UR10Reacher", {"upstream_quirks": True, "profile": "servo"}, 1.5),
        ("KukaReacher", {}, 1.5),
        ("HiwinReacher", {"upstream_quirks": True}, 1.5),
    ],
)
def test_the_expert_reaches_goals(name, options, least):
    """A goal takes about 9, 50, 46 and 52 steps."""
    env = envs.make(name, engine="native", threads=1, episode_steps=120, **options)
    expert = env.expert()
    keys = jax.random.split(split_key("validation", 0), 8)
    goals = jax.jit(jax.vmap(lambda key: run_episode(env, expert, (), key)["goals"]))(keys)
    assert goals.mean() >= least
    assert goals.min() >= 1


# --- the engines, and wrong options ---------------------------------------------------------------


def test_the_engines_agree():
    """The stiffest drives, in single precision."""
    action = jnp.array([0.5, -0.3, 0.4, 0.2, -0.6, 0.9])
    moved = {}
    start = jax.jit(envs.make("HiwinReacher", engine="native").reset)(KEY)
    for engine in ("native", "mjx"):
        step, state = jax.jit(envs.make("HiwinReacher", engine=engine).step), start
        for _ in range(5):
            state = step(state, action)
        moved[engine] = jax.device_get(state)
    native, mjx = moved["native"], moved["mjx"]
    np.testing.assert_allclose(native.data.qpos, mjx.data.qpos, atol=1e-5)
    np.testing.assert_allclose(native.obs, mjx.obs, atol=1e-4)
    np.testing.assert_allclose(native.reward, mjx.reward, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "real"}, "unknown profile 'real'; valid: isaac, servo"),
        ({"mass_scale": (0.0, 1.0)}, r"mass_scale must be 0 < low <= high, got \(0.0, 1.0\)"),
        ({"stiffness_scale": (2.0, 1.0)}, r"stiffness_scale must be .*, got \(2.0, 1.0\)"),
        ({"observation_noise": (-1, 0)}, r"observation_noise must be 0 <= .*, got \(-1, 0\)"),
        ({"action_latency": (2, 1)}, r"action_latency must be 0 <= .*, got \(2, 1\)"),
        ({"action_latency": (0, 0.5)}, r"action latency must be whole numbers, .*got \(0, 0.5\)"),
        ({"velocity_cap": -1.0}, r"velocity_cap must be positive, got -1.0"),
        ({"saftey": True}, "UR10Reacher has no option 'saftey'; valid: profile, .*safety"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        envs.make("UR10Reacher", engine="native", **options)
    if "profile" in options:
        with pytest.raises(ValueError, match=r"relative_control must be off"):
            make("UR10Reacher", relative_control=True).expert()
