"""The calibration record and the ranges that are chosen from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.errors import CalibrationError
from edgegen.quantize import Record, Recorder, choose_ranges
from edgegen.quantize.record import BINS


def recorded(arrays, tensor="x"):
    """arrays: (time, values) in the order of evaluation."""
    recorder = Recorder()
    for time, values in arrays:
        recorder.add(tensor, time, values)
    return recorder.finish()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=6), st.integers(0, 2**31))
def test_histograms_hold_everything_whatever_the_order_of_magnitudes(sizes, seed):
    rng = np.random.default_rng(seed)
    arrays = [(0.0, (size * rng.standard_normal((2, 3, 4, 4))).astype(np.float32)) for size in sizes]
    found = recorded(arrays)["x"]
    together = np.concatenate([a for _, a in arrays])
    assert found.counts.sum() == together.size
    # wherever doubling went, the histogram is that of all values at its final range
    expected = np.histogram(together, BINS, (-found.limit, found.limit))[0]
    assert np.abs(np.cumsum(found.counts[0]) - np.cumsum(expected)).max() <= 0.02 * together.size
    assert np.array_equal(found.low[0], together.min(axis=(0, 2, 3))) and np.array_equal(found.high[0], together.max(axis=(0, 2, 3)))
    assert found.limit >= np.abs(together).max()


def test_channels_are_axis_1_of_images_and_the_last_of_the_rest():
    rng = np.random.default_rng(0)
    for shape, axes in (((2, 3, 4, 5), (0, 2, 3)), ((2, 7, 5), (0, 1)), ((4, 6), (0,))):
        values = rng.standard_normal(shape).astype(np.float32)
        assert np.array_equal(recorded([(1.0, values)])["x"].high[0], values.max(axis=axes))


def test_memory_does_not_grow_with_samples_and_files_are_deterministic(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [(float(i % 3), rng.standard_normal((4, 2, 8, 8)).astype(np.float32)) for i in range(60)]
    found = recorded(arrays)
    assert found["x"].counts.shape == (3, BINS) and found["x"].low.shape == (3, 2)
    found.save(tmp_path / "a.npz")
    recorded(arrays).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = Record.load(tmp_path / "a.npz")["x"]
    assert all(np.array_equal(getattr(again, n), getattr(found["x"], n)) for n in ("times", "low", "high", "counts", "limit"))


def test_drift_is_the_ratio_of_magnitudes_over_time():
    ones = np.ones((1, 1, 2, 2), np.float32)
    assert recorded([(0.0, ones), (1.0, -3 * ones), (2.0, 2 * ones)])["x"].drift == 3.0
    assert recorded([(0.0, 0 * ones)])["x"].drift == 1.0
    assert recorded([(0.0, 0 * ones), (1.0, ones)])["x"].drift == np.inf


def quantization_error(x, low, high, power, symmetric):
    """Independent of the code under test: all of x, one threshold."""
    if symmetric:
        scale = max(-low, high) / 127
        q = np.clip(np.round(x / scale), -127, 127) * scale
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        q = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    return np.mean(np.abs(x - q) ** power)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("estimator", "power"), [("mse", 2.0), ("l2.4", 2.4)])
def test_clipping_estimators_find_the_best_of_100_thresholds(estimator, power, symmetric):
    rng = np.random.default_rng(3)
    x = (rng.standard_t(4, 200_000) * 0.3).astype(np.float32)
    x[0] = 15.0  # an outlier
    record = recorded([(0.0, x[i : i + 10_000].reshape(1, 1, 100, 100)) for i in range(0, x.size, 10_000)])
    low, high = choose_ranges(record, estimator, "shared", symmetric=symmetric).at("x")
    thresholds = [(float(x.min()) * i / 100, float(x.max()) * i / 100) for i in range(1, 101)]
    best = min(quantization_error(x, a, b, power, symmetric) for a, b in thresholds)
    assert quantization_error(x, low, high, power, symmetric) <= 1.05 * best
    assert quantization_error(x, float(x.min()), float(x.max()), power, symmetric) > 1.15 * best  # minmax is worse: the search did something


def test_percentiles_leave_out_the_tails():
    x = np.linspace(-1, 1, 1 << 14).astype(np.float32)
    x[0], x[-1] = -100, 50
    low, high = choose_ranges(recorded([(0.0, x.reshape(1, 1, 128, 128))]), "percentile", "shared").at("x")
    assert -1.3 < low <= -0.99 and 0.99 <= high < 1.3


def test_groups_are_the_best_cut_into_runs():
    sizes = [1.0, 1.1, 0.9, 5.0, 5.5, 20.0, 19.0, 21.0]
    record = recorded([(float(i), s * np.ones((1, 1, 2, 2), np.float32)) for i, s in enumerate(sizes)])
    ranges = choose_ranges(record, times="group", groups=3)
    assert [round(r[2], 4) for r in ranges.rows["x"]] == pytest.approx([1.1] * 3 + [5.5] * 2 + [21.0] * 3, rel=1e-6)

    def cost(cuts):
        runs = [sizes[a:b] for a, b in itertools.pairwise([0, *cuts, len(sizes)])]
        return sum((max(run) / s) ** 2 for run in runs for s in run)

    assert min(itertools.combinations(range(1, 8), 2), key=cost) == (3, 5)  # by trying them all


def test_only_tensors_that_drift_get_scales_of_their_own():
    one = np.ones((1, 1, 2, 2), np.float32)
    recorder = Recorder()
    for time, factor in ((0.0, 1.0), (1.0, 4.0)):
        recorder.add("drifts", time, factor * one)
        recorder.add("steady", time, one)
    ranges = choose_ranges(recorder.finish(), times="step", drift=1.5)
    assert len(ranges.rows["drifts"]) == 2 and len(ranges.rows["steady"]) == 1
    assert ranges.times == (0.0, 1.0)


def test_a_range_that_is_known_is_not_searched():
    x = np.random.default_rng(0).random((1, 1, 64, 64)).astype(np.float32) ** 8
    ranges = choose_ranges(recorded([(0.0, x)]), "mse", "shared", fixed={"x": (0.0, 1.0)})
    assert ranges.at("x") == (0.0, 1.0)


@pytest.mark.parametrize(("name", "value"), [("estimator", "entropy"), ("times", "each")])
def test_unknown_names_are_refused_with_the_known_ones(name, value):
    with pytest.raises(CalibrationError, match=name):
        choose_ranges(Record({}), **{name: value})
