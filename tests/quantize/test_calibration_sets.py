"""Which states each calibration set gives, at which times, paired with them; and what is said about sets and inputs that are not usable."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import norm

from edgegen.calibration import Batch, CalibrationContext, calibration_inputs, calibration_set, collect_record
from edgegen.diffusion import make_process
from edgegen.errors import CalibrationError, RuntimeFault
from edgegen.library import run_file
from edgegen.plan import make_plan, program_of
from edgegen.program import initial_state, interpret, normals
from edgegen.recipe import load_recipe
from edgegen.spec import SampleSpec, Signature, TensorSpec
from edgegen.targets.onnxruntime import OrtComponent
from edgegen.trajectory import network_times, trajectory
from tests.tiny import tiny_model

CALIB = Path(__file__).parents[2] / "calib"
PROCESS = make_process("vp_linear")
LATER = ("single", "ptq4dm", "uniform", "density_variety")


def context_of(model, recipe_file, *, samples=5, batch=2, seed=1, settings=()):
    """A context as `edgegen build` makes it, of a network in the place of the recipe's."""
    plan = make_plan(load_recipe(recipe_file, settings), recipe_file.parent)
    component = OrtComponent("denoiser", model.SerializeToString(), plan.signature, threads=1)
    return CalibrationContext(
        {"denoiser": component}, tuple(plan.programs.values()), plan.conditions, plan.sample, samples, batch, seed, PROCESS,
        lambda steps: program_of(plan.recipe, plan.recipe.programs[0], steps, PROCESS), model={"denoiser": model},
    )  # fmt: skip


def given(name, context, folder=CALIB, **options):
    return list(calibration_set(name, [folder], options)[0](context))


def rows(batches, name="x"):
    return np.concatenate([b.feeds[name] for b in batches])


@pytest.fixture(scope="module")
def tiny(tiny_recipe):
    return context_of(tiny_model(), tiny_recipe)


