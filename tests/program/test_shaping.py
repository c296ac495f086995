"""The laws of MULADD, CONCAT, SLICE, SELECT, REDUCE, SCALAR and SLINCOMB, in closed form or by another implementation (numpy, torch)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgegen.errors import RuntimeFault, Status
from edgegen.program import (
    Concat,
    Input,
    Lincomb,
    Muladd,
    Noise,
    Program,
    Reduce,
    Scalar,
    Select,
    Slice,
    Slincomb,
    interpret,
    normals,
    verify,
)  # fmt: skip
from edgegen.program.rewrite import allocate, fold

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 5)).astype(np.float32)
Y = RNG.standard_normal((3, 2, 5)).astype(np.float32)
MASK = (RNG.random((3, 1, 5)) > 0.5).astype(np.float32)


def run(*instructions, out="y", dtype=np.float32, seed=0, **inputs):
    program = Program("p", tuple(Input(name) for name in inputs), instructions, {"sample": out}, {})
    return interpret(program, {}, inputs, dtype=dtype, seed=seed)["sample"]


def spread(scalar_instructions, scalar, x=X, **inputs):
    """The value of a scalar register for each sample, as the tensor scalar * 1."""
    one = (Muladd("ones", "x", (0.0,), (1.0,)), Slincomb("y", ((1.0, "ones", scalar),)))
    out = run(*scalar_instructions, *one, x=x, **inputs)
    rows = out.reshape(len(out), -1)
    assert (rows == rows[:, :1]).all()
    return rows[:, 0]


def test_muladd_multiplies_then_adds_each_rounded_once_per_channel_or_for_all():
    scale, shift = (0.1, 2.0, -3.0, 1e-3), (1.0, 0.3, 0.0, -2.0)
    wanted = X * np.float32(scale)[:, None] + np.float32(shift)[:, None]
    assert run(Muladd("y", "x", scale, shift), x=X).tobytes() == wanted.tobytes()
    assert run(Muladd("y", "x", (0.1,), (0.7,)), x=X).tobytes() == (X * np.float32(0.1) + np.float32(0.7)).tobytes()
    fused = (X.astype(np.float64) * np.float64(np.float32(0.1)) + np.float64(np.float32(0.7))).astype(np.float32)
    assert run(Muladd("y", "x", (0.1,), (0.7,)), x=X).tobytes() != fused.tobytes()  # one rounding would differ: the test can fail


def test_concat_and_slice_are_inverse():
    joined = run(Concat("y", ("x", "z")), x=X, z=Y)
    assert joined.shape == (3, 6, 5)
    assert (run(Concat("j", ("x", "z")), Slice("y", "j", 0, 4), x=X, z=Y) == X).all()
    assert (run(Concat("j", ("x", "z")), Slice("y", "j", 4, 6), x=X, z=Y) == Y).all()
    assert not (run(Concat("j", ("z", "x")), Slice("y", "j", 0, 4), x=X, z=Y) == X).all()


def test_select_takes_a_where_the_mask_is_not_zero_and_spreads_one_channel():
    out = run(Select("y", "m", "a", "b"), m=MASK, a=X, b=-X)
    assert (out == np.where(np.broadcast_to(MASK != 0, X.shape), X, -X)).all()
    full = (X > 0).astype(np.float32)
    assert (run(Select("y", "m", "a", "b"), m=full, a=X, b=-X) == np.abs(X)).all()


@pytest.mark.parametrize("kind", ["mean", "std", "norm"])
def test_reduce_agrees_with_exact_sums(kind):
    found = spread([Reduce("s", kind, "x")], "s")
    for value, row in zip(found, X.reshape(3, -1).astype(np.float64), strict=True):
        mean = math.fsum(row) / row.size
        wanted = {"mean": mean, "std": math.sqrt(math.fsum((row - mean) ** 2) / (row.size - 1)), "norm": math.sqrt(math.fsum(row * row))}[kind]
        assert value == pytest.approx(wanted, rel=1e-7)


def test_reduce_std_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    wanted = torch.from_numpy(X).double().flatten(1).std(1).numpy()
    np.testing.assert_allclose(spread([Reduce("s", "std", "x")], "s"), wanted, rtol=1e-7)


def test_reduce_sums_in_the_written_order():
    """2^60 + 1 - 2^60 in float64 is 0 from the left; pairwise, or from the right, it is not."""
    x = np.array([[2.0**60, 1.0, -(2.0**60), 1.0]], np.float32)
    assert spread([Reduce("s", "mean", "x")], "s", x=x)[0] == np.float32(1.0 / 4.0)


def test_reduce_quantile_is_numpys_of_the_absolute_values():
    for q in (0.0, 0.25, 0.9, 0.995, 1.0):
        wanted = np.quantile(np.abs(X.reshape(3, -1)), q, axis=1)
        np.testing.assert_allclose(spread([Reduce("s", "quantile", "x", None, q)], "s"), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "std", "norm", "quantile"])
def test_reduce_over_a_mask_sees_the_masked_elements_only(kind):
    found = spread([Reduce("s", kind, "x", "m", 0.5 if kind == "quantile" else 0.0)], "s", m=MASK)
    for value, x, mask in zip(found, X, MASK, strict=True):
        kept = x[np.broadcast_to(mask != 0, x.shape)].astype(np.float64)
        wanted = {"mean": kept.mean(), "std": kept.std(ddof=1), "norm": np.linalg.norm(kept), "quantile": np.quantile(np.abs(kept), 0.5)}[kind]
        assert value == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "std", "norm", "quantile"])
def test_reduce_over_nothing_is_zero(kind):
    assert (spread([Reduce("s", kind, "x", "m")], "s", m=np.zeros_like(MASK)) == 0.0).all()


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("add", 8.0), ("sub", 4.0), ("mul", 12.0), ("div", 3.0), ("min", 2.0), ("max", 6.0)],
)
def test_scalar_arithmetic(kind, wanted):
    x = np.full((2, 3), 6.0, np.float32)
    assert (spread([Reduce("a", "mean", "x"), Scalar("b", "div", "a", 3.0), Scalar("s", kind, "a", "b")], "s", x=x) == wanted).all()


def test_scalar_takes_a_number_on_either_side_and_roots():
    x = np.full((2, 3), 16.0, np.float32)
    assert (spread([Reduce("a", "mean", "x"), Scalar("s", "sub", 1.0, "a")], "s", x=x) == -15.0).all()
    assert (spread([Reduce("a", "mean", "x"), Scalar("s", "sqrt", "a")], "s", x=x) == 4.0).all()


def test_slincomb_multiplies_each_sample_by_its_own_scalar():
    out = run(Reduce("s", "std", "x"), Scalar("r", "div", 0.5, "s"), Slincomb("y", ((1.0, "x", None), (-2.0, "x", "r"))), x=X)
    r = np.float32(0.5) / X.reshape(3, -1).astype(np.float64).std(1, ddof=1).astype(np.float32)
    wanted = X * np.float32(1.0) + X * (r * np.float32(-2.0))[:, None, None]
    assert out.tobytes() == wanted.tobytes()


def test_noise_of_another_shape_has_the_rows_of_its_model():
    out = run(Noise("y", "x", 3, (7, 2)), x=X, seed=5)
    assert (out == normals(5, 3, (3, 7, 2))).all()


def test_a_sample_does_not_depend_on_the_others_in_its_batch():
    instructions = (Reduce("s", "std", "x"), Reduce("m", "mean", "x"), Slincomb("y", ((1.0, "x", "s"), (1.0, "x", "m"))))
    whole = run(*instructions, x=X)
    for k in range(3):
        assert (run(*instructions, x=X[k : k + 1]) == whole[k : k + 1]).all()


@pytest.mark.parametrize(
    ("instruction", "inputs"),
    [
        (Concat("y", ("x", "z")), {"x": X, "z": Y[:2]}),
        (Concat("y", ("x", "z")), {"x": X[:, 0, 0], "z": X[:, 0, 0]}),
        (Slice("y", "x", 0, 5), {"x": X}),
        (Select("y", "m", "x", "z"), {"m": MASK, "x": X, "z": Y}),
        (Select("y", "m", "x", "x"), {"m": MASK[:2], "x": X}),
        (Muladd("y", "x", (1.0, 2.0), (0.0, 0.0)), {"x": X}),
        (Slincomb("y", ((1.0, "x", None), (1.0, "z", None))), {"x": X, "z": Y}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(instruction, inputs):
    with pytest.raises(RuntimeFault) as e:
        run(instruction, **inputs)
    assert e.value.code == Status.BAD_SHAPE


def test_nan_does_not_hide_behind_a_mask_or_a_slice():
    from edgegen.program import Eval, Reg

    broken = Eval("f", {"x": (Reg("x"),)}, {"o": ("e",)})
    program = Program("p", (Input("x"),), (broken, Slice("y", "e", 1, 2)), {"sample": "y"}, {"f": 1})

    def network(x):
        x = x.copy()
        x[:, 0] = np.nan
        return x

    with pytest.raises(RuntimeFault, match="component 'f' returned NaN"):
        interpret(program, {"f": network}, {"x": X})


def test_registers_are_packed_with_scalars_apart_and_the_result_is_the_same():
    program = verify(
        Program(
            "p",
            (Input("x"), Input("r0", "condition")),
            (
                Reduce("a", "std", "x"), Scalar("b", "div", 1.0, "a"), Lincomb("t", ((2.0, "x"), (1.0, "r0"))), Slincomb("u", ((1.0, "t", "b"),)),
                Reduce("c", "mean", "u"), Scalar("d", "add", "c", "b"), Slincomb("y", ((1.0, "u", "d"), (1.0, "r0", None))),
            ),
            {"sample": "y"}, {},
        )
    )  # fmt: skip
    packed = verify(allocate(fold(program)))
    names = {i.out for i in packed.instructions}
    assert "r0" not in names  # an input of that name keeps it
    assert {n for n in names if n.startswith("s")} == {"s0", "s1", "s2"}  # an instruction never writes what it reads
    before, after = (interpret(p, {}, {"x": X, "r0": -X})["sample"] for p in (program, packed))
    assert (before == after).all()
