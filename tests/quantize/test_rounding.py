"""Rounding of weights against brute force, the papers' equations written out, and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgegen.errors import CalibrationError
from edgegen.quantize import adaround, gptq, nearest, weighted_error


def correlated(width, seed, rows=2048):
    """The Hessian of SiLU-like inputs that share a few directions and differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 8)) @ rng.standard_normal((8, width)) / 4 + 0.5 * rng.standard_normal((rows, width))
    x *= np.exp(0.5 * rng.standard_normal(width))
    x = np.where(x < 0, -0.278 * (1 - np.exp(x)), x)
    return x.T @ x / rows


def error(weight, codes, hessian):
    """tr((W - Wq) H (W - Wq)^T), from the definition; weight [channels, K]."""
    d = weight.astype(np.float64) - codes.values().reshape(weight.shape)
    return np.trace(d @ hessian @ d.T)


def written_out(weight, hessian, scale, top, damping, block=0):
    """GPTQ as the paper states it: the Cholesky factor of the inverse, each error divided by its diagonal and subtracted from the rest."""
    w = weight.astype(np.float64).copy()
    width = w.shape[1]
    upper = np.linalg.cholesky(np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(width))).T
    codes, scales = np.zeros(w.shape), []
    for j in range(width):
        if block and j % block == 0:
            scale = (np.abs(w[:, j : j + block]).max(axis=1) / top).astype(np.float32).astype(np.float64)
            scales.append(scale)
        codes[:, j] = np.clip(np.rint(w[:, j] / scale), -top, top)
        w[:, j:] -= np.outer((w[:, j] - codes[:, j] * scale) / upper[j, j], upper[j, j:])
    return codes, np.array(scales).T


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_nearest_is_the_closed_form():
    weight = np.array([[1.0, -0.5, 0.26, 127.0], [0.0, 0.0, 0.0, 0.0], [-63.5, 0.25, 0.75, 1.0]], np.float32)
    found = nearest(weight, 0, 8)
    assert found.codes.tolist() == [[1, 0, 0, 127], [0, 0, 0, 0], [-127, 0, 2, 2]]  # -0.5 / 1, 0.25 / 0.5 and 0.75 / 0.5: halves go to even
    assert found.scale.tolist() == [1.0, np.float32(1e-12), 0.5]
    weight = normal(5, 3, 3, 3)
    four = nearest(weight, 0, 4)
    assert np.abs(four.codes).max(axis=(1, 2, 3)).tolist() == [7] * 5
    assert (np.abs(four.values() - weight) <= 0.5001 * four.scale[:, None, None, None]).all()


def test_the_layouts_of_conv_and_matmul_agree():
    weight, hessian = normal(6, 40), correlated(40, 1)
    for f in (lambda w, axis, block: nearest(w, axis, 4, block, clip="mse"), lambda w, axis, block: gptq(w, axis, hessian, 4, block)):
        for block in (0, 16):
            conv, linear, matmul = f(weight.reshape(6, 10, 2, 2), 0, block), f(weight, 0, block), f(np.ascontiguousarray(weight.T), 1, block)
            assert conv.scale.shape == ((6, 3) if block else (6,))
            assert np.array_equal(conv.scale, linear.scale) and np.array_equal(conv.scale, matmul.scale)
            assert np.array_equal(conv.codes.reshape(6, 40), linear.codes) and np.array_equal(matmul.codes.T, linear.codes)
            assert np.array_equal(conv.values().reshape(6, 40), linear.values()) and np.array_equal(matmul.values().T, linear.values())
            assert matmul.codes.flags.c_contiguous and conv.codes.dtype == np.int8 and conv.scale.dtype == np.float32


def test_blocks_are_scaled_one_by_one_and_the_last_may_be_short():
    weight = normal(4, 40)
    found = nearest(weight, 0, 4, 16)
    for k, part in enumerate((weight[:, :16], weight[:, 16:32], weight[:, 32:])):
        alone = nearest(part, 0, 4)
        assert np.array_equal(found.scale[:, k], alone.scale)
        assert np.array_equal(found.values()[:, 16 * k : 16 * k + part.shape[1]], alone.values())


def test_the_clip_search_finds_the_least_weighted_error_of_its_candidates():
    weight = normal(3, 64, seed=2)
    importance = np.exp(np.random.default_rng(3).standard_normal(64))
    found = nearest(weight, 0, 4, clip="mse", hessian_diagonal=importance)
    for row, scale in zip(weight.astype(np.float64), found.scale, strict=True):
        candidates = [np.float32(np.abs(row).max() / 7 * (1 - 0.05 * i)) for i in range(13)]
        errors = [(importance * (row - np.clip(np.rint(row / float(s)), -7, 7) * float(s)) ** 2).sum() for s in candidates]
        assert scale == candidates[int(np.argmin(errors))]
    assert not np.array_equal(found.scale, nearest(weight, 0, 4).scale)