def points_model():
    """prediction (of x0) = table[label] + 0 conv(x): each label has one data point, so x_t = alpha x0 + sigma eps exactly, on every trajectory."""
    points = np.random.default_rng(3).standard_normal((5, 1, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "label"], ["point"]),
        helper.make_node("Conv", ["x", "look"], ["seen"], pads=[1] * 4),
        helper.make_node("Mul", ["seen", "nothing"], ["none"]),
        helper.make_node("Add", ["point", "none"], ["prediction"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", 1, 8, 8])]
    constants = [numpy_helper.from_array(points, "table"), numpy_helper.from_array(np.float32(0), "nothing")]
    constants.append(numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "look"))
    return helper.make_model(
        helper.make_graph(nodes, "points", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


# deployed and single


def test_rows_of_chosen_samples_are_taken_from_each_branch():
    batch = Batch("f", 0.5, {"x": np.arange(12).reshape(6, 2), "t": np.arange(6)})  # three samples, two branches
    kept = batch.of(np.array([False, True, True]))
    assert kept.feeds["t"].tolist() == [1, 2, 4, 5] and kept.feeds["x"][:, 0].tolist() == [2, 4, 8, 10]
    assert (kept.component, kept.time) == ("f", 0.5)
    assert batch.of(np.zeros(3, bool)) is None


def test_deployed_feeds_both_branches_of_guidance_at_every_time_of_every_program(tiny):
    batches = given("deployed", tiny)
    assert sum(len(b.feeds["x"]) for b in batches) == 5 * (2 * 4 + 2 * 2 + 3)  # dpmpp_2m-4 and -2 guided, ddim-3 not
    first = batches[0].feeds
    np.testing.assert_array_equal(first["x"][:2], first["x"][2:])
    assert (first["label"][:2] < 4).all() and (first["label"][2:] == 4).all()
    assert {b.time for b in batches} == {t for program in tiny.programs for t in network_times(program, "t")}


def test_deployed_states_are_those_that_the_interpreter_walks_through(tiny):
    program = tiny.programs[2]  # ddim with eta = 1: noise between the steps, too
    batches = list(given("deployed", tiny))[-3:]  # the last group holds one sample, number 4
    walked = []

    def network(**arrays):
        walked.append(arrays["x"].copy())
        return tiny.components["denoiser"](**arrays)

    label = batches[0].feeds["label"]
    interpret(program, {"denoiser": network}, {"label": label, **initial_state(program, normals(1 + 4, 0, (1, 1, 8, 8)))}, seed=1 + 4)
    for batch, x in zip(batches, walked, strict=True):
        np.testing.assert_array_equal(batch.feeds["x"], x)


@pytest.mark.parametrize(
    ("options", "time"), [({}, 1.0), ({"time": 0.49}, 0.334), ({"time": 0.6}, 0.667), ({"time": -3}, 0.03169), ({"time": 9.5}, 1.0)]
)
def test_single_gives_what_every_program_sees_at_the_nearest_deployed_time(tiny, options, time):
    batches = given("single", tiny, **options)  # deployed times: 1, 0.7223, 0.3046, 0.0317 (dpmpp_2m) and 1, 0.667, 0.334 (ddim)
    assert [b.time for b in batches] == pytest.approx([time] * len(batches), abs=1e-5)
    np.testing.assert_array_equal(rows(batches), rows([b for b in given("deployed", tiny) if b.time == batches[0].time]))


# ptq4dm


@pytest.mark.parametrize(("mean", "std", "times"), [(0.4, 0.4, 100), (0.5, 0.1, 20), (0.1, 0.3, 50)])
def test_drawn_times_follow_the_clamped_normal_law(mean, std, times):
    drawn = run_file(CALIB / "ptq4dm.py", "calib").drawn(mean, std, times, 40_000, np.random.default_rng(0))
    below = norm.cdf(np.arange(1, times), mean * times, std * times)  # cut to k: from k up to k + 1; the ends take what lies beyond them
    law = np.diff(np.concatenate([[0.0], below, [1.0]]))
    counts = np.bincount(drawn, minlength=times)
    assert len(counts) == times
    likely = law * len(drawn) > 10
    square = ((counts - law * len(drawn)) ** 2 / (law * len(drawn)))[likely].sum()
    assert square < likely.sum() + 4 * math.sqrt(2 * likely.sum())  # chi-square: mean k, variance 2 k


@pytest.mark.parametrize(("mean", "index"), [(0.25, 5), (-3.0, 0), (0.97, 19), (4.0, 19)])
def test_time_0_of_the_law_is_the_least_noisy(tiny_recipe, mean, index):
    context = context_of(tiny_model(), tiny_recipe, samples=3, settings=['programs.0.solver="ddim"'])
    times = {b.time for b in given("ptq4dm", context, steps=20, mean=mean, std=0)}
    assert list(times) == pytest.approx([np.linspace(1e-3, 1.0, 21)[1 + index]], abs=1e-6)


def pairing(batches, program_rows):
    """For each row ||x - alpha x0||^2 / (dim sigma^2), x0 the point that the guided trajectory of its label ends at: near 1 if x belongs to its time."""
    points = numpy_helper.to_array(next(c for c in points_model().graph.initializer if c.name == "table"))
    ratios = []
    for b in batches:
        x0 = 1.5 * points[b.feeds["label"]] - 0.5 * points[4]
        conditional = b.feeds["label"] != 4
        alpha, sigma = float(PROCESS.alpha(b.time)), float(PROCESS.sigma(b.time))
        ratios += list(np.square(b.feeds["x"] - alpha * x0)[conditional].mean(axis=(1, 2, 3)) / sigma**2)
    assert len(ratios) == program_rows
    return np.array(ratios)


@pytest.mark.parametrize("name", ["deployed", "ptq4dm", "uniform", "density_variety"])
def test_states_belong_to_their_times(tiny_recipe, name):
    context = context_of(points_model(), tiny_recipe, samples=48, batch=16, settings=["programs.1.guidance=1.5"])
    batches = given(name, context)
    count = {"deployed": 48 * (4 + 2 + 3), "uniform": 48 * 20}.get(name, 48)
    assert pairing(batches, count).mean() == pytest.approx(1.0, abs=0.1)


def test_the_released_generators_reversed_pairing_fails_that_test(tiny_recipe):
    """The loop's counter, 0 at the noisiest state, compared with the drawn time, which is then fed with that state."""
    context = context_of(points_model(), tiny_recipe, samples=48, batch=16)
    program = context.program(100)
    times = network_times(program, "t")
    rng = np.random.default_rng(context.seed)
    drawn = run_file(CALIB / "ptq4dm.py", "calib").drawn(0.4, 0.4, 100, 48, rng)
    counted = np.array(times)[drawn]
    wrong = [
        Batch(b.component, times[99 - times.index(b.time)], b.feeds)
        for b in trajectory(context, program, rng, lambda b, numbers: b.of(counted[numbers] == b.time))
    ]
    assert pairing(wrong, 48).mean() != pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("name", ["ptq4dm", "density_variety"])
def test_each_sample_gives_one_state_and_equal_times_come_together(tiny_recipe, name):
    batches = given(name, context_of(tiny_model(), tiny_recipe, samples=23, batch=4), steps=6)
    assert sum(len(b.feeds["x"]) for b in batches) == 2 * 23  # both branches of guidance
    assert {len(a) for b in batches for a in b.feeds.values()} <= set(range(2, 4 + 8, 2))
    times = [b.time for b in batches]
    assert max(times.count(t) - math.ceil(sum(len(b.feeds["x"]) for b in batches if b.time == t) / 4) for t in times) <= 0


# uniform


@pytest.mark.parametrize(("steps", "times", "stride"), [(100, 20, 5), (100, 7, 14), (30, 30, 1), (9, 1, 9), (10, 6, 1)])
def test_uniform_gives_equally_many_states_at_every_so_manieth_time(tiny_recipe, steps, times, stride):
    context = context_of(tiny_model(), tiny_recipe, samples=3, settings=['programs.0.solver="ddim"'])
    counts: dict[float, int] = {}
    for b in given("uniform", context, steps=steps, times=times):
        counts[b.time] = counts.get(b.time, 0) + len(b.feeds["x"])
    grid = np.linspace(1.0, 1e-3, steps + 1)[:-1]  # of ddim on this process
    assert sorted(counts, reverse=True) == pytest.approx(grid[[k * stride for k in range(times)]], abs=1e-6)
    assert set(counts.values()) == {2 * 3}


# density_variety


def direct_weights(features, variety, radius):
    """The paper's definitions, one pair of times at a time."""
    count = len(features)
    density, spread = [0] * count, [0.0] * count
    for i in range(count):
        for j in range(count):
            a, b = features[i].astype(float), features[j].astype(float)
            density[i] += sum((a - b) ** 2) / len(a) <= radius
            spread[i] += 1 - sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))
    scaled = [[(v - min(vs)) / (max(vs) - min(vs)) for v in vs] for vs in (density, spread)]
    return np.array([d + variety * v for d, v in zip(*scaled, strict=True)])


def test_weights_of_times_are_the_papers():
    features = np.random.default_rng(4).standard_normal((9, 20)).astype(np.float32) * np.linspace(0.5, 2, 9, dtype=np.float32)[:, None]
    weights = run_file(CALIB / "density_variety.py", "calib").time_weights
    np.testing.assert_allclose(weights(features, 1.2, 2.5), direct_weights(features, 1.2, 2.5), rtol=1e-9)
    distances = [np.mean((a.astype(float) - b.astype(float)) ** 2) for a in features for b in features]
    np.testing.assert_allclose(weights(features, 0.7, 0.0), direct_weights(features, 0.7, sorted(distances)[40]), rtol=1e-9)  # of 81 the middle one


def test_samples_are_allocated_by_largest_remainders():
    allocated = run_file(CALIB / "density_variety.py", "calib").allocated
    assert allocated(np.array([41.0, 29.0, 17.0, 13.0]), 10).tolist() == [4, 3, 2, 1]  # 4.1, 2.9, 1.7, 1.3
    assert allocated(np.zeros(3), 7).tolist() == [3, 2, 2]
    assert allocated(np.array([0.0, 1.0]), 5).tolist() == [0, 5]
    assert allocated(np.array([1e-30, 1.0, 1.0]), 1).tolist() == [0, 1, 0]


def test_density_variety_gives_each_time_its_share(tiny_recipe):
    observed = tiny_model()
    table = next(c for c in observed.graph.initializer if c.name == "table")
    table.CopyFrom(numpy_helper.from_array(10 * numpy_helper.to_array(table), "table"))  # so that the branches of guidance differ much
    context = context_of(observed, tiny_recipe, samples=400, batch=4)
    program = context.program(8)
    observed = onnx.ModelProto.FromString(observed.SerializeToString())
    observed.graph.output.append(onnx.ValueInfoProto(name="c2"))
    session = OrtComponent("seen", observed.SerializeToString(), context.components["denoiser"].signature, threads=1)
    features: dict[float, np.ndarray] = {}

    def network(**arrays):
        feeds = session.feeds(arrays)
        values = session.run(feeds)
        features[float(arrays["t"])] = values["c2"][:4].reshape(-1)
        return {"prediction": values["prediction"]}

    label = np.random.default_rng(1).integers(0, 3, 4, endpoint=True)
    interpret(program, {"denoiser": network}, {"label": label, **initial_state(program, normals(1, 0, (4, 1, 8, 8)))}, seed=1)
    times = sorted(features, reverse=True)
    weights = direct_weights(np.array([features[t] for t in times]), 2.0, 0.001)
    shares = 400 * weights / weights.sum()
    found = dict.fromkeys(times, 0)
    for b in given("density_variety", context, steps=8, variety=2.0, radius=0.001):
        found[b.time] += len(b.feeds["x"]) // 2
    assert sum(found.values()) == 400 and len(set(found.values())) > 3
    assert all(math.floor(s) <= found[t] <= math.ceil(s) for t, s in zip(times, shares, strict=True))


def graph_model(nodes, constants, signature_x, output):
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *signature_x])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def innermost_of(model, shape, output_shape):
    output = model.graph.output[0].name
    signature = Signature((TensorSpec("x", "float32", ("batch", *shape)),), (TensorSpec(output, "float32", ("batch", *output_shape)),))
    component = OrtComponent("f", model.SerializeToString(), signature, threads=1)
    context = CalibrationContext({"f": component}, (), (), SampleSpec(shape), 1, 1, 0, model={"f": model})
    return run_file(CALIB / "density_variety.py", "calib").innermost(context, "f")


