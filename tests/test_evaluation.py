import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxrobo.env import Metric, TimeLimit
from jaxrobo.evaluation import (
    Estimate,
    episode_runner,
    evaluate,
    even_batch,
    mean_of_seeds,
    ratio_interval,
    run_episodes,
    student_interval,
    summarise,
    wilson_interval,
)
from jaxrobo.policy import constant
from jaxrobo.rollout import episode_key
from tests.outside import Walkers
from tests.tiny import Draw

ENV = TimeLimit(Draw(), 8)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_published_values(successes, trials, low, high):
    np.testing.assert_allclose(wilson_interval(successes, trials), (low, high), atol=5e-5)


@given(st.integers(1, 2000), st.data())
def test_wilson_interval_is_symmetric_and_within_0_and_1(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    np.testing.assert_allclose(wilson_interval(n - k, n), (1 - high, 1 - low), atol=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_student_interval_agrees_with_scipy(values):
    error = stats.sem(values)
    mean = np.mean(values)
    expected = stats.t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)
    np.testing.assert_allclose(student_interval(np.array(values)), expected, atol=1e-9)


def test_student_interval_of_one_value_is_unknown():
    assert np.isnan(student_interval(np.array([3.0]))).all()


def test_rates_of_seeds_have_an_interval_of_rates():
    # Standard error 0.0272845, times 4.30265 with two degrees of freedom: 0.117396.
    rates = np.array([0.90, 0.97, 0.99])
    np.testing.assert_allclose(mean_of_seeds(rates, "rate"), (0.953333, 0.835937, 1.0), 1e-5)
    np.testing.assert_allclose(mean_of_seeds(1 - rates, "rate"), (0.046667, 0, 0.164063), 1e-5)
    np.testing.assert_allclose(mean_of_seeds(rates, "count")[2], 1.070730, 1e-5)


def test_summary_starts_with_the_metric_and_gives_only_it_a_wilson_interval():
    sums = {"length": np.array([1.0, 0.0, 0.0, 1.0]), "won": np.array([1.0, 0.0, 0.0, 1.0])}
    summary = summarise(Metric("won"), sums)
    assert list(summary) == ["won", "length", "length_of_success"]
    assert summary["won"] == Estimate(0.5, *wilson_interval(2, 4))
    assert summary["length"] == Estimate(0.5, *student_interval(sums["length"]))
    counted = summarise(Metric("won", "count"), sums)
    assert list(counted) == ["won", "length"]
    assert counted["won"] == summary["length"]


def test_length_of_success_is_of_the_episodes_that_succeeded():
    sums = {"length": np.array([3.0, 9.0, 7.0, 9.0]), "won": np.array([1.0, 0.0, 1.0, 0.0])}
    summary = summarise(Metric("won"), sums)
    # 3 and 7: the mean is 5, the standard error 2, and t 12.7062 with one degree of freedom.
    np.testing.assert_allclose(summary["length_of_success"], (5, 5 - 25.4124, 5 + 25.4124), 1e-5)
    one = summarise(Metric("won"), {k: v[:2] for k, v in sums.items()})["length_of_success"]
    assert one.mean == 3
    assert np.isnan(one[1:]).all()
    none = summarise(Metric("won"), {k: v[1::2] for k, v in sums.items()})
    assert list(none) == ["won", "length"]


def test_length_per_goal_is_a_ratio_of_sums():
    sums = {"length": np.array([4.0, 8.0]), "goals": np.array([1.0, 3.0])}
    # 12 / 4; linearised, 3 + (4 - 3) / 2 and 3 + (8 - 9) / 2: standard error 0.5, t as above.
    metric = Metric("goals", "count", beside=("length_per_goal",))
    ratio = summarise(metric, sums)["length_per_goal"]
    np.testing.assert_allclose(ratio, (3, 3 - 6.3531, 3 + 6.3531), 1e-4)
    none = summarise(metric, sums | {"goals": np.zeros(2)})
    assert list(none) == ["goals", "length"]


def test_the_interval_of_a_ratio_covers_it():
    rng = np.random.default_rng(0)
    y = rng.gamma(4.0, size=(2_000, 100))
    x = 3 * y + rng.normal(size=y.shape)
    low, high = np.transpose([ratio_interval(*pair) for pair in zip(x, y, strict=True)])
    covered = np.mean((low <= 3) & (high >= 3))
    assert 0.935 <= covered <= 0.965  # 0.95 +- 3 standard errors


@pytest.mark.parametrize(
    ("metric", "message"),
    [(Metric("won"), "won is a rate, but an episode's sum is 2.0"), (Metric("hit"), "'hit' isn't")],
)
def test_summary_refuses_what_is_not_a_rate(metric, message):
    with pytest.raises(ValueError, match=message):
        summarise(metric, {"won": np.array([1.0, 2.0])})


def expected_sums(split, seed, episodes, action):
    """The closed form of `Draw`."""
    keys = [episode_key(split, seed, i) for i in range(episodes)]
    u = np.array([jax.random.uniform(jax.random.split(key, 3)[0]) for key in keys])
    length = 1 + np.floor(4 * u)
    return {"success": u + action >= 0.5, "length": length, "reward": length * (u + action)}


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_episodes_are_the_same_for_any_batch_and_each_counts_once(batch):
    estimates = evaluate(ENV, constant([0.25]), None, "test", seed=7, episodes=16, batch=batch)
    for name, values in expected_sums("test", 7, 16, 0.25).items():
        assert estimates[name].mean == pytest.approx(values.mean(), rel=1e-6)
    assert list(estimates) == ["success", "length", "reward", "length_of_success"]


def test_batches_are_even():
    assert [even_batch(n, 256) for n in (1, 256, 257, 300, 1024)] == [1, 256, 129, 150, 256]


def test_an_environment_without_its_metric_is_refused_before_anything_is_compiled():
    class Other(Draw):
        metric = Metric("won")

    with pytest.raises(ValueError, match="the metric 'won' isn't among length, reward, success"):
        episode_runner(TimeLimit(Other(), 9), constant([0.0]), 4)


def test_splits_and_seeds_are_different_episodes():
    run = jax.jit(episode_runner(ENV, constant([0.0]), 4))
    draws = [("train", 0), ("validation", 0), ("test", 0), ("test", 1)]
    rewards = [run_episodes(run, 4, None, *draw, episodes=4)["reward"] for draw in draws]
    assert len(np.unique(rewards)) == 16


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (ENV, {"split": "dev"}, "unknown split 'dev'; valid: train, validation, test"),
        (ENV, {"episodes": 0}, "episodes must be at least 1, got 0"),
        (Walkers(), {"episodes": 0}, "episodes must be at least 1, got 0"),
        (ENV, {"batch": -1}, "batch must be at least 1, got -1"),
        (Draw(), {}, "needs an end"),
    ],
)
def test_bad_requests_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(env, constant([0.0]), None, **options)
