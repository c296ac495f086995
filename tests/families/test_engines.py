"""TensorRT-RTX engines of trained networks for SM86 and SM89, built here without a GPU: stepwise, and the whole sampler as one engine."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.bundle import open_bundle
from edgegen.calibration import Batch, collect_record
from edgegen.errors import BuildError
from edgegen.fusing import fused_onnx
from edgegen.program import Eval, Imm
from edgegen.program.fuse import fuse
from edgegen.quantize import choose_ranges
from edgegen.recipe import recipe_from_json
from edgegen.targets.onnxruntime import network_of
from edgegen.targets.tensorrt import BuildOptions, build_engine, check_for_tensorrt
from edgegen.targets.tensorrt.component import batch_profiles
from edgegen.targets.tensorrt.networks import network_for
from edgegen.targets.tensorrt.qdq import plan, watched

pytest.importorskip("tensorrt_rtx")
BOTH = ("SM86", "SM89")


class Network:
    """A bundle's float network, and as TensorRT gets it: ranges from random states at the program's times (this says nothing about quality)."""

    def __init__(self, path, operators):
        self.bundle = open_bundle(path)
        variant = next(v for v in self.bundle.manifest.variants if v.name == "float32")
        self.model, self.operators = network_of(self.bundle, variant, "denoiser"), operators
        self.keep = recipe_from_json(self.bundle.document("recipe")).quantization.keep
        self.signature = self.bundle.manifest.components["denoiser"]
        self.program = self.bundle.programs[self.bundle.manifest.programs[0].name]
        tensors = watched(self.model, plan(self.model, operators, self.keep))
        record = collect_record({"denoiser": self.model}, {"denoiser": self.signature}, {"denoiser": tensors}, self.batches())
        self.ranges = choose_ranges(record, times="shared")

    def batches(self):
        rng = np.random.default_rng(0)
        times = sorted({i.inputs["t"][0].value for i in self.program.instructions if isinstance(i, Eval) and isinstance(i.inputs["t"][0], Imm)})
        for time in times[:: max(len(times) // 3, 1)]:
            shapes = {t.name: (t.dtype, tuple(4 if n == "batch" else n for n in t.shape)) for t in self.signature.inputs}
            feeds = {
                name: rng.standard_normal(shape).astype(dtype) if dtype == "float32" else np.zeros(shape, dtype)
                for name, (dtype, shape) in shapes.items()
            }
            yield Batch("denoiser", time, feeds | {"t": np.full(4, time, shapes["t"][0])})

    def lowered(self, precision):
        return network_for(self.model, precision, self.ranges, self.operators, self.keep)

    def engine(self, precision, capabilities):
        model = self.lowered(precision)
        check_for_tensorrt(model, precision, capabilities)
        options = BuildOptions(capabilities=capabilities, profiles=batch_profiles(self.signature))
        return build_engine(model.SerializeToString(), options, where=precision)

    def fused(self, precision, capabilities, *, loop):
        conditions = {c.name: (c.dtype, c.shape) for c in self.bundle.manifest.conditions}
        inputs = {i.name: conditions.get(i.name, ("float32", self.bundle.manifest.sample.shape)) for i in self.program.inputs}
        model = fuse(self.program, {"denoiser": self.lowered(precision)}, inputs, 1, loop=loop).model
        check_for_tensorrt(model, precision, capabilities)
        return build_engine(model.SerializeToString(), BuildOptions(capabilities=capabilities), where=f"fused {precision}")


@pytest.fixture(scope="module")
def unet(digits):
    return Network(digits, ("Conv",))


@pytest.fixture(scope="module")
def policy(reach):
    return Network(reach, ("Gemm",))


def kept(network, model):
    """How many planned convolutions there are, and how many in all."""
    planned = len(plan(network.model, ("Conv",), network.keep))
    return planned, sum(n.op_type == "Conv" for n in model.graph.node)


@pytest.mark.parametrize(("precision", "capabilities", "kind"), [("float16", BOTH, "Half"), ("int8", BOTH, "Int8"), ("float8", ("SM89",), "FP8")])
def test_digits_stepwise(unet, precision, capabilities, kind):
    engine = unet.engine(precision, capabilities)
    planned, _ = kept(unet, unet.model)
    found = [layer for layer in engine.report.layers if layer.product == "Conv"]
    kinds = [layer.inputs[0].dtype for layer in found]
    assert len(engine.data) > 1e6 and planned > 20
    if kind == "Half":
        assert set(engine.report.precisions("Conv")) == {"Half"}
    else:  # every planned convolution, and no other, is quantized
        assert kinds.count(kind) >= planned, engine.report.precisions("Conv")
        assert not engine.report.written_out()
    print(precision, capabilities, f"{len(engine.data) / 1e6:.2f} MB, {engine.report.seconds:.1f} s", {k: kinds.count(k) for k in set(kinds)})


@pytest.mark.parametrize(("precision", "capabilities", "kind"), [("float16", BOTH, "Half"), ("int8", BOTH, "Int8")])
def test_digits_fused_as_a_loop(unet, precision, capabilities, kind):
    engine = unet.fused(precision, capabilities, loop=True)
    kinds = [layer.inputs[0].dtype for layer in engine.report.layers if layer.product == "Conv"]
    assert kinds.count(kind) >= kept(unet, unet.model)[0]
    print("loop", precision, f"{len(engine.data) / 1e6:.2f} MB, {engine.report.seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "capabilities", "kind"), [("float16", ("SM89",), "Half"), ("int8", ("SM89",), "Int8"), ("float8", ("SM89",), "FP8")]
)
def test_digits_fused_with_every_step_written_out(unet, precision, capabilities, kind):
    engine = unet.fused(precision, capabilities, loop=False)
    kinds = [layer.inputs[0].dtype for layer in engine.report.layers if layer.product == "Conv"]
    assert kinds.count(kind) >= 10 * kept(unet, unet.model)[0]
    print("unrolled", precision, f"{len(engine.data) / 1e6:.2f} MB, {engine.report.seconds:.1f} s")


@pytest.mark.parametrize("loop", [None, False, True])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_reach_policy(policy, precision, loop):
    engine = policy.engine(precision, BOTH) if loop is None else policy.fused(precision, BOTH, loop=loop)
    assert engine.report.products("MatMul") and len(engine.data) > 100_000


def test_what_the_parser_would_refuse_is_caught_before_it_with_the_nodes_name(digits):
    """The file for ONNX Runtime: uint8 activations, int32 biases."""
    bundle = open_bundle(digits)
    model = network_of(bundle, next(v for v in bundle.manifest.variants if v.name == "int8"), "denoiser")
    nodes = {n.name for n in model.graph.node}
    with pytest.raises(BuildError) as e:
        check_for_tensorrt(model, "digits int8", BOTH)
    assert any(f"{name!r}" in str(e.value) for name in nodes) or any(t.name in str(e.value) for t in model.graph.initializer)
    with pytest.raises(BuildError):
        build_engine(model.SerializeToString(), BuildOptions(capabilities=("SM86",), profiles=batch_profiles(bundle.manifest.components["denoiser"])))
    assert fused_onnx(bundle, variant="int8")