def test_codes_are_symmetric_at_every_width():
    for bits in range(2, 9):
        found = nearest(normal(2, 64), 0, bits)
        assert np.abs(found.codes).max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
@pytest.mark.parametrize("block", [0, 16])
def test_inputs_without_correlation_give_nearest_rounding(bits, clip, block):
    weight = normal(8, 80)
    wanted = nearest(weight, 0, bits, block, clip=clip)
    found = gptq(weight, 0, 3.0 * np.eye(80), bits, block, clip=clip)
    assert np.array_equal(found.codes, wanted.codes) and np.array_equal(found.scale, wanted.scale)
    if bits == 8 and clip == "absmax":
        relaxed = adaround(weight, 0, 3.0 * np.eye(80), bits, block, clip=clip, iterations=200)
        assert np.array_equal(relaxed.codes, wanted.codes)


@pytest.mark.parametrize(("width", "bits"), [(20, 8), (150, 4), (150, 8)])
def test_gptq_equals_the_papers_equations(width, bits):
    weight, hessian, top = normal(6, width, seed=width), correlated(width, width), 2 ** (bits - 1) - 1
    start = nearest(weight, 0, bits)
    wanted, _ = written_out(weight, hessian, start.scale.astype(np.float64), top, 0.01)
    found = gptq(weight, 0, hessian, bits, clip="absmax", activation_order=False, passes=0)
    assert np.array_equal(found.codes, wanted)
    assert not np.array_equal(found.codes, start.codes)
    order = np.argsort(-np.diag(hessian))
    wanted, _ = written_out(weight[:, order], hessian[np.ix_(order, order)], start.scale.astype(np.float64), top, 0.01)
    assert np.array_equal(gptq(weight, 0, hessian, bits, clip="absmax", passes=0).codes[:, order], wanted)


def test_gptq_takes_a_blocks_scale_when_its_turn_comes():
    weight, hessian = normal(6, 80, seed=5), correlated(80, 5)
    wanted, scales = written_out(weight, hessian, None, 7, 0.01, block=32)
    found = gptq(weight, 0, hessian, 4, 32, clip="absmax", passes=0)
    assert np.array_equal(found.codes, wanted) and np.array_equal(found.scale, scales.astype(np.float32))


# bits, block, and the share of nearest rounding's error that GPTQ and AdaRound leave at most; observed 0.46 and 0.50, 0.42 and 0.44, 0.40 and 0.37
@pytest.mark.parametrize(("bits", "block", "share"), [(8, 0, 0.55), (4, 0, 0.5), (4, 32, 0.45)])
def test_correlated_inputs_leave_a_fraction_of_nearest_roundings_error(bits, block, share):
    weight, hessian = normal(16, 96, seed=7), correlated(96, 7)
    plain = nearest(weight, 0, bits, block, clip="mse", hessian_diagonal=np.diag(hessian))
    before = error(weight, plain, hessian)
    once = error(weight, gptq(weight, 0, hessian, bits, block, passes=0), hessian)
    better = gptq(weight, 0, hessian, bits, block)
    assert error(weight, better, hessian) < once < share * before
    assert error(weight, adaround(weight, 0, hessian, bits, block, iterations=500), hessian) < share * before
    np.testing.assert_allclose(weighted_error(weight, better, hessian).sum(), error(weight, better, hessian), rtol=1e-6)
    assert (weighted_error(weight, better, hessian) <= weighted_error(weight, plain, hessian) * (1 + 1e-9)).all()


def test_adaround_is_near_the_best_of_all_roundings():
    """Six weights, every choice of down and up tried; observed 1.014 times the best on average, nearest rounding 1.21."""
    found, plain = [], []
    for seed in range(10):
        weight, hessian = normal(1, 6, seed=seed), correlated(6, seed)
        start = nearest(weight, 0, 4, clip="mse", hessian_diagonal=np.diag(hessian))
        row, scale = weight[0].astype(np.float64), float(start.scale[0])
        choices = [np.clip(np.floor(row / scale) + np.array(up), -7, 7) * scale for up in itertools.product((0, 1), repeat=6)]
        best = min((row - q) @ hessian @ (row - q) for q in choices)
        found.append(error(weight, adaround(weight, 0, hessian, 4), hessian) / best)
        plain.append(error(weight, start, hessian) / best)
    assert np.mean(found) < 1.05 and max(found) < 1.2 and np.mean(plain) > 1.15


def test_a_grouped_convolution_is_its_groups():
    weight = normal(6, 5, 3, 3, seed=8)
    hessian = np.stack([correlated(45, s) for s in range(3)])
    for f in (gptq, lambda *a: adaround(*a, iterations=100)):
        whole = f(weight, 0, hessian, 4)
        for g in range(3):
            part = f(weight[2 * g : 2 * g + 2], 0, hessian[g], 4)
            assert np.array_equal(whole.codes[2 * g : 2 * g + 2], part.codes) and np.array_equal(whole.scale[2 * g : 2 * g + 2], part.scale)
    diagonals = np.stack([np.diag(h) for h in hessian])
    whole = nearest(weight, 0, 4, clip="mse", hessian_diagonal=diagonals)
    assert np.array_equal(whole.codes[2:4], nearest(weight[2:4], 0, 4, clip="mse", hessian_diagonal=diagonals[1]).codes)


