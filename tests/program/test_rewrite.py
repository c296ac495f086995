"""Folding and allocation change nothing but work and memory."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.program import Input, Lincomb, Program, Step, interpret, verify
from edgegen.program.rewrite import allocate, fold


def random_program(seed):
    """A random straight line of linear combinations, each value written once, some marked as steps."""
    rng = np.random.default_rng(seed)
    names, instructions, steps = ["x_T"], [], []
    for i in range(12):
        chosen = rng.choice(names, size=min(len(names), int(rng.integers(1, 4))), replace=False)
        instructions.append(Lincomb(f"v{i}", tuple((float(rng.standard_normal()), str(n)) for n in chosen), float(rng.integers(0, 2))))
        names.append(f"v{i}")
        if rng.random() < 0.3:
            steps.append(Step(len(instructions), f"v{i}", float(i)))
    return Program("random", (Input("x_T"),), tuple(instructions), {"sample": names[-1]}, {}, tuple(steps))


@pytest.mark.parametrize("seed", range(50))
def test_folded_and_allocated_programs_compute_the_same(seed):
    program = random_program(seed)
    x = np.array([0.3, -1.2])
    small = verify(allocate(fold(program)))
    states, wanted_states = [], []
    found = interpret(small, {}, {"x_T": x}, dtype=np.float64, on_step=lambda i, n, s: states.append(s.copy()))["sample"]
    wanted = interpret(program, {}, {"x_T": x}, dtype=np.float64, on_step=lambda i, n, s: wanted_states.append(s.copy()))["sample"]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(states, wanted_states, rtol=1e-9, atol=1e-9)
    assert len(small.instructions) <= len(program.instructions)


def test_fold_keeps_what_is_read_twice_or_marked():
    program = Program(
        "p", (Input("x_T"),),
        (Lincomb("a", ((2.0, "x_T"),), 1.0), Lincomb("b", ((3.0, "a"),)), Lincomb("c", ((1.0, "b"), (1.0, "a"))), Lincomb("y", ((5.0, "c"),))),
        {"sample": "y"}, {}, (Step(3, "c", 0.5),),
    )  # fmt: skip
    folded = fold(program)
    assert [i.out for i in folded.instructions] == ["a", "c", "y"]
    assert folded.instructions[1].terms == ((4.0, "a"),)
    assert folded.steps == (Step(2, "c", 0.5),)


def test_an_instruction_never_writes_what_it_reads():
    for seed in range(50):
        for i in allocate(random_program(seed)).instructions:
            assert i.out not in [name for _, name in i.terms]


def test_a_combination_that_nothing_reads_is_left_out():
    """UniPC's last correction before a clean end: the last step is the estimate alone."""
    from edgegen.diffusion import make_process
    from edgegen.program import Eval, Lincomb
    from edgegen.program.verify import reads
    from edgegen.solvers import build_program

    program = build_program("unipc", make_process("vp_betas"), "epsilon", 6)
    read = {name for i in program.instructions for name in reads(i)} | set(program.outputs.values()) | {s.state for s in program.steps}
    assert not [i for i in program.instructions if isinstance(i, Lincomb) and i.out not in read]
    assert [type(i) for i in program.instructions[-2:]] == [Eval, Lincomb]
