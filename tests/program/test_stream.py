"""Programs with states: what lives across calls, what a failing call leaves, and noise that differs from call to call."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.errors import RuntimeFault, Status
from edgegen.program import Executable, Input, Lincomb, Program, State, StreamState, normals, philox4x32
from edgegen.program.rewrite import allocate, fold
from tests.tiny import stream_program

RNG = np.random.default_rng(3)
A, B, C = (RNG.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 8), (8, 4)))
FRAMES = RNG.standard_normal((6, 2, 4)).astype(np.float32)


def cell(x, h):
    g = np.tanh(x @ A + h @ B)
    return {"y": g @ C, "g": g}


def run(executable, stream, frame, networks=None):
    return executable.run(networks or {"cell": cell}, {"frame": frame}, seed=7, stream=stream, rows=2)["sample"]


@pytest.mark.parametrize("change", [lambda p: p, lambda p: allocate(fold(p))])
def test_states_carry_what_their_next_register_held(change):
    executable, stream = Executable(change(stream_program())), StreamState()
    h, one, two = np.zeros((2, 8), np.float32), np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)
    for n, frame in enumerate(FRAMES):
        made = cell(frame, h)
        wanted = made["y"] + 0.5 * one + 0.25 * two + 0.125 * normals(7, 1, (2, 4), n)
        np.testing.assert_allclose(run(executable, stream, frame), wanted, rtol=1e-6, atol=1e-6)
        h, one, two = made["g"], frame, one  # all at once: two becomes what one was
        assert stream.calls == n + 1


def test_a_call_that_fails_changes_no_state():
    executable, stream = Executable(stream_program()), StreamState()
    run(executable, stream, FRAMES[0])
    kept = {name: value.copy() for name, value in stream.values.items()}
    for broken in (lambda x, h: {"y": x, "g": np.full_like(h, np.inf)}, lambda x, h: {"y": x}):
        with pytest.raises(RuntimeFault):
            run(executable, stream, FRAMES[1], {"cell": broken})
        assert stream.calls == 1
        assert all(np.array_equal(stream.values[name], value) for name, value in kept.items())


def test_a_state_that_overflows_is_an_error_though_the_sample_is_finite():
    p = Program(
        "p",
        (Input("c", "condition"),),
        (Lincomb("w", ((1e30, "w0"),)), Lincomb("y", ((1.0, "c"),))),
        {"sample": "y"},
        {},
        (),
        (State("w0", (), "w", 1.0),),
    )
    executable, stream = Executable(p), StreamState()
    executable.run({}, {"c": np.ones(1, np.float32)}, stream=stream)
    with pytest.raises(RuntimeFault, match="NaN or infinite") as e:
        executable.run({}, {"c": np.ones(1, np.float32)}, stream=stream)
    assert e.value.code == Status.NONFINITE and stream.calls == 1


@pytest.mark.parametrize("stream", [None, StreamState()])
def test_a_stream_is_for_programs_with_states(stream):
    plain = Program("p", (Input("c", "condition"),), (Lincomb("y", ((1.0, "c"),)),), {"sample": "y"}, {})
    p = stream_program() if stream is None else plain
    with pytest.raises(RuntimeFault, match="programs with states") as e:
        Executable(p).run({"cell": cell}, {p.inputs[0].name: FRAMES[0]}, stream=stream)
    assert e.value.code == Status.BAD_STATE


@pytest.mark.parametrize("count", [5, 100])
def test_the_call_is_the_fourth_counter_word(count):
    """By Philox itself: words of the counter (block, 0, draw, call)."""
    found = normals(5, 3, (count,), 9)
    assert not np.array_equal(found, normals(5, 3, (count,)))
    words = philox4x32(np.array([[0], [0], [3], [9]], np.uint32), (5, 0))[:, 0]
    u, angle = (int(words[0]) + 0.5) * 2.0**-32, int(words[1])
    theta = ((angle & 0x3FFFFFFF) - (2**29 - 0.5)) * np.pi / 2 * 2.0**-30
    s, c = np.sin(theta) * np.sqrt(-2 * np.log(u)), np.cos(theta) * np.sqrt(-2 * np.log(u)) * (-1 if angle >> 31 else 1)
    np.testing.assert_allclose(found[:2], (s, c) if angle >> 30 & 1 else (c, s), rtol=1e-6)
