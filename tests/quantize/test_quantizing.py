"""Networks of a quantizer on the tiny model: what is kept, what the scales are at each time, what ONNX Runtime makes of it, how it is judged."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgegen.calibration import Batch, collect_record
from edgegen.diffusion import make_process
from edgegen.errors import BuildError, BundleError, CalibrationError
from edgegen.judging import Judge, TimedComponent, with_constants
from edgegen.program import Eval, Imm
from edgegen.quality import Bounds
from edgegen.quantize import Ranges, Record
from edgegen.quantize.keeping import RULES, kept_by_rule
from edgegen.quantize.rounding import weighted_error
from edgegen.quantize.scheme import SCHEMES
from edgegen.quantizing import Quantizer, hessians, smoothed
from edgegen.recipe import Quantization
from edgegen.sensitivity import REPAIRED, Trial, measure_effects, repair, search
from edgegen.solvers import Denoiser, build_program
from edgegen.spec import ConditionSpec, SampleSpec
from edgegen.targets.onnxruntime import OrtComponent
from edgegen.targets.onnxruntime.kernels import check_kernels, integer_operators
from edgegen.targets.onnxruntime.qdq import plan, quantize, watched
from edgegen.targets.onnxruntime.scales import TimedScales
from tests.quantize.test_quantize import SIGNATURE, feeds
from tests.tiny import tiny_model

PROGRAM = build_program("ddim", make_process("vp_linear"), "sample", 8, model=Denoiser("denoiser", "x", "t", "prediction", ("label",)))
TIMES = sorted({float(np.float32(o.value)) for i in PROGRAM.instructions if isinstance(i, Eval) for o in i.inputs["t"] if isinstance(o, Imm)})
LABEL = ConditionSpec("label", "int64", (), 0, 3, 1)


def batches():
    for k, time in enumerate(TIMES):
        batch = feeds(time, count=8, seed=k)
        x = batch.feeds["x"]
        smooth = x + np.roll(x, 1, 2) + np.roll(x, 1, 3) + np.roll(x, (1, 1), (2, 3))  # so that rounding errors can make up for each other
        batch.feeds["x"] = smooth * np.float32(1 + k / 2)  # so that ranges drift
        yield batch


def made(options=None, model=None, integers="uint8"):
    """A quantizer of the tiny model, calibrated at the eight times of the program."""
    model = model or tiny_model()
    quantizer = Quantizer(model, "denoiser", SIGNATURE, "x", "prediction", options or Quantization(rules=()), Record({}), batches, integers)
    tensors = watched(model, quantizer.placements)
    quantizer.record = collect_record({"denoiser": model}, {"denoiser": SIGNATURE}, {"denoiser": tensors}, batches())
    return quantizer


def judged(samples=6):
    judge = Judge("denoiser", PROGRAM, (LABEL,), SampleSpec((1, 8, 8), "image"), samples, 7, batch=4)
    with OrtComponent("denoiser", tiny_model().SerializeToString(), SIGNATURE, threads=1) as network:
        return replace(judge, reference=judge.generate(network))


def trial(quantizer, precision="int8", **bounds):
    return Trial(quantizer, SCHEMES[precision], judged(), Bounds(**{"span": 2.0, "psnr_db": 10.0, **bounds}), threads=1)


def test_rules_keep_the_layers_that_they_name():
    assert kept_by_rule(tiny_model(), ["first", "last"], "x", "prediction") == {"w1": RULES["first"], "w2": RULES["last"]}
    assert kept_by_rule(tiny_model(), [], "x", "prediction") == {}
    with pytest.raises(BuildError, match="quantization.rules: did you mean 'first'"):
        kept_by_rule(tiny_model(), ["frist"], "x", "prediction")
    assert {p.weight for p in made(Quantization(rules=("first",))).placements} == {"w2"}
    with pytest.raises(BuildError, match="nothing to quantize: the network has no Conv, Gemm, MatMul"):
        made(Quantization(rules=("first", "last"))).network(SCHEMES["int8"])


def test_an_operator_that_no_rule_knows_stays_float_and_is_named():
    quantizer = made(Quantization(rules=(), operators=("Gemm",), keep=("w1",)))
    assert quantizer.kept == {"w1": "Conv is not asked for", "w2": "Conv is not asked for"}
    assert made(Quantization(rules=(), keep=("conv1",))).kept == {"w1": "named in quantization.keep"}


def test_each_time_has_the_scales_of_the_record_in_its_network():
    """The structural test of the specification: an index that is off by one would hardly show in the error."""
    ranges = Ranges(
        {t: tuple((time, -1.0 - k - 10 * n, 2.0 + k + 10 * n) for k, time in enumerate(TIMES)) for n, t in enumerate(("x", "c1", "h", "c2"))}
    )
    network = quantize(tiny_model(), plan(tiny_model(), ["Conv"], []), ranges)
    scales = TimedScales.from_json(TimedScales.of(ranges, ("x", "c1", "h", "c2"), TIMES, "t", "uint8").to_json())
    for k, time in enumerate(TIMES):
        held = {
            t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(with_constants(network, scales.constants[time])).graph.initializer
        }
        for n, tensor in enumerate(("x", "c1", "h", "c2")):
            low, high = -1.0 - k - 10 * n, 2.0 + k + 10 * n
            assert held[f"{tensor}_scale"] == np.float32(high / 255 - low / 255)
            assert held[f"{tensor}_zero_point"] == round(-low / float(np.float32(high / 255 - low / 255)))
    assert len({v for t in scales.times.values() for v in t.values()}) == 4 * len(TIMES)


def test_a_network_per_time_is_called_by_its_time_and_no_other():
    quantizer = made()
    network = quantizer.network(SCHEMES["int8"])
    assert network.ranges.times == tuple(TIMES)
    constants = TimedScales.of(network.ranges, network.tensors, TIMES[:2], "t", "uint8").constants
    with TimedComponent("denoiser", network.model, SIGNATURE, "t", constants, 1) as timed:
        inputs = {"x": np.ones((1, 1, 8, 8), np.float32), "label": np.ones(1, np.int64)}
        own = [timed(t=np.float32(t), **inputs)["prediction"] for t in TIMES[:2]]
        with OrtComponent("denoiser", with_constants(network.model, constants[TIMES[1]]), SIGNATURE, threads=1) as second:
            assert np.array_equal(own[1], second(t=np.float32(TIMES[1]), **inputs)["prediction"])
        with pytest.raises(CalibrationError, match="was not calibrated; known: "):
            timed(t=np.float32(0.5), **inputs)


@pytest.mark.parametrize("change", [("times", [1]), ("integers", "int4"), ("tensors", [["x", [0], [1]]]), ("tensors", 3), ("input", None)])
def test_malformed_scales_are_refused(change):
    good = TimedScales("t", "uint8", {0.5: {"x": (0.1, 3)}}).to_json()
    assert TimedScales.from_json(good) == TimedScales("t", "uint8", {0.5: {"x": (float(np.float32(0.1)), 3)}})
    key, value = change
    if key == "input":
        del good["input"]
    elif key == "times":
        good["times"] = [good["times"][0], 7]
    else:
        good[key] = value
    with pytest.raises(BundleError, match="the document 'scales' is malformed"):
        TimedScales.from_json(good)


def test_weights_are_rounded_once_with_the_moments_of_the_calibration_set():
    quantizer = made()
    found = dict(hessians(quantizer.model, "denoiser", SIGNATURE, [p.node for p in quantizer.placements], batches))
    (first, *_) = quantizer.placements
    x = np.concatenate([b.feeds["x"] for b in batches()])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.stack([padded[:, 0, i : i + 8, j : j + 8].ravel() for i in range(3) for j in range(3)], axis=1).astype(np.float64)
    np.testing.assert_allclose(found[first.node], rows.T @ rows / len(rows), rtol=1e-4)  # every row was taken: there are fewer than the limit
    for p in quantizer.placements:
        gptq, plain = quantizer.codes(8, [p])[p.weight], made(Quantization(rules=(), weights="nearest")).codes(8, [p])[p.weight]
        weight = quantizer.arrays()[p.weight]
        assert weighted_error(weight, gptq, found[p.node]).sum() < 0.8 * weighted_error(weight, plain, found[p.node]).sum()
    assert quantizer.codes(8, quantizer.placements)["w1"] is quantizer.codes(8, quantizer.placements)["w1"]


@pytest.mark.parametrize("precision", SCHEMES)
def test_every_precision_gives_samples_and_says_what_became_of_its_layers(precision):
    made_network = made().network(SCHEMES[precision])
    limits = {"int8": 0.1, "w4a8": 0.2, "w8a16": 0.02, "w4a16": 0.2, "float16": 2e-3, "float8": 0.1}
    error = trial(made(), precision).error(made_network.model)
    assert 0 < error < limits[precision]
    bits = {"int8": (8, 8), "w4a8": (4, 8), "w8a16": (8, 0), "w4a16": (4, 0), "float16": (16, 0), "float8": (8, 0)}[precision]
    assert {(layer.weight_bits, layer.activation_bits) for layer in made_network.layers} == {bits}
    assert len(made_network.planned) == (2 if bits[1] else 0) == integer_operators(made_network.model).integer


def test_an_operator_that_silently_runs_in_float_is_an_error_with_its_name():
    quantizer, batch = made(), next(batches())
    network = quantizer.network(SCHEMES["int8"])
    assert check_kernels(network.model, network.planned, batch.feeds, "tiny") == 2
    unfinished = [replace(p, output=p.weight == "w1") for p in quantizer.placements]  # without a Q behind it, a convolution runs in float
    broken = quantize(quantizer.model, unfinished, quantizer.ranges())
    with pytest.raises(BuildError, match=re.escape("2 nodes were quantized and ONNX Runtime runs 1 of them in integers; conv2 would silently")):
        check_kernels(broken, network.planned, batch.feeds, "tiny")


def test_an_optimizer_that_changes_the_numbers_is_seen(monkeypatch):
    from edgegen.targets.onnxruntime import kernels

    network, batch = made().network(SCHEMES["int8"]), next(batches())
    plain = kernels._session

    def wrong(model, optimize, *args, **kwargs):
        if optimize or kwargs:
            return plain(model, optimize, *args, **kwargs)
        changed = onnx.load_model_from_string(model)
        for tensor in changed.graph.initializer:
            if tensor.name == "half":
                tensor.CopyFrom(numpy_helper.from_array(np.float32(0.6), "half"))
        return plain(changed.SerializeToString(), optimize)

    monkeypatch.setattr(kernels, "_session", wrong)
    with pytest.raises(BuildError, match="output 'prediction' is .* off on average once ONNX Runtime optimized"):
        check_kernels(network.model, network.planned, batch.feeds, "tiny")


def test_repair_puts_the_most_harmful_layer_back_to_float():
    quantizer = made(Quantization(rules=(), times="shared", ranges="minmax"))
    harmful = replace(quantizer.record["c1"], low=quantizer.record["c1"].low * 60, high=quantizer.record["c1"].high * 60)
    quantizer.record = Record({**quantizer.record.tensors, "c1": harmful})  # the output of conv1 has a range 60 times too wide
    trying = trial(quantizer, relative_error=0.05)
    network = quantizer.network(SCHEMES["int8"])
    verdict = trying.verdict(network.model)
    assert not verdict.passed and "the gate allows 0.0500" in verdict.why
    choice = repair(trying, network, verdict, 1)
    assert choice.verdict.passed and choice.floats == {"w1": REPAIRED}
    assert [layer.why for layer in choice.network.layers] == [REPAIRED, ""]
    assert repair(trying, network, verdict, 0).network is network


def test_effects_name_the_harmful_tensor_and_the_search_stays_within_the_budget():
    quantizer = made(Quantization(rules=()))
    trying = trial(quantizer, relative_error=1.0)
    effects = measure_effects(trying, next(batches()).feeds, "t")
    assert [e.layer for e in effects] == ["w1", "w2"]
    worst = max(effects, key=lambda e: e.error)
    assert len(worst.steps) == len(TIMES) and all(0 <= e <= 2 * worst.error for _, e in worst.steps)
    alone = trying.error(quantize(quantizer.model, [], Ranges({}), stored=dict(quantizer.codes(8, quantizer.placements[:1]))))
    assert effects[0].weight == alone
    kept = [replace(e, saves=1.0) for e in effects]
    everything = search(trying, kept)
    assert everything.floats == {} and everything.verdict.passed
    tight = search(replace(trying, bounds=replace(trying.bounds, relative_error=min(e.error for e in effects) * 1.3)), kept)
    assert len(tight.floats) == 1
    with pytest.raises(BuildError, match="the search leaves nothing in integers"):
        search(trying, [replace(e, saves=-1.0) for e in effects])


def test_the_judge_compares_equal_noise_in_groups_of_any_size():
    judge = judged()
    with OrtComponent("denoiser", tiny_model().SerializeToString(), SIGNATURE, threads=1) as network:
        assert judge.error(network) == 0.0
        assert replace(judge, batch=6).error(network) == 0.0
        with pytest.raises(CalibrationError, match="no reference"):
            replace(judge, reference=None).error(network)


@pytest.mark.parametrize(
    ("bounds", "passes"),
    [({"psnr_db": 40.0}, True), ({"psnr_db": 40.2}, False), ({"relative_error": 0.0201}, True), ({"relative_error": 0.0199}, False),
     ({"quality": lambda x, c: float(x.mean()), "quality_loss": 0.03}, True), ({"quality": lambda x, c: -float(x.mean()), "quality_loss": 0.01}, False)],
)  # fmt: skip
def test_bounds_are_closed_forms(bounds, passes):
    reference = np.ones((2, 1, 4, 4), np.float32)
    verdict = Bounds(**{"span": 2.0, "psnr_db": 0.0, **bounds}).judge(reference, reference * 1.02, {})  # RMSE 0.02 of 2: 40 dB; relative error 0.02
    assert verdict.passed is passes
    assert Bounds(2.0, 40.0).budget(reference) == pytest.approx(0.02) and Bounds(2.0, 40.0, 0.5).budget(reference) == 0.5
    assert verdict.psnr_db == pytest.approx(40.0, abs=1e-4) and verdict.relative_error == pytest.approx(0.02, rel=1e-5)


def test_constants_zero_channels_and_one_sample_are_fine():
    model = tiny_model()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    quantizer = Quantizer(model, "denoiser", SIGNATURE, "x", "prediction", Quantization(rules=()), Record({}), lambda: iter([zeros()]))
    quantizer.record = collect_record(
        {"denoiser": model}, {"denoiser": SIGNATURE}, {"denoiser": watched(model, quantizer.placements)}, iter([zeros()])
    )
    for precision in SCHEMES:
        network = quantizer.network(SCHEMES[precision])
        with OrtComponent("denoiser", network.model.SerializeToString(), SIGNATURE, threads=1) as opened:
            assert np.isfinite(opened.run(zeros().feeds)["prediction"]).all()
    scales = [numpy_helper.to_array(t) for t in quantizer.network(SCHEMES["int8"]).model.graph.initializer if "scale" in t.name]
    assert all((s > 0).all() and np.isfinite(s).all() for s in scales)


def zeros():
    return Batch("denoiser", 0.5, {"x": np.zeros((1, 1, 8, 8), np.float32), "t": np.full(1, 0.5, np.float32), "label": np.zeros(1, np.int64)})


def test_smoothing_keeps_the_network_and_moves_outliers_into_weights():
    model = tiny_model()
    record = made().record
    changed = smoothed(model, record, "balance")
    batch = next(batches())
    with (
        OrtComponent("denoiser", model.SerializeToString(), SIGNATURE, threads=1) as a,
        OrtComponent("denoiser", changed.SerializeToString(), SIGNATURE, threads=1) as b,
    ):
        np.testing.assert_allclose(b.run(batch.feeds)["prediction"], a.run(batch.feeds)["prediction"], rtol=1e-4, atol=1e-5)
