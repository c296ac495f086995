"""Every row of the specification's table of final states (tests/golden/solvers.toml), whatever the network predicts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.program import Eval, Lincomb, interpret
from edgegen.solvers import build_program
from tests.analytic import X_T, changed, exact_flow, network

TABLE = tomllib.loads((Path(__file__).parents[1] / "golden" / "solvers.toml").read_text())
ROWS = TABLE["row"]
VP = make_process("vp_linear", beta_min=0.1, beta_max=20.0)
NAMES = ["-".join([r["solver"], r["grid"], *(str(v) for v in r.get("options", {}).values())]) for r in ROWS]


def program_of(row, prediction="epsilon"):
    options = row.get("options", {})
    return build_program(
        row["solver"], VP, prediction, row["steps"], grid=row["grid"], grid_options=row.get("grid_options"), t_start=1.0, t_end=1e-3, **options
    )


def run(program, prediction="epsilon", dtype=np.float64):
    return interpret(program, {"denoiser": network(VP, prediction)}, {"x_T": X_T}, dtype=dtype)["sample"]


def test_all_sixteen_solver_rows_of_the_specification_are_here():
    assert len(ROWS) == 16


def test_the_exact_flow_of_the_table_is_met_by_our_reference_solution():
    np.testing.assert_allclose(exact_flow(VP, X_T, 1.0, 1e-3), TABLE["exact_flow"]["sample"], atol=6e-10, rtol=0)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow", "score", "edm"])
def test_a_golden_row_is_met_whatever_the_network_predicts(row, prediction):
    np.testing.assert_allclose(run(program_of(row, prediction), prediction), row["sample"], atol=2e-9, rtol=0)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "edm"])
def test_float32_stays_within_1e_5_of_float64(row, prediction):
    program = program_of(row, prediction)
    # the network itself in float64, so that the program's arithmetic is what is measured
    exact = network(VP, prediction)
    grid = {float(np.float32(t)): t for t in times(program)}

    def run_in_double(x, t):
        return exact(np.asarray(x, np.float64), grid[float(t)])

    single = interpret(program, {"denoiser": run_in_double}, {"x_T": X_T}, dtype=np.float32)["sample"]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, run(program, prediction), atol=1e-5, rtol=0)


def times(program):
    return [i.inputs["t"][0].value for i in program.instructions if isinstance(i, Eval)]


# Section 6.2: psi, then C_0, C_1, ... of tAB3 on the quadratic grid with 10 steps
TAB3 = {
    0: [5.3334567019, -4.3339559505],
    1: [3.3720627395, -3.1958592236, 0.8188595243],
    3: [1.7613968113, -1.5387333853, 1.2236739535, -0.6328196703, 0.1285664395],
    9: [1.0021271777, -0.0800697791, 0.0335712584, -0.0105326019, 0.0014194565],
}


def updates(program):
    """The coefficients of each step's LINCOMB, in the written order."""
    return [[c for c, _ in i.terms] for i in program.instructions if isinstance(i, Lincomb)]


@pytest.mark.parametrize("step", TAB3)
def test_tab3_has_the_coefficients_of_the_specification(step):
    program = build_program("deis", VP, "epsilon", 10, grid="quadratic", t_start=1.0, t_end=1e-3, variable="t", order=3, lower_order_final=False)
    found = updates(program)
    assert len(found) == 10
    np.testing.assert_allclose(found[step], TAB3[step], atol=6e-11, rtol=0)


def test_the_times_of_the_listed_tab3_step_are_those_of_the_specification():
    program = build_program("deis", VP, "epsilon", 10, grid="quadratic", t_start=1.0, t_end=1e-3, variable="t", order=3, lower_order_final=False)
    np.testing.assert_allclose([program.steps[2].time, program.steps[3].time], [0.503372, 0.375339], atol=5e-7)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_program_with_one_weight_off_by_a_millionth_misses_its_row(row):
    broken = changed(program_of(row), -1, lambda terms: [(terms[0][0] * (1 + 1e-6), terms[0][1]), *terms[1:]])
    assert np.abs(run(broken) - row["sample"]).max() > 1e-7


@pytest.mark.parametrize("row", [r for r in ROWS if r["solver"] in ("deis", "dpmpp_2m", "dpmpp_3m", "unipc", "ipndm")], ids=lambda r: r["solver"])
def test_a_multistep_program_without_the_oldest_estimate_of_a_step_misses_its_row(row):
    broken = changed(program_of(row), -1, lambda terms: terms[:-1])
    assert np.abs(run(broken) - row["sample"]).max() > 1e-6
