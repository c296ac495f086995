"""What depends on the time alone: found, and looked up in tables."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgegen.errors import BuildError
from edgegen.quantize.times import edges, raw_concat, tabulate_times, time_path
from tests.quantize import networks
from tests.quantize.networks import F, graph, run
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def digits():
    return networks.digits()


@pytest.fixture(scope="module")
def ddpm():
    return networks.ddpm()


def weights_of(model, nodes):
    return {model.graph.node[i].input[1] for i in nodes}


def test_the_time_path_of_digits_is_its_embedding(digits):
    found = weights_of(digits, time_path(digits, ["t", "label"]))
    blocks = [("encode0", 4), ("encode1", 2), ("middle", 2), ("decode1", 2), ("decode0", 4)]
    assert found == {"time1.weight", "time2.weight"} | {f"{name}.{i}.embed.weight" for name, count in blocks for i in range(count)}
    assert weights_of(digits, time_path(digits, ["t"])) == {"time1.weight", "time2.weight"}  # the rest depends on the label too


def test_the_edges_and_raw_concats_of_digits(digits):
    first, last = edges(digits, "x", "prediction")
    assert weights_of(digits, first) == {"conv_in.weight"}
    assert weights_of(digits, last) == {"conv_out.weight"}
    assert weights_of(digits, raw_concat(digits)) == {"decode0.0.skip.weight", "decode1.0.skip.weight"}


def test_edges_are_found_through_norms_and_several_branches(ddpm):
    nodes = ddpm.graph.node
    first, last = edges(ddpm, "x", "prediction")
    assert weights_of(ddpm, first) == {"encoders.0.0.conv1.weight", "encoders.0.0.residual_conv.weight"}  # both read x + time
    assert weights_of(ddpm, last) == {"conv_out.weight"}
    assert all("pe_" in nodes[i].input[1] for i in time_path(ddpm, ["t"]))
    assert len(time_path(ddpm, ["t"])) == 3 * 2 + 1 + 3


def test_edges_look_past_a_skip_from_input_to_output():
    model = tiny_model()
    first, last = edges(model, "x", "prediction")
    assert weights_of(model, first) == {"w1"} and weights_of(model, last) == {"w2"}
    assert time_path(model, ["t", "label"]) == frozenset()


def shaped_model():
    """A projection of the time, copied to the batch and size of x by Expand with the shape of x, before a Gemm."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Unsqueeze", ["t", "one"], ["t1"]),
        helper.make_node("Gemm", ["t1", "a", "a0"], ["u"]),
        helper.make_node("Tanh", ["u"], ["v"]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Expand", ["v", "size"], ["wide"]),
        helper.make_node("MatMul", ["wide", "b"], ["w"]),
        helper.make_node("Reshape", ["w", "size"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["s"]),
        helper.make_node("Add", ["s", "x"], ["y"]),
    ]
    constants = {"one": np.array([1]), "a0": np.zeros(8, np.float32)}
    constants |= {n: rng.standard_normal(s).astype(np.float32) for n, s in {"a": (1, 8), "b": (8, 8), "c": (8, 8)}.items()}
    return graph(nodes, {"x": (F, ["batch", 8]), "t": (F, ["batch"])}, {"y": (F, ["batch", 8])}, constants)


def test_the_shape_of_an_input_is_not_its_value():
    model = shaped_model()
    assert time_path(model, ["t"]) == {1, 5, 7}
    assert edges(model, "x", "y") == (frozenset(), {7})


def difference(model, tabulated, times, dtype, extra):
    """Largest difference of the two, relative to the largest value, over batches of mixed times."""
    rng, worst = np.random.default_rng(7), 0.0
    for start in range(0, len(times), 3):
        t = np.array([*times[start : start + 3], times[0]], dtype)  # the rows of a batch need not agree
        feeds = {"x": rng.standard_normal((len(t), 1, 28, 28)).astype(np.float32), "t": t} | extra(len(t))
        wanted = run(model, feeds)
        worst = max(worst, float(np.abs(run(tabulated, feeds) - wanted).max() / np.abs(wanted).max()))
    return worst


def test_tables_of_digits_give_the_same_at_their_times(digits):
    before = digits.SerializeToString()
    times = [999.0, 874.125, 500.5, 124.0, 17.3, 0.0]
    tabulated, names = tabulate_times(digits, "t", times)
    onnx.checker.check_model(tabulated, full_check=True)
    assert names == ("linear_1",)  # the label is added after the second layer: the rest stays
    assert digits.SerializeToString() == before
    assert tabulated.SerializeToString() == tabulate_times(digits, "t", times[::-1])[0].SerializeToString()
    labels = lambda n: {"label": np.arange(n)}  # noqa: E731
    assert difference(digits, tabulated, times, np.float32, labels) < 1e-6
    left = {t.name for t in tabulated.graph.initializer}
    assert not left & {"time1.weight", "time2.weight"} and "encode0.0.embed.weight" in left
    assert not {"Sin", "Cos"} & {n.op_type for n in tabulated.graph.node}
    assert time_path(tabulated, ["t", "label"])  # the keep-list still finds the projections
    assert difference(digits, tabulated, [940.0, 250.0, 60.0], np.float32, labels) > 1e-3  # wrong elsewhere, as it says


def test_the_nearest_time_is_chosen(digits):
    times = [900.0, 500.0, 100.0]
    tabulated, _ = tabulate_times(digits, "t", times)
    feeds = {"x": np.ones((3, 1, 28, 28), np.float32), "label": np.array([1, 2, 10])}
    assert np.array_equal(
        run(tabulated, feeds | {"t": np.array([899.9, 301.0, 299.0], np.float32)}), run(tabulated, feeds | {"t": np.array(times, np.float32)})
    )


def test_tables_of_a_network_whose_time_is_an_index(ddpm):
    times = [999, 812, 500, 1, 0]
    tabulated, names = tabulate_times(ddpm, "t", times)
    onnx.checker.check_model(tabulated, full_check=True)
    assert len(names) == 7 and not any("pe" in t.name for t in tabulated.graph.initializer)
    assert difference(ddpm, tabulated, times, np.int64, lambda n: {}) < 1e-6
    assert len(tabulated.SerializeToString()) < len(ddpm.SerializeToString()) - 500_000  # the 1000 x 128 sinusoids


def test_what_is_copied_to_another_size_is_tabulated_before_that():
    """By Expand to the shape of x, and to a fixed size."""
    model = shaped_model()
    tabulated, names = tabulate_times(model, "t", [0.5])
    assert names == ("v",)
    feeds = {"x": np.ones((2, 8), np.float32), "t": np.array([0.5, 0.5], np.float32)}
    np.testing.assert_allclose(run(tabulated, feeds), run(model, feeds), rtol=1e-6, atol=1e-6)
    model.graph.node[3].CopyFrom(helper.make_node("Expand", ["u", "fixed"], ["size"]))  # u: [batch, 8] -> [5, batch, 8]
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 1, 1]), "fixed"))
    del model.graph.node[4:]
    model.graph.node.append(helper.make_node("Add", ["size", "x"], ["y"]))
    assert tabulate_times(model, "t", [0.5])[1] == ("u",)


