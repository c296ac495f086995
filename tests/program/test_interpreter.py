"""Each instruction's law, in closed form, in float32 and float64."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgegen.errors import Cancelled, ProgramError, RuntimeFault, Status
from edgegen.program import Clamp, Eval, Imm, Input, Lincomb, Noise, Program, Reg, Step, Threshold, compile_program, interpret


def program(*instructions, out="y", inputs=(Input("x_T"),), nfe=None, steps=()):
    return Program("p", inputs, instructions, {"sample": out}, nfe or {}, steps)


def run(p, networks=None, dtype=np.float32, on_step=None, **inputs):
    return interpret(p, networks or {}, inputs, dtype=dtype, on_step=on_step)["sample"]


X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def test_lincomb_adds_in_written_order_with_rounded_coefficients():
    c = [0.1, -1e8, 1e8, 0.3]
    out = run(program(Lincomb("a", ((3.0, "x_T"),)), Lincomb("y", ((c[0], "x_T"), (c[1], "a"), (c[2], "a"), (c[3], "x_T")), 0.7)), x_T=X)
    a = X * np.float32(3)
    wanted = X * np.float32(c[0])
    wanted = wanted + a * np.float32(c[1])
    wanted = wanted + a * np.float32(c[2])
    wanted = wanted + X * np.float32(c[3])
    wanted = wanted + np.float32(0.7)
    assert out.dtype == np.float32
    assert out.tobytes() == wanted.tobytes()
    other_order = X * np.float32(c[3]) + a * np.float32(c[2]) + a * np.float32(c[1]) + X * np.float32(c[0]) + np.float32(0.7)
    assert out.tobytes() != other_order.tobytes()  # the order matters, so the test can fail


def test_lincomb_in_float64_uses_the_exact_coefficient():
    out = run(program(Lincomb("y", ((0.1, "x_T"),))), dtype=np.float64, x_T=np.array([3.0]))
    assert out[0] == 0.1 * 3.0
    assert out.dtype == np.float64


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 4, 4), (1, 2, 1, 2, 1, 2)])
def test_any_shape_runs(shape):
    x = np.full(shape, 0.5)
    p = program(
        Eval("f", {"x": (Reg("x_T"),), "t": (Imm(2.0),)}, {"o": ("e",)}), Lincomb("v", ((1.0, "x_T"), (1.0, "e"))), Clamp("c", "v", -1.0, 1.2),
        Threshold("y", "c", 0.9, 1.0, 2.0), nfe={"f": 1},
    )  # fmt: skip
    out = run(p, {"f": lambda x, t: x * t}, dtype=np.float64, x_T=x)
    assert np.shape(out) == shape
    np.testing.assert_allclose(out, 1.0)  # 0.5 + 1.0, clamped to 1.2, divided by its own quantile 1.2


def test_clamp():
    assert (run(program(Clamp("y", "x_T", -0.5, 0.25)), x_T=X) == np.clip(X, np.float32(-0.5), np.float32(0.25))).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, -0.0)])
def test_clamp_keeps_zeros_as_they_are_whatever_the_processor_makes_of_them(low, high):
    x = np.tile(np.array([-0.0, 0.0, -2.0, 2.0], np.float32), 20)
    wanted = np.array([v if low <= v <= high else low if v < low else high for v in x], np.float32)
    assert run(program(Clamp("y", "x_T", low, high)), x_T=x).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_threshold_is_numpys_linear_quantile_per_sample(quantile):
    x = X.astype(np.float64) * 3
    out = run(program(Threshold("y", "x_T", quantile, 0.5, 4.0)), dtype=np.float64, x_T=x)
    for sample, found in zip(x, out, strict=True):
        s = np.clip(np.quantile(np.abs(sample), quantile), 0.5, 4.0)
        np.testing.assert_allclose(found, np.clip(sample, -s, s) / s, rtol=1e-12)


def test_eval_passes_named_arrays_scales_and_scalar_times():
    seen = {}

    def net(**arrays):
        seen.update(arrays)
        return {"a": arrays["x"] * 2, "b": arrays["x"] * 3}

    p = program(
        Eval("f", {"x": (Reg("x_T", 0.5),), "t": (Imm(0.25),)}, {"a": ("p",), "b": ("q",)}), Lincomb("y", ((1.0, "p"), (1.0, "q"))), nfe={"f": 1}
    )
    out = run(p, {"f": net}, x_T=X)
    assert sorted(seen) == ["t", "x"]
    assert seen["t"].shape == () and seen["t"].dtype == np.float32 and seen["t"] == np.float32(0.25)
    assert (seen["x"] == X * np.float32(0.5)).all()
    np.testing.assert_allclose(out, X * 2.5, rtol=1e-6)


def test_two_branches_are_one_call_on_twice_the_rows():
    calls = []

    def net(x, t, label):
        calls.append((x.shape, np.shape(t), label.tolist(), label.dtype))
        return x + label[:, None, None]

    p = program(
        Eval("f", {"x": (Reg("x_T"), Reg("x_T", 2.0)), "t": (Imm(1.0), Imm(1.0)), "label": (Reg("label"), Imm(10.0))}, {"o": ("c", "u")}),
        Lincomb("y", ((3.0, "c"), (-2.0, "u"))), inputs=(Input("x_T"), Input("label", "condition")), nfe={"f": 2},
    )  # fmt: skip
    out = run(p, {"f": net}, x_T=X, label=np.array([1, 2, 3], np.int64))
    assert calls == [((6, 4, 5), (), [1, 2, 3, 10, 10, 10], np.dtype(np.int64))]
    wanted = 3 * (X + np.array([1, 2, 3])[:, None, None]) - 2 * (2 * X + 10)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_different_times_per_branch_become_one_value_per_row():
    p = program(Eval("f", {"x": (Reg("x_T"), Reg("x_T")), "t": (Imm(1.0), Imm(2.0))}, {"o": ("a", "b")}), Lincomb("y", ((1.0, "b"),)), nfe={"f": 2})
    out = run(p, {"f": lambda x, t: x * t[:, None, None]}, x_T=X)
    np.testing.assert_allclose(out, 2 * X)


def test_steps_report_progress_and_returning_false_cancels():
    p = program(
        Lincomb("a", ((2.0, "x_T"),)), Lincomb("y", ((2.0, "a"),)), steps=(Step(1, "a", 0.5), Step(2, "y", 0.0)),
    )  # fmt: skip
    seen = []
    run(p, x_T=X, on_step=lambda done, total, x: seen.append((done, total, float(x[0, 0, 0] / X[0, 0, 0]))))
    assert seen == [(1, 2, 2.0), (2, 2, 4.0)]
    with pytest.raises(Cancelled, match="after step 1 of 2") as e:
        run(p, x_T=X, on_step=lambda *a: False)
    assert e.value.code == Status.CANCELLED
    run(p, x_T=X, on_step=lambda *a: None)  # None goes on


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_network_that_returns_nan_is_named(bad):
    p = program(Eval("f", {"x": (Reg("x_T"),)}, {"o": ("y",)}), nfe={"f": 1})
    x = X.copy()
    x[1, 2, 3] = bad
    with pytest.raises(RuntimeFault, match="component 'f' returned NaN or infinity in 'o'") as e:
        run(p, {"f": lambda x: x}, x_T=x)
    assert e.value.code == Status.NONFINITE


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("size", [60, 10_000])
def test_huge_finite_outputs_are_not_mistaken_for_infinity_nor_infinity_for_finite(size):
    p = program(Eval("f", {"x": (Reg("x_T"),)}, {"o": ("y",)}), nfe={"f": 1})
    x = np.zeros((1, size), np.float32)
    assert np.isfinite(run(p, {"f": lambda x: np.full_like(x, 3e38)}, x_T=x)).all()
    for bad in (np.nan, np.inf, -np.inf):
        x[0, -1] = bad
        with pytest.raises(RuntimeFault, match="NaN or infinity"):
            run(p, {"f": lambda x: x}, x_T=x)


def two_evals():
    return program(Eval("f", {"x": (Reg("x_T"), Reg("x_T"))}, {"o": ("a", "y")}), nfe={"f": 2})


@pytest.mark.parametrize(
    ("call", "message", "code"),
    [
        (lambda: run(program(Clamp("y", "x_T", 0, 1))), "needs input 'x_T'", Status.UNKNOWN_NAME),
        (lambda: run(program(Clamp("y", "x_T", 0, 1)), x_T=X, x=X), "has no input 'x'", Status.UNKNOWN_NAME),
        (lambda: run(two_evals(), x_T=X), "needs component 'f'", Status.UNKNOWN_NAME),
        (lambda: run(two_evals(), {"f": lambda x: x[:2]}, x_T=X), "expected 6 rows", Status.BAD_SHAPE),
        (lambda: run(two_evals(), {"f": lambda x: {"p": x}}, x_T=X), "no output 'o'", Status.UNKNOWN_NAME),
        (
            lambda: run(program(Eval("f", {"x": (Reg("x_T"),)}, {"o": ("a",)}), Lincomb("y", ((1, "x_T"), (1, "a"))), nfe={"f": 1}), {"f": lambda x: x[0]}, x_T=X),
            r"shapes do not fit: 'x_T' \[3, 4, 5\], 'a' \[4, 5\]", Status.BAD_SHAPE,
        ),
        (lambda: run(program(Clamp("y", "x_T", 0, 1)), dtype=np.float16, x_T=X), "float32 or float64", Status.BAD_DTYPE),
        (lambda: run(program(Lincomb("y", ((1e300, "x_T"),))), x_T=X), "does not fit float32", Status.OUT_OF_RANGE),
    ],
)  # fmt: skip
def test_faults_name_what_is_wrong(call, message, code):
    with pytest.raises((RuntimeFault, ProgramError), match=message) as e:
        call()
    assert e.value.code == code


def test_one_executable_serves_many_threads():
    executable = compile_program(
        program(Noise("z", "x_T", 1), Eval("f", {"x": (Reg("z"),)}, {"o": ("e",)}), Lincomb("y", ((1.0, "e"), (0.5, "x_T"))), nfe={"f": 1})
    )
    network = {"f": lambda x: np.tanh(x)}
    wanted = [executable.run(network, {"x_T": X}, seed=s)["sample"].tobytes() for s in range(8)]
    faults = []

    def work(s):
        for _ in range(100):
            if executable.run(network, {"x_T": X}, seed=s)["sample"].tobytes() != wanted[s]:
                faults.append(s)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