def test_the_innermost_tensor_of_a_unet_is_in_its_middle_block_not_in_a_gate():
    kernel = np.full((2, 2, 3, 3), 0.1, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["first"], pads=[1] * 4),
        helper.make_node("Conv", ["first", "k"], ["down"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["down"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "one"], ["gate"]),
        helper.make_node("Mul", ["down", "gate"], ["gated"]),
        helper.make_node("Conv", ["gated", "k"], ["middle"], pads=[1] * 4),
        helper.make_node("Conv", ["middle", "k"], ["middle2"], pads=[1] * 4),
        helper.make_node("Resize", ["middle2", "", "scales"], ["up"]),
        helper.make_node("Conv", ["up", "k"], ["last"], pads=[1] * 4),
    ]
    model = graph_model(nodes, {"k": kernel, "one": kernel[:, :, :1, :1], "scales": np.array([1, 1, 2, 2], np.float32)}, [2, 8, 8], "last")
    assert innermost_of(model, (2, 8, 8), (2, 8, 8)) == "middle"


def test_the_innermost_tensor_of_a_transformer_is_its_middle_layers():
    nodes = [helper.make_node("Conv", ["x", "patch"], ["patches"], kernel_shape=[2, 2], strides=[2, 2])]
    nodes += [helper.make_node("Reshape", ["patches", "shape"], ["flat"]), helper.make_node("Transpose", ["flat"], ["layer0"], perm=[0, 2, 1])]
    nodes += [helper.make_node("MatMul", [f"layer{k}", "w"], [f"layer{k + 1}"]) for k in range(4)]
    constants = {"patch": np.ones((6, 1, 2, 2), np.float32), "shape": np.array([0, 6, -1]), "w": np.eye(6, dtype=np.float32)}
    assert innermost_of(graph_model(nodes, constants, [1, 8, 8], "layer4"), (1, 8, 8), (16, 6)) == "layer2"
    with pytest.raises(CalibrationError, match="no Conv, Gemm or MatMul behind its input 'x'"):
        innermost_of(graph_model([helper.make_node("Relu", ["x"], ["y"])], {}, [4], "y"), (4,), (4,))


