"""PegHole: the observation, the action, the reward, the starts, and the expert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.assembly.base import TAG_POS, in_tag_frame
from envs.assembly.peg_hole import build
from envs.robots import panda
from jaxrobo import control
from jaxrobo.control import pose_action
from jaxrobo.evaluation import episode_runner, run_episodes
from jaxrobo.physics.kinematics import Pose, forward
from jaxrobo.physics.rotations import (
    axis_angle_to_quat,
    quat_rotate,
    quat_to_matrix,
    sixd_to_matrix,
)
from jaxrobo.rollout import episode_key

UP = jnp.array([0.0, 0.0, 1.0])


@functools.cache
def make(**options):
    env = envs.make("PegHole", engine="native", **options)
    return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def keys(n):
    return jax.vmap(lambda i: episode_key("train", 0, i))(jnp.arange(n))


@functools.partial(jax.jit, static_argnums=0)
def hold(env, state):
    """Actions that ask for the current pose."""
    actions = jax.vmap(lambda data: pose_action(env.unwrapped.hand_pose(data)))(state.data)
    return jnp.concatenate([actions, jnp.full((len(actions), 1), -1.0)], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def put(env, state, peg):
    """The state with the peg at a pose relative to the hole."""
    data, hole = state.data, env.unwrapped.part_pose
    base = jax.vmap(lambda d: hole(d, 1))(data)
    address = env.unwrapped._part_qpos[0]
    pos = base.pos + jax.vmap(quat_rotate, (0, None))(base.quat, jnp.asarray(peg))
    qpos = data.qpos.at[:, address : address + 3].set(pos)
    qpos = qpos.at[:, address + 3 : address + 7].set(base.quat)
    return state.replace(data=jax.vmap(env.unwrapped.physics.forward)(data.replace(qpos=qpos)))


def test_sizes_and_rate():
    env, _, _ = make()
    assert env.dt == pytest.approx(0.1)
    assert env.action_size == 10
    assert {k: s.shape for k, s in env.observation_spec.items()} == {
        "robot_state": (16,),
        "parts_poses": (21,),
    }
    assert env.time_limit == 200


def test_the_robot_state_is_the_end_effectors():
    env, reset, step = make()
    state = reset(keys(8))
    state = step(state, hold(env, state).at[:, 2].add(0.05))
    data, robot = state.data, np.asarray(state.obs["robot_state"])
    arm = data.qpos[:, env.unwrapped._arm]
    pose = jax.vmap(lambda q: forward(env.unwrapped.chain, q))(arm)
    np.testing.assert_allclose(robot[:, :3], pose.pos, atol=1e-5)
    rot = jax.vmap(sixd_to_matrix)(robot[:, 3:9])
    np.testing.assert_allclose(rot, jax.vmap(quat_to_matrix)(pose.quat), atol=1e-5)
    np.testing.assert_allclose(robot[:, 3:6], np.asarray(rot)[:, 0], atol=1e-6)  # rows
    assert (robot[:, 11] > 0.03).all()  # upwards, m/s
    np.testing.assert_allclose(robot[:, 15], 0.07, atol=1e-3)


def test_parts_are_seen_from_the_tag_with_scalar_last_quaternions():
    """x_tag = y, y_tag = x - 0.3015, z_tag = -z."""
    env, reset, _ = make()
    state = reset(keys(8))
    seen = np.asarray(state.obs["parts_poses"]).reshape(8, 3, 7)
    for i, name in enumerate(("peg/peg", "hole/hole", "obstacle/obstacle")):
        pos = np.asarray(state.data.xpos[:, env.unwrapped.mj_model.body(name).id])
        expected = np.stack([pos[:, 1], pos[:, 0] - 0.3015, -pos[:, 2]], axis=1)
        np.testing.assert_allclose(seen[:, i, :3], expected, atol=1e-6)
    yaw = 0.7
    seen = in_tag_frame(Pose(jnp.asarray(TAG_POS), axis_angle_to_quat(UP, yaw)))
    x, y, z, w = np.asarray(seen[3:])
    # In the tag's frame the part's x axis, at `yaw` from the robot's x, is (sin, cos, 0).
    axis = quat_rotate(jnp.array([w, x, y, z]), jnp.array([1.0, 0, 0]))
    np.testing.assert_allclose(axis, [np.sin(yaw), np.cos(yaw), 0], atol=1e-6)


@pytest.mark.parametrize(
    ("randomness", "joints", "obstacle", "part", "yaw"),
    [("low", 5, 0.02, 0.01, 45), ("med", 10, 0.04, 0.01, 45), ("wide", 5, 0.02, 0.03, 90)],
)
def test_starts_vary_as_much_as_they_should(randomness, joints, obstacle, part, yaw):
    env, reset, _ = make(randomness=randomness)
    data = reset(keys(256)).data
    task = env.unwrapped
    arm = np.degrees(np.asarray(data.qpos[:, task._arm]) - panda.HOME)
    assert 0.9 * joints < np.abs(arm).max() <= joints + 1e-3
    bar = np.asarray(data.mocap_pos[:, 0, :2]) - [0.6815, 0]
    assert 0.9 * obstacle < np.abs(bar).max() <= obstacle + 1e-6
    for i, nominal in enumerate(((0.4, 0.05), (0.4, -0.05))):
        pose = jax.vmap(lambda d, i=i: task.part_pose(d, i))(data)
        assert 0.9 * part < np.abs(pose.pos[:, :2] - jnp.array(nominal)).max() <= part + 1e-6
        turn = np.degrees(2 * np.arctan2(pose.quat[:, 3], pose.quat[:, 0]))
        assert 0.9 * yaw < np.abs(turn).max() <= yaw + 1e-3


def test_errors_may_be_observed_as_well():
    """A peg 30 mm to the right of the hole and 20 mm above: sign(x) log(1 + |x| / 0.1 mm)."""
    env, reset, _ = make(observe_errors=True)
    assert env.observation_spec["pair_errors"].shape == (6,)
    state = reset(keys(2))
    hole = jax.vmap(lambda d: env.unwrapped.part_pose(d, 1))(state.data)
    address = env.unwrapped._part_qpos[0]
    qpos = state.data.qpos.at[:, address : address + 3].set(hole.pos + np.array([0, -0.03, 0.02]))
    qpos = qpos.at[:, address + 3 : address + 7].set(hole.quat)
    observe = lambda data: env.unwrapped._observe(env.unwrapped.physics.forward(data))
    seen = jax.jit(jax.vmap(observe))(state.data.replace(qpos=qpos))["pair_errors"]
    expected = [0, np.log1p(300), -np.log1p(200), 0, 0, 0]
    np.testing.assert_allclose(seen, [expected] * 2, atol=0.02)


def test_nothing_moves_while_nothing_is_asked():
    env, reset, step = make()
    first = state = reset(keys(8))
    actions = hold(env, first)
    for _ in range(10):
        state = step(state, actions)
    moved = np.abs(np.asarray(state.data.xpos - first.data.xpos))
    assert moved.max() < 1e-3


def test_the_reward_comes_once_and_success_lasts():
    env, reset, step = make()
    state = put(env, reset(keys(8)), (0, 0, 0.003))
    rewards = []
    for _ in range(3):
        state = step(state, hold(env, state))
        rewards.append(np.asarray(state.reward))
    np.testing.assert_array_equal(rewards[0], 1)
    np.testing.assert_array_equal(np.stack(rewards[1:]), 0)
    np.testing.assert_array_equal(state.info["success"], True)
    state = put(env, state, (0, 0, 0.05))
    state = step(state, hold(env, state))
    np.testing.assert_array_equal(state.info["success"], True)
    assert not state.done.any()


def test_success_may_end_the_episode():
    env, reset, step = make(terminate_on_success=True)
    state = put(env, reset(keys(4)), (0, 0, 0.003))
    state = step(state, hold(env, state))
    assert state.terminated.all()
    assert state.done.all()
    np.testing.assert_array_equal(state.metrics["success"], 1)


def test_a_peg_on_the_plate_is_not_in_it():
    env, reset, step = make()
    state = put(env, reset(keys(8)), (0.003, 0, 0.0095))
    state = step(state, hold(env, state))
    np.testing.assert_array_equal(state.reward, 0)


def test_delta_and_pos_lead_to_the_same_place():
    move = jnp.array([0.02, -0.01, 0.03])
    ends = []
    for mode in ("pos", "delta"):
        env, reset, step = make(action=mode)
        state = reset(keys(8))
        if mode == "pos":
            action = hold(env, state).at[:, :3].add(move)
        else:
            action = jnp.tile(jnp.r_[move, 1.0, 0, 0, 0, 1, 0, -1], (8, 1))
        ends.append(step(state, action).obs["robot_state"])
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)


def test_perturbations_kick_parts_now_and_then():
    env, reset, step = make(perturbation=0.2)
    state = reset(keys(128))
    after = step(state, hold(env, state))
    parts = env.unwrapped._parts
    moved = np.linalg.norm(np.asarray(after.data.xpos - state.data.xpos)[:, parts, :2], axis=-1)
    share = (moved > 1e-3).mean()
    assert 0.1 < share < 0.25


def test_what_is_over_is_not_kicked():
    env, reset, _ = make(perturbation=1.0)
    state = reset(keys(4))
    live = jnp.arange(4) % 2 == 0
    kick = jax.jit(jax.vmap(env.unwrapped._kick))
    kicked = kick(state.data, keys(4), live).qvel != state.data.qvel
    np.testing.assert_array_equal(kicked.any(axis=1), live)


def test_the_expert_solves_it():
    """All of 32 of the widest starts, among which are those of the others."""
    env, _, _ = make(randomness="wide", terminate_on_success=True)
    run = jax.jit(episode_runner(env, env.expert(), 32))
    sums = run_episodes(run, 32, (), "train", 0, 32)
    assert sums["success"].mean() >= 0.9
    assert sums["length"].mean() < 70


def test_a_fixed_hole_stays():
    env, reset, step = make(hole="fixed")
    state = reset(keys(4))
    state = step(state, hold(env, state))
    np.testing.assert_allclose(
        state.obs["parts_poses"][:, 7:10], [[-0.05, 0.0985, 0]] * 4, atol=1e-6
    )


def test_a_fixed_hole_meets_only_what_moves():
    def met(hole):
        model = build(hole=hole)
        owner = lambda geom: model.geom(geom).name.split("/")[0]
        pairs = zip(model.pair_geom1, model.pair_geom2, strict=True)
        owners = [{owner(a), owner(b)} for a, b in pairs]
        return set().union(*(pair - {"hole"} for pair in owners if "hole" in pair))

    assert met("free") == {"peg", "panda", "table", "obstacle"}
    assert met("fixed") == {"peg", "panda"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"randomness": "huge"}, "unknown randomness 'huge'; valid: low, med, high, wide"),
        ({"action": "joint"}, "unknown action 'joint'; valid: pos, delta"),
        ({"hole": "glued"}, "unknown hole 'glued'; valid: free, fixed"),
        ({"perturbation": 2.0}, "perturbation is a probability, got 2.0"),
        ({"episode_steps": 0}, "episode_steps must be positive, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        envs.make("PegHole", **options)


def test_the_expert_means_the_same_in_both_action_modes():
    def first_target(mode):
        env, reset, _ = make(action=mode)
        state, expert, hand = reset(keys(8)), env.expert(), env.unwrapped.hand_pose

        def first(state, key):
            action, _, _ = expert.act((), expert.init(state, key), state, jax.random.key(0))
            pose = control.pose_target(mode, action[:9], hand(state.data))
            return pose.pos, quat_to_matrix(pose.quat), action[9]

        return jax.jit(jax.vmap(first))(state, keys(8))

    for pos, delta in zip(first_target("pos"), first_target("delta"), strict=True):
        np.testing.assert_allclose(pos, delta, atol=1e-5)


def test_on_mjx_it_has_room_for_60_contacts_and_lowers_for_cuda_without_callbacks():
    env = envs.make("PegHole", engine="mjx")
    assert env.unwrapped.physics.contact_slots == 60
    assert env.unwrapped.physics.constraint_rows <= 300
    run = lambda key: env.step(env.reset(key), jnp.zeros(env.action_size))
    program = jax.jit(jax.vmap(run)).trace(keys(8))
    lowered = program.lower(lowering_platforms=("cuda",))
    assert "callback" not in lowered.as_text()
