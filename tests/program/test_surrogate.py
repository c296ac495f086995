"""The exact surrogate (FORMAT.md, section 8), element by element in plain Python; and that it sees everything that a program feeds it."""

from __future__ import annotations

import hashlib

import numpy as np

from edgegen.program import Eval, Imm, Input, Program, Reg, interpret, normals
from edgegen.program.surrogate import surrogate, surrogates
from edgegen.spec import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2, 3)), TensorSpec("t", "float32", ("batch",)), TensorSpec("label", "int64", ("batch",))),
    (TensorSpec("o", "float32", ("batch", 4)),),
)


def test_every_element_is_the_sum_of_squashed_inputs():
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    label = np.array([3, -1])
    found = surrogate(SIGNATURE)(x=x, t=np.asarray(0.75, np.float32), label=label)["o"]
    f = np.float32
    for row in range(2):
        for j in range(4):
            total = None
            for k, values in enumerate((x[row].ravel(), [0.75], [label[row]])):
                v = f(values[j % len(values)])
                term = f(v / f(f(1) + f(abs(v)))) * f(2.0**-k)
                total = term if total is None else f(total + term)
            assert found[row, j] == total


def test_the_digest_depends_on_every_input():
    def digest(t=0.5, label=1, scale=1.0, seed=0):
        e = Eval("f", {"x": (Reg("x_T", scale),), "t": (Imm(t),), "label": (Reg("label"),)}, {"o": ("y",)})
        p = Program("p", (Input("x_T"), Input("label", "condition")), (e,), {"sample": "y"}, {"f": 1})
        sample = interpret(p, surrogates({"f": SIGNATURE}), {"x_T": normals(seed, 0, (1, 2, 3)), "label": np.array([label])})["sample"]
        return hashlib.sha256(sample.tobytes()).hexdigest()

    assert len({digest(), digest(t=0.25), digest(label=2), digest(scale=0.5), digest(seed=1)}) == 5