# every set


@pytest.mark.parametrize("name", ["deployed", *LATER])
def test_equal_seeds_give_equal_bytes_and_others_do_not(tiny_recipe, name):
    def drawn(seed):
        return [(b.time, {k: v.tobytes() for k, v in b.feeds.items()}) for b in given(name, context_of(tiny_model(), tiny_recipe, seed=seed))]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(("samples", "batch"), [(1, 8), (3, 8), (5, 2)])
@pytest.mark.parametrize("name", ["deployed", *LATER])
def test_one_sample_and_fewer_samples_than_a_batch_are_enough(tiny_recipe, name, samples, batch):
    batches = given(name, context_of(tiny_model(), tiny_recipe, samples=samples, batch=batch))
    per_sample = {"deployed": 15, "single": 5, "uniform": 40}.get(name, 2)
    assert sum(len(b.feeds["x"]) for b in batches) == samples * per_sample


@pytest.mark.parametrize("name", ["deployed", *LATER])
def test_channels_that_are_always_zero_are_calibrated_like_others(tiny_recipe, name):
    model = tiny_model()
    for constant in model.graph.initializer:
        if constant.name in ("w2", "b2"):  # the innermost tensor, c2, is zero at all times
            constant.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(constant)), constant.name))
    context = context_of(model, tiny_recipe, samples=4)
    record = collect_record(
        {"denoiser": model}, {"denoiser": context.components["denoiser"].signature}, {"denoiser": ["c2"]}, iter(given(name, context))
    )
    assert record is not None