def test_what_takes_its_shape_from_another_input_is_not_tabulated():
    model = shaped_model()
    model.graph.node[4].op_type = "Reshape"
    assert tabulate_times(model, "t", [0.5])[1] == ("v",)


def test_only_convolutions_of_size_1_over_channels_are_raw_concats():
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["c"], axis=1),
        helper.make_node("Concat", ["x", "x"], ["wide"], axis=3),
        helper.make_node("Concat", ["x", "x"], ["last"], axis=-3),
        helper.make_node("Conv", ["c", "w3"], ["a"]),
        helper.make_node("Conv", ["c", "w1"], ["b"]),
        helper.make_node("Conv", ["wide", "v1"], ["d"]),
        helper.make_node("Conv", ["last", "w1"], ["e"]),
    ]
    weights = {"w3": np.ones((2, 4, 3, 3), np.float32), "w1": np.ones((2, 4, 1, 1), np.float32), "v1": np.ones((2, 2, 1, 1), np.float32)}
    outputs = {name: (F, ["batch", 2, None, None]) for name in "abde"}
    assert raw_concat(graph(nodes, {"x": (F, ["batch", 2, 8, 8])}, outputs, weights)) == {4, 6}


def test_tables_larger_than_what_they_replace_are_not_made():
    model = shaped_model()
    assert tabulate_times(model, "t", [0.0])[1] == ("v",)
    unchanged, names = tabulate_times(model, "t", np.linspace(0, 1, 50).tolist())
    assert names == () and unchanged.SerializeToString() == model.SerializeToString()


def test_a_network_whose_time_meets_a_condition_at_once_stays_as_it_is():
    model = tiny_model()
    unchanged, names = tabulate_times(model, "t", [0.5, 0.25])
    assert names == () and unchanged.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("rows", [1, 2])
def test_results_without_a_row_per_sample_are_not_tabulated(rows):
    nodes = [
        helper.make_node("ReduceSum", ["t"], ["total"], keepdims=1),
        helper.make_node("Mul", ["total", "a"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    model = graph(nodes, {"x": (F, ["batch", 8]), "t": (F, ["batch"])}, {"y": (F, ["batch", 8])}, {"a": np.ones((rows, 8), np.float32)})
    assert tabulate_times(model, "t", [0.5])[1] == ()


@pytest.mark.parametrize(
    ("name", "times", "message"),
    [
        ("u", [1.0], "input 'u' does not exist"),
        ("x", [1.0], r"'x': ONNX type 1 \['batch', 8\], expected a time"),
        ("t", [], "no times to tabulate 't'"),
        ("t", [float("nan")], "expected a finite number"),
    ],
)
def test_what_cannot_be_tabulated_is_refused(name, times, message):
    with pytest.raises(BuildError, match=message):
        tabulate_times(shaped_model(), name, times)


def test_a_fraction_is_no_index(ddpm):
    with pytest.raises(BuildError, match=r"time 874\.5 of 't': expected a finite whole number"):
        tabulate_times(ddpm, "t", [999.0, 874.5])


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(BuildError, match="did you mean 'label'"):
        time_path(tiny_model(), ["labels"])
    with pytest.raises(BuildError, match="the network's output"):
        edges(tiny_model(), "x", "y")
