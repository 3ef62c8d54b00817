"""Thousands of calls of the native engine, at many sizes: nothing leaks, nothing drifts."""

from pathlib import Path

import pytest

from benchmarks.soak import CALLS, soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_three_thousand_calls_leave_memory_flat_and_results_the_same():
    """`python -m benchmarks.soak` makes a hundred times as many, and shows smaller leaks."""
    calls = {n: count // 10 for n, count in CALLS.items()}
    assert sum(calls.values()) == 3_000
    assert soak(calls) < 3e6  # 1000 bytes a call