def test_only_one_group_of_samples_is_held(tiny_recipe):
    context = context_of(tiny_model(), tiny_recipe, samples=6, batch=2)
    runs = []
    component = context.components["denoiser"]
    component.run, run = lambda feeds: runs.append(len(feeds["x"])) or run(feeds), component.run
    next(calibration_set("uniform", [CALIB], {"steps": 10, "times": 5})[0](context))
    assert runs == [4] * 10


@pytest.mark.parametrize("name", ["deployed", *LATER])
def test_a_network_that_gives_nan_is_said_to(tiny_recipe, name):
    model = tiny_model()
    next(c for c in model.graph.initializer if c.name == "half").CopyFrom(numpy_helper.from_array(np.float32(np.nan), "half"))
    with pytest.raises(RuntimeFault, match="component 'denoiser' returned NaN or infinity in 'prediction'"):
        given(name, context_of(model, tiny_recipe))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("uniform", {"stepss": 5}, r"uniform.py has no option 'stepss': did you mean 'steps' or 'times'\? Known: steps, times"),
        ("deployed", {"steps": 5}, "deployed.py has no option 'steps': it has none"),
        ("uniform", {"steps": 5.5}, "calibration.options.steps: expected int, such as 100, found 5.5"),
        ("uniform", {"steps": True}, "calibration.options.steps: expected int, such as 100, found True"),
        ("ptq4dm", {"mean": "half"}, "calibration.options.mean: expected float, such as 0.4, found 'half'"),
        ("single", {"time": math.nan}, "calibration.options.time: expected float, such as inf, found nan"),
        ("uniform", {"steps": 0}, "calibration.options.steps: no trajectory of 0 steps: expected a whole number of steps >= 1"),
        ("uniform", {"steps": 10, "times": 11}, "calibration.options.times: expected 1 to 10, the times of 'dpmpp_2m-10'; found 11"),
        ("uniform", {"times": 0}, "calibration.options.times: expected 1 to 100, the times of 'dpmpp_2m-100'; found 0"),
        ("ptq4dm", {"std": -0.1}, "calibration.options.std: expected a share of 0 or more, found -0.1"),
        ("density_variety", {"radius": -1}, "calibration.options: expected variety and radius of 0 or more, found 1.2 and -1.0"),
    ],
)
def test_options_that_are_not_the_sets_are_refused(tiny, name, options, said):
    with pytest.raises(CalibrationError, match=said):
        given(name, tiny, **options)


def test_sets_of_many_steps_need_a_recipe_and_a_network_with_times(tiny):
    bare = CalibrationContext(tiny.components, tiny.programs, tiny.conditions, tiny.sample, 2, 2, 1)
    with pytest.raises(CalibrationError, match="needs a recipe's solver"):
        given("uniform", bare)
    timeless = CalibrationContext(tiny.components, tiny.programs, tiny.conditions, tiny.sample, 2, 2, 1, time="sigma")
    with pytest.raises(CalibrationError, match="program 'dpmpp_2m-4' feeds no times to an input 'sigma'; calibrate with the set deployed"):
        given("single", timeless)
    assert {b.time for b in given("deployed", timeless)} == {0.0}