def test_inputs_that_were_always_zero_are_rounded_to_nearest():
    weight, hessian = normal(4, 30), correlated(30, 9)
    hessian[[3, 11]] = 0
    hessian[:, [3, 11]] = 0
    for damping in (0.0, 0.01):
        for f in (gptq, adaround):
            found = f(weight, 0, hessian, 8, damping=damping, clip="absmax")
            assert np.array_equal(found.codes[:, [3, 11]], nearest(weight, 0, 8).codes[:, [3, 11]])
    assert np.array_equal(gptq(weight, 0, np.zeros((30, 30)), 8).codes, nearest(weight, 0, 8).codes)


def test_a_hessian_of_few_rows_needs_damping_and_gets_it():
    weight, x = normal(4, 40), np.random.default_rng(1).standard_normal((10, 40))
    found = gptq(weight, 0, x.T @ x / 10, 4)
    assert error(weight, found, x.T @ x / 10) < 0.3 * error(weight, nearest(weight, 0, 4, clip="mse"), x.T @ x / 10)
    with pytest.raises(CalibrationError, match="not positive, damped as it is; raise the damping"):
        gptq(weight, 0, x.T @ x / 10 - 1e-3 * np.eye(40), 4, damping=0.0)


@pytest.mark.parametrize("function", [gptq, adaround])
@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (np.eye(7), r"shape \[7, 7\]: expected .* with K = 8"),
        (np.stack([np.eye(8)] * 3), r"shape \[3, 8, 8\]: .* divide the weight's 4 channels"),
        (np.full((8, 8), np.nan), "NaN"),
        (-np.eye(8), "negative number"),
        (np.eye(8) + 3 * np.eye(8)[::-1], "not positive, damped"),
        (np.triu(np.ones((8, 8))), "not symmetric"),
    ],
)
def test_hessians_that_are_none_are_refused(function, hessian, message):
    with pytest.raises(CalibrationError, match=message):
        function(normal(4, 8), 0, hessian, 4)


def test_arguments_out_of_range_are_refused():
    weight = normal(4, 8)
    for bad, message in [
        (lambda: nearest(weight, 0, 9), "bits: expected 2 to 8, found 9"), (lambda: nearest(weight, 2, 4), "axis 2 of a weight of shape"),
        (lambda: nearest(weight, 0, 4, -1), "block"), (lambda: nearest(weight, 0, 4, clip="max"), "clip"),
        (lambda: nearest(np.array([[np.nan]], np.float32), 0, 4), "NaN"), (lambda: nearest(np.array([[np.inf]], np.float32), 0, 4), "infinity"),
        (lambda: nearest(weight, 0, 4, clip="mse", hessian_diagonal=np.ones(7)), "K = 8"),
        (lambda: nearest(weight, 0, 4, clip="mse", hessian_diagonal=-np.ones(8)), "negative"),
        (lambda: gptq(weight, 0, np.eye(8), 4, damping=-1.0), "damping"),
    ]:  # fmt: skip
        with pytest.raises(CalibrationError, match=message):
            bad()


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-3.4028234663852886e38, 3.4028234663852886e38, width=32)),
    st.integers(2, 8), st.integers(0, 5), st.sampled_from(["absmax", "mse"]), st.booleans(),
)  # fmt: skip
def test_codes_of_any_weight_are_usable(weight, bits, block, clip, compensated):
    if compensated:
        found = gptq(weight, 0, np.ones((weight.shape[1],) * 2) + np.eye(weight.shape[1]), bits, block, clip=clip)
    else:
        found = nearest(weight, 0, bits, block, clip=clip)
    assert np.isfinite(found.scale).all() and (found.scale > 0).all() and found.scale.dtype == np.float32
    assert np.abs(found.codes.astype(int)).max() <= 2 ** (bits - 1) - 1
    values = found.values()
    assert values.dtype == np.float32 and values.shape == weight.shape and np.isfinite(values).all()
    if clip == "absmax" and not compensated:
        step = np.repeat(found.scale.reshape(len(weight), -1), block or weight.shape[1], axis=1)[:, : weight.shape[1]].astype(np.float64)
        assert (np.abs(values.astype(np.float64) - weight) <= 0.51 * step).all()


def test_the_same_inputs_give_the_same_bytes():
    weight, hessian = normal(8, 48), correlated(48, 3)
    for f in (gptq, adaround):
        a, b = f(weight, 0, hessian, 4, 16), f(weight, 0, hessian, 4, 16)
        assert a.codes.tobytes() == b.codes.tobytes() and a.scale.tobytes() == b.scale.tobytes()
