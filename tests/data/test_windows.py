import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobo.data import DataError, gather, make_windows, split_episodes
from tests.data.samples import sample


def test_windows_by_hand():
    # Two episodes: rows 0 to 4 and 5 to 6. Up to one action lies beyond the end.
    windows = make_windows(np.array([5, 7]), horizon=3, action_horizon=2, obs_horizon=2)
    expected_obs = [[0, 0], [0, 1], [1, 2], [2, 3], [5, 5]]
    expected_action = [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4], [5, 6, 6]]
    np.testing.assert_array_equal(windows.obs, expected_obs)
    np.testing.assert_array_equal(windows.action, expected_action)


def test_an_episode_too_short_for_a_window_has_the_one_at_its_start():
    windows = make_windows(np.array([1, 3]), horizon=8, action_horizon=1)
    np.testing.assert_array_equal(windows.obs, [[0], [1]])
    np.testing.assert_array_equal(windows.action[0], np.zeros(8))
    np.testing.assert_array_equal(windows.action[1], [1, 2, 2, 2, 2, 2, 2, 2])


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_windows_are_those_of_a_loop(lengths, horizon, action_horizon, obs_horizon):
    action_horizon = min(action_horizon, horizon)
    obs, action, start = [], [], 0
    for length in lengths:
        last = start + length - 1
        for t in range(max(1, length - horizon + action_horizon)):
            obs.append([max(start + t - k, start) for k in reversed(range(obs_horizon))])
            action.append([min(start + t + k, last) for k in range(horizon)])
        start += length
    windows = make_windows(np.cumsum(lengths), horizon, action_horizon, obs_horizon)
    np.testing.assert_array_equal(windows.obs, obs)
    np.testing.assert_array_equal(windows.action, action)


def test_gathering_is_indexing():
    trajectories = sample((6, 4))
    windows = make_windows(trajectories.episode_ends, 3, 2, obs_horizon=2)
    index = np.array([4, 0, 5])
    obs, action = jax.jit(gather)(trajectories, windows, index)
    assert obs["image"].shape == (3, 2, 2, 3, 3)
    expected = trajectories.obs["robot_state"][windows.obs[index]]
    np.testing.assert_array_equal(obs["robot_state"], expected)
    np.testing.assert_array_equal(action, trajectories.action[windows.action[index]])


def test_bad_horizons_are_refused():
    with pytest.raises(ValueError, match="action_horizon must be in 1 to horizon, 4, got 5"):
        make_windows(np.array([9]), 4, 5)
    with pytest.raises(ValueError, match="obs_horizon must be at least 1, got 0"):
        make_windows(np.array([9]), 4, 2, 0)


def test_a_split_holds_out_a_share_of_the_episodes():
    kept, held = split_episodes(40, 0.05, seed=0)
    assert len(held) == 2
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(40))
    np.testing.assert_array_equal(split_episodes(40, 0.05, seed=0)[1], held)
    assert [len(x) for x in split_episodes(2, 0.01, seed=0)] == [1, 1]
    with pytest.raises(DataError, match="1 episode can't be split"):
        split_episodes(1, 0.05, seed=0)