# sets of one's own


GOOD = 'Batch("denoiser", 0.5, {"x": np.zeros((2, 1, 8, 8), np.float32), "t": np.full(2, 0.5, np.float32), "label": np.zeros(2, np.int64)})'


@pytest.mark.parametrize(
    ("yields", "said"),
    [
        ("iter([])", "own.py: the calibration set gave no batches; expected at least one"),
        ("[3]", r"own.py: batches\(context\) yields edgegen.calibration.Batch, found int"),
        (f"[{GOOD.replace('denoiser', 'denoser')}]", "own.py: no component 'denoser': did you mean 'denoiser'"),
        (f"[{GOOD.replace('0.5, {', 'float(chr(110) + chr(97) + chr(110)), {')}]", "own.py: a batch of time nan, expected a finite number"),
        (f"[{GOOD.replace('np.zeros((2, 1, 8, 8)', 'np.nan * np.zeros((2, 1, 8, 8)')}]", "float64, expected x: float32"),
        (f"[{GOOD.replace('np.full(2, 0.5', 'np.full(2, np.nan')}]", "own.py: time 0.5: 't' is NaN or infinite in row 0; leave such rows out"),
        (
            f"[{GOOD.replace('np.full(2, 0.5', 'np.full(3, 0.5')}]",
            "own.py: time 0.5: expected equally many rows of each input, found x: 2, t: 3, label: 2",
        ),
    ],
)
def test_what_a_set_of_ones_own_yields_is_checked(tiny, tmp_path, yields, said):
    head = "import numpy as np\nfrom edgegen.calibration import Batch\n\n"
    (tmp_path / "own.py").write_text(
        f"{head}def batches(context):\n    return {yields.replace('np.nan * np.zeros((2, 1, 8, 8), np.float32)', 'np.zeros((2, 1, 8, 8))')}\n"
    )
    with pytest.raises(CalibrationError, match=said):
        given("own.py", tiny, tmp_path)


def test_a_set_of_ones_own_gets_its_options_over_its_defaults(tiny, tmp_path):
    lines = ["import numpy as np", "from edgegen.calibration import Batch", 'OPTIONS = {"much": 1.5, "name": "a"}', "def batches(context):"]
    lines += ['    assert context.options == {"much": 2.0, "name": "a"}', f"    return [{GOOD}]"]
    (tmp_path / "own.py").write_text("\n".join(lines))
    assert len(given("own.py", tiny, tmp_path, much=2)) == 1


# real inputs


SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("t", "float32", ("batch",)), TensorSpec("label", "int64", ("batch",))),
    (TensorSpec("prediction", "float32", ("batch", 2)),),
)


def real(count=5, **changed):
    arrays = {"x": np.arange(2.0 * count, dtype=np.float32).reshape(count, 2), "t": np.array([0.5, 0.25] * count, np.float32)[:count]}
    arrays |= {"label": np.arange(count)} | changed
    return {name: value for name, value in arrays.items() if value is not None}


def inputs(path, batch=2):
    return list(calibration_inputs(path, "denoiser", SIGNATURE, "t", batch))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_real_inputs_come_by_time_in_batches_with_their_rows_together(tmp_path, save):
    save(tmp_path / "real.npz", **real())
    batches = inputs(tmp_path / "real.npz")
    assert [(b.component, b.time, b.feeds["label"].tolist()) for b in batches] == [
        ("denoiser", 0.25, [1, 3]), ("denoiser", 0.5, [0, 2]), ("denoiser", 0.5, [4])
    ]  # fmt: skip
    for b in batches:
        assert (b.feeds["t"] == b.time).all()
        np.testing.assert_array_equal(b.feeds["x"][:, 0], 2 * b.feeds["label"])
    save(tmp_path / "one.npz", **real(1))
    assert len(inputs(tmp_path / "one.npz", batch=8)) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": None}, "the input 'label' is missing; expected x: float32"),
        ({"labels": np.arange(5)}, "the network has no input 'labels': did you mean 'label'"),
        ({"x": np.zeros((5, 2))}, r"'x' is float64, expected x: float32\[batch, 2\]; convert it with astype"),
        ({"x": np.zeros((5, 3), np.float32)}, r"'x' has shape \[5, 3\], expected x: float32\[batch, 2\]"),
        ({"t": np.float32(0.5)}, r"'t' has shape \[\], expected t: float32\[batch\]"),
        ({"t": np.zeros(4, np.float32)}, "expected equally many rows of each input, found x: 5, t: 4, label: 5"),
        ({"x": np.full((5, 2), np.nan, np.float32)}, "'x' is NaN or infinite in row 0; leave such rows out"),
        ({"t": np.array([0, 1, 2, np.inf, 4], np.float32)}, "'t' is NaN or infinite in row 3"),
        ({"label": np.array([None] * 5)}, "cannot be read as an .npz of plain arrays: Object arrays cannot be loaded"),
    ],
)
def test_real_inputs_that_are_not_the_networks_are_refused(tmp_path, changed, said):
    np.savez(tmp_path / "real.npz", **real(**changed))
    with pytest.raises(CalibrationError, match=f"calibration.inputs: .*real.npz: {said}"):
        inputs(tmp_path / "real.npz")


def test_files_of_real_inputs_that_are_none_are_refused(tmp_path):
    path = tmp_path / "real.npz"
    with pytest.raises(CalibrationError, match="no such file; expected an .npz written by numpy.savez"):
        inputs(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(CalibrationError, match="not an .npz file; write one with numpy.savez"):
        inputs(path)
    np.savez(path, **real(0))
    with pytest.raises(CalibrationError, match="there are 0 rows; expected at least one"):
        inputs(path)
    np.savez_compressed(path, **real(2000))
    whole = path.read_bytes()
    for start in range(0, len(whole) - 60, 97):
        path.write_bytes(whole[:start] + bytes(60) + whole[start + 60 :])
        with pytest.raises(CalibrationError, match="real.npz: (cannot be read as an .npz of plain arrays|not an .npz file|the network has no input)"):
            inputs(path)
    path.unlink()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ")
    with pytest.raises(CalibrationError, match="cannot be read as an .npz of plain arrays"):
        inputs(path)


def test_a_network_without_a_time_has_its_real_inputs_at_time_0(tmp_path):
    np.savez(tmp_path / "real.npz", x=np.ones((3, 2), np.float32))
    signature = Signature((TensorSpec("x", "float32", ("batch", 2)),), SIGNATURE.outputs)
    (batch,) = calibration_inputs(tmp_path / "real.npz", "f", signature, "t", 8)
    assert (batch.time, len(batch.feeds["x"])) == (0.0, 3)


# docs/calibration.md


DOCUMENT = (CALIB.parent / "docs" / "calibration.md").read_text()


def test_the_documents_own_set_gives_what_it_says(tiny, tmp_path):
    _, own = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "late.py").write_text(own)
    batches = given("late.py", tiny, tmp_path)
    assert {b.time for b in batches} == {t for p in tiny.programs for t in network_times(p, "t")[-2:]}
    assert {b.time for b in given("late.py", tiny, tmp_path, times=1)} == {network_times(p, "t")[-1] for p in tiny.programs}


def test_the_documents_real_inputs_are_those_of_a_network(tiny, tmp_path, monkeypatch):
    recorder, _ = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(recorder, "recorder.py", "exec"), {})
    batches = list(calibration_inputs(tmp_path / "real_inputs.npz", "denoiser", tiny.components["denoiser"].signature, "t", 8))
    assert [(b.time, len(b.feeds["x"])) for b in batches] == [(0.25, 2), (0.5, 2), (1.0, 2)]


def test_the_document_names_every_set_and_option_with_its_default():
    documented: dict[str, dict[str, str]] = {}
    name = ""
    for row in re.findall(r"^\| (`.*|\| .*)\|$", DOCUMENT.partition("## Options")[2].partition("\n## ")[0], re.MULTILINE):
        cells = [cell.strip() for cell in f"| {row}".split("|")[1:]]
        name = cells[0].strip("`") or name
        documented.setdefault(name, {}).update(zip(re.findall(r"`(\w+)`", cells[1]), cells[2].split(", "), strict=True))
    options = {path.stem: getattr(run_file(path, "calib"), "OPTIONS", {}) for path in CALIB.glob("*.py")}
    assert documented == {name: {k: f"{v:g}" for k, v in o.items()} for name, o in options.items() if o}
    assert all(f"| `{name}` |" in DOCUMENT.partition("## Options")[0] for name in options)
