"""Sessions over a real bundle in real ONNX Runtime, in both runtimes."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgegen
from edgegen.bundle import Provider, bundle_bytes, open_bundle, parse_bundle
from edgegen.errors import BundleError, Cancelled, EdgegenError, RuntimeFault, Status
from edgegen.program import interpret, normals
from edgegen.runtime import native
from edgegen.runtime.session import open_session
from edgegen.targets.onnxruntime import check_model, network_of
from edgegen.targets.onnxruntime.component import _checked_component
from edgegen.targets.onnxruntime.weights import outside
from tests.attacks.fused import FUSED, fused_bundle
from tests.attacks.networks import NETWORKS, QUANTIZED, with_network
from tests.tiny import cell_model, stream_bundle, tiny_model


@pytest.fixture(scope="module", params=["python", "native"])
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def session(tiny_bundle, runtime):
    with edgegen.load(tiny_bundle, threads=1, runtime=runtime) as opened:
        yield opened


def test_generate_is_the_program_over_the_network(session, tiny_bundle):
    import onnxruntime

    found = session.generate(seed=3, label=2, batch=2, program="ddim-3")
    network = onnxruntime.InferenceSession(tiny_model().SerializeToString())

    def net(x, t, label):
        return network.run(None, {"x": x, "t": np.full(len(x), t, np.float32), "label": label})[0]

    inputs = {"x_T": normals(3, 0, (2, 1, 8, 8)), "label": np.array([2, 2])}
    wanted = interpret(session.bundle.programs["ddim-3"], {"denoiser": net}, inputs, seed=3)["sample"]
    assert found.shape == (2, 1, 8, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_equal_seeds_are_equal_and_samples_do_not_depend_on_the_batch(session):
    a, b = session.generate(seed=5), session.generate(seed=5)
    assert a.tobytes() == b.tobytes()
    assert not np.array_equal(a, session.generate(seed=6))
    np.testing.assert_allclose(session.generate(seed=5, batch=3)[:1], a, atol=1e-6)


def test_conditions_default_broadcast_and_vary_per_sample(session):
    default = session.generate(seed=1)
    np.testing.assert_array_equal(default, session.generate(seed=1, label=1))
    np.testing.assert_array_equal(default, session.generate(seed=1, label=[1]))
    varied = session.generate(seed=1, batch=2, label=[0, 3])
    assert not np.allclose(varied[0], default[0])
    np.testing.assert_array_equal(session.generate(seed=1, batch=2, label=np.float32(2)), session.generate(seed=1, batch=2, label=[2, 2]))


def test_steps_pick_a_program_and_the_report_counts(session):
    session.generate(steps=2)
    assert session.report.program == "dpmpp_2m-2"
    assert dict(session.report.nfe) == {"denoiser": 4}
    session.generate()
    assert session.report.program == "dpmpp_2m-4" and session.report.nfe["denoiser"] == 8
    assert 0 < session.report.seconds["denoiser"] < session.report.total_seconds
    assert 0 < session.report.overhead < 1
    assert session.programs == ("dpmpp_2m-4", "dpmpp_2m-2", "ddim-3")


def test_noise_may_be_given(session):
    noise = normals(9, 0, (1, 1, 8, 8))
    np.testing.assert_array_equal(session.generate(seed=0, noise=noise), session.generate(seed=9))


def test_on_step_reports_and_cancels_and_the_session_goes_on(session):
    seen = []
    wanted = session.generate(seed=4, on_step=lambda done, total, x: seen.append((done, total, x.shape)))
    assert seen == [(i, 4, (1, 1, 8, 8)) for i in (1, 2, 3, 4)]
    with pytest.raises(Cancelled):
        session.generate(seed=4, on_step=lambda done, total, x: done < 2)
    np.testing.assert_array_equal(session.generate(seed=4), wanted)


S = Status


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (dict(lable=1), "no condition 'lable': did you mean 'label'", S.UNKNOWN_NAME),
        (dict(label=7), "label': 7 is out of range, from 0 to 3", S.OUT_OF_RANGE),
        (dict(label=-1), "out of range", S.OUT_OF_RANGE),
        (dict(label=1.5), "not whole", S.BAD_DTYPE),
        (dict(label="three"), "expected int64", S.BAD_DTYPE),
        (dict(label=object()), "expected int64", S.BAD_DTYPE),
        (dict(label=[1, 2]), "found shape", S.BAD_SHAPE),
        (dict(label=np.nan), "NaN or infinity", S.NONFINITE),
        (dict(steps=5), r"no program of 5 steps in this bundle; it has 4 \(dpmpp_2m-4\), 2", S.OUT_OF_RANGE),
        (dict(steps=0), "no program of 0 steps", S.OUT_OF_RANGE),
        (dict(program="ddim-4"), "did you mean 'ddim-3'", S.UNKNOWN_NAME),
        (dict(batch=0), "batch: expected a whole number in 1", S.OUT_OF_RANGE),
        (dict(batch=1.0), "batch", S.OUT_OF_RANGE),
        (dict(seed=-1), "expected a seed", S.OUT_OF_RANGE),
        (dict(seed=2**64), "expected a seed", S.OUT_OF_RANGE),
        (dict(noise=np.zeros((1, 8, 8), np.float32)), r"noise: expected float32\[1, 1, 8, 8\]", S.BAD_SHAPE),
        (dict(noise=np.zeros((1, 1, 8, 8), np.int64)), "found int64", S.BAD_SHAPE),
        (dict(noise=np.full((1, 1, 8, 8), np.nan)), "NaN", S.NONFINITE),
    ],
)
def test_bad_calls_say_what_was_expected_and_leave_the_session_well(session, arguments, message, code):
    with pytest.raises(EdgegenError, match=message) as e:
        session.generate(**arguments)
    assert e.value.code == code
    session.generate()


def test_a_null_label_is_allowed_where_the_recipe_names_one(session):
    session.generate(label=4)


def test_a_missing_condition_without_default_is_named(tiny_bundle, runtime):
    bundle = open_bundle(tiny_bundle)
    conditions = tuple(replace(c, default=None) for c in bundle.manifest.conditions)
    again = bundle_bytes(replace(bundle.manifest, conditions=conditions), {name: bundle.member(name) for name in bundle.table})
    with (
        open_session(parse_bundle(again), runtime=runtime) as opened,
        pytest.raises(RuntimeFault, match=r"condition 'label' is needed: .*from 0 to 3"),
    ):
        opened.generate()


def test_variants_by_name_and_golden_vectors(tiny_bundle, runtime):
    for variant in ("float32", "int8"):
        with edgegen.load(tiny_bundle, variant=variant, runtime=runtime) as opened:
            for _, _, distance, tolerance in opened.self_test():
                assert distance.rmse <= tolerance
    with pytest.raises(RuntimeFault, match="no variant 'int4'") as e:
        edgegen.load(tiny_bundle, variant="int4", runtime=runtime)
    assert e.value.code == Status.NO_VARIANT


def test_the_int8_variant_runs_in_integers(tiny_bundle, tmp_path):
    import onnxruntime

    bundle = open_bundle(tiny_bundle)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    (int8,) = [v for v in bundle.manifest.variants if v.name == "int8"]
    onnxruntime.InferenceSession(network_of(bundle, int8, "denoiser").SerializeToString(), options)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2 and "Conv" not in kinds


def opened_with(tiny_bundle, change, runtime="python"):
    return open_session(parse_bundle(with_network(tiny_bundle, change)), variant="float32", runtime=runtime)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_not_what_it_says_never_reaches_the_engine(tiny_bundle, name, monkeypatch):
    change, message = NETWORKS[name]
    monkeypatch.setattr("edgegen.targets.onnxruntime.component.open_engine", lambda *a: pytest.fail("the engine was called"))
    with pytest.raises(BundleError, match=re.escape(message)) as e:
        opened_with(tiny_bundle, change)
    assert e.value.code == Status.INCONSISTENT


@pytest.mark.parametrize("name", NETWORKS)
def test_nor_does_it_in_the_native_runtime(tiny_bundle, name):
    with pytest.raises(BundleError) as e:
        opened_with(tiny_bundle, NETWORKS[name][0], "native")
    assert e.value.code == Status.INCONSISTENT and "ONNX Runtime" not in str(e.value)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_program_that_is_not_what_it_says_never_reaches_the_engine(name, runtime, monkeypatch):
    data, message = FUSED[name]
    monkeypatch.setattr("edgegen.targets.onnxruntime.component.open_engine", lambda *a: pytest.fail("the engine was called"))
    with pytest.raises(BundleError) as e:
        open_session(parse_bundle(data), runtime=runtime)
    assert e.value.code == Status.INCONSISTENT and "ONNX Runtime" not in str(e.value)
    assert runtime == "native" or re.search(message, str(e.value))


def test_a_sound_fused_program_runs_in_every_runtime(runtime):
    with open_session(parse_bundle(fused_bundle()), runtime=runtime, threads=1) as session:
        noise = normals(7, 0, (1, 2, 4)) + normals(7, 3, (1, 2, 4))
        np.testing.assert_array_equal(session.generate(seed=7), noise)
        assert session.report.nfe == {"f": 1}
        with pytest.raises(EdgegenError, match="not an ONNX"):  # two samples go step by step, and that network is none
            session.generate(seed=7, batch=2)


def test_there_are_at_least_thirty_such_networks():
    assert len(NETWORKS) >= 30


def test_what_is_not_an_onnx_file_never_reaches_the_engine(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    members = {name: bundle.member(name) for name in bundle.table} | {"denoiser.float32.onnx": b"\xff" * 100}
    with pytest.raises(BundleError, match="not an ONNX file"):
        open_session(parse_bundle(bundle_bytes(bundle.manifest, members)), variant="float32")


def test_a_sound_matmul_of_few_bits_passes_the_checks(tiny_bundle):
    model = onnx.load_model_from_string(open_bundle(tiny_bundle).member("denoiser.float32.onnx"))
    QUANTIZED(model)
    bundle = open_bundle(tiny_bundle)
    place = {"denoiser.float32.weights": bundle.table["denoiser.float32.weights"].nbytes}
    check_model(model, bundle.manifest.components["denoiser"], "test", place)


def test_a_network_that_the_engine_refuses_is_a_backend_fault(tiny_bundle, runtime):
    with pytest.raises(RuntimeFault, match="component 'denoiser': ONNX Runtime.*NoSuchOp") as e:
        opened_with(tiny_bundle, lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOp"), runtime)
    assert e.value.code == Status.BACKEND_FAILED


def test_a_network_that_gives_nan_is_named(tiny_bundle, runtime):
    def poison(model):
        next(t for t in model.graph.initializer if t.name == "b1").raw_data = np.full(32, np.nan, np.float32).tobytes()

    with opened_with(tiny_bundle, poison, runtime) as opened, pytest.raises(RuntimeFault, match="NaN or infinity") as e:
        opened.generate()
    assert e.value.code == Status.NONFINITE


def test_threads_share_a_session(session):
    wanted = [session.generate(seed=s, label=s % 4).tobytes() for s in range(8)]
    faults = []

    def work(s):
        for _ in range(30):
            if session.generate(seed=s, label=s % 4).tobytes() != wanted[s]:
                faults.append(s)
        assert session.report.nfe["denoiser"] == 8

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults


def test_a_closed_session_and_an_early_report_are_errors(tiny_bundle, runtime):
    opened = edgegen.load(tiny_bundle, runtime=runtime)
    with pytest.raises(RuntimeFault, match="no report yet"):
        _ = opened.report
    opened.close()
    with pytest.raises(RuntimeFault, match="closed"):
        opened.generate()


def test_importing_edgegen_needs_numpy_only():
    code = (
        "import sys; before = set(sys.modules); import edgegen, edgegen.errors, edgegen.program, edgegen.solvers, edgegen.diffusion\n"
        "heavy = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'edgegen', 'numpy'}\n"
        "sys.exit(repr(heavy) if {m for m in heavy if not m.startswith('_')} else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("what", [dict(runtime="nativ"), dict(runtime="native", fused=True)])
def test_a_runtime_that_is_none_or_cannot_do_that_is_refused(tiny_bundle, what):
    with pytest.raises(RuntimeFault, match=r"did you mean 'native'|only the Python runtime makes fused programs"):
        edgegen.load(tiny_bundle, **what)


def test_without_libedgegen_the_fault_says_how_to_build_it(tiny_bundle, monkeypatch):
    monkeypatch.setattr(native, "__file__", "/nowhere/edgegen/runtime/native.py")
    monkeypatch.setattr(native, "_library", lambda: native.Library(native.find_library()))
    with pytest.raises(RuntimeFault, match="build it with `make native`") as e:
        edgegen.load(tiny_bundle, runtime="native")
    assert e.value.code == Status.BACKEND_MISSING


def test_an_exception_in_on_step_comes_through_and_the_session_goes_on(session):
    wanted = session.generate(seed=4)

    def broken(done, total, x):
        raise ZeroDivisionError(done)

    with pytest.raises(ZeroDivisionError, match="1"):
        session.generate(seed=4, on_step=broken)
    np.testing.assert_array_equal(session.generate(seed=4), wanted)


def test_both_runtimes_give_the_same_bytes(tiny_bundle):
    """The same engine, noise and arithmetic; programs with and without guidance and noise, and a batch."""
    for variant in ("float32", "int8"):
        with edgegen.load(tiny_bundle, variant=variant, threads=1) as a, edgegen.load(tiny_bundle, variant=variant, threads=1, runtime="native") as b:
            for name in a.programs:
                for seed, batch in ((0, 1), (2**64 - 1, 3)):
                    given = dict(seed=seed, batch=batch, program=name, label=np.arange(batch))
                    assert a.generate(**given).tobytes() == b.generate(**given).tobytes()


def test_without_onnx_runtime_the_fault_says_what_to_install(tiny_bundle):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\nimport edgegen\n"
        f"try:\n    edgegen.load({str(tiny_bundle)!r})\nexcept edgegen.errors.RuntimeFault as e:\n    print(int(e.code), e)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.startswith("400 ") and "pip install 'edgegen[cpu]'" in out


def test_equal_times_of_different_dtypes_are_filled_each_in_their_own():
    from edgegen.spec import Signature, TensorSpec
    from edgegen.targets.onnxruntime import OrtComponent

    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 1, 8, 8)), TensorSpec("t", "float32", ("batch",)), TensorSpec("label", "int64", ("batch",))),
        (TensorSpec("prediction", "float32", ("batch", 1, 8, 8)),),
    )
    with OrtComponent("tiny", tiny_model().SerializeToString(), signature) as component:
        for rows in (2, 3):
            feeds = component.feeds({"x": np.zeros((rows, 1, 8, 8), np.float32), "t": np.asarray(1.0, np.float32), "label": np.asarray(1, np.int64)})
            assert feeds["t"].dtype == np.float32 and feeds["label"].dtype == np.int64
            assert feeds["t"].tolist() == [1.0] * rows and feeds["label"].tolist() == [1] * rows


@pytest.fixture
def cell_file(tmp_path):
    path = tmp_path / "stream.edgegen"
    path.write_bytes(stream_bundle())
    return path


FRAMES = np.random.default_rng(8).standard_normal((5, 4)).astype(np.float32)


def test_a_stream_carries_its_states_and_begins_again(cell_file, runtime):
    """Against the cell in numpy."""
    a, b, c = (numpy_helper.to_array(t) for t in cell_model().graph.initializer)
    h, one, two, wanted = np.zeros(8), np.ones(4), np.full(4, 2.0), []
    for n, x in enumerate(FRAMES):
        h = np.tanh(x @ a + h @ b)
        wanted.append(h @ c + 0.5 * one + 0.25 * two + 0.125 * normals(11, 1, (4,), n))
        one, two = x, one
    with edgegen.load(cell_file, threads=1, runtime=runtime) as session, session.stream(seed=11) as stream:
        for _ in range(2):
            found = [stream.step(frame=x)[0] for x in FRAMES]
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
            stream.reset()
        assert session.report.program == "stream" and dict(session.report.nfe) == {"cell": 1}


def test_streams_do_not_touch_each_other_and_survive_errors(cell_file, runtime):
    with edgegen.load(cell_file, threads=1, runtime=runtime) as session:
        alone = session.stream(seed=1)
        wanted = [alone.step(frame=x) for x in FRAMES]
        first, second = session.stream(seed=1), session.stream(seed=2, batch=3)
        for x, expected in zip(FRAMES, wanted, strict=True):
            with pytest.raises(RuntimeFault, match="NaN"):
                first.step(frame=np.full(4, np.nan))
            assert second.step(frame=-x).shape == (3, 4)
            np.testing.assert_array_equal(first.step(frame=x), expected)


def test_programs_with_and_without_states_are_told_apart(cell_file, runtime):
    with edgegen.load(cell_file, threads=1, runtime=runtime) as session:
        assert session.generate(seed=0).shape == (1, 4)
        with pytest.raises(RuntimeFault, match=r"runs as a stream: session.stream\('stream'\)") as e:
            session.generate(program="stream")
        assert e.value.code == Status.BAD_STATE
        with pytest.raises(RuntimeFault, match="program 'once' has no states, so it cannot run as a stream; stream can"):
            session.stream("once")
    with edgegen.load(cell_file, threads=1, fused=True) as session, session.stream() as stream:
        stream.step(frame=FRAMES[0])


def test_a_stream_of_a_closed_session_is_an_error(cell_file, runtime):
    session = edgegen.load(cell_file, threads=1, runtime=runtime)
    stream = session.stream()
    session.close()
    with pytest.raises(RuntimeFault, match="closed"):
        stream.step(frame=FRAMES[0])


def with_variants(path, *variants):
    """The stream bundle with its variant repeated, each under a name and with providers."""
    bundle = open_bundle(path)
    made = tuple(replace(bundle.manifest.variants[0], name=name, providers=tuple(map(Provider, providers))) for name, providers in variants)
    return parse_bundle(bundle_bytes(replace(bundle.manifest, variants=made), {name: bundle.member(name) for name in bundle.table}))


def test_a_provider_that_is_not_here_is_named_and_the_next_variant_runs(cell_file, caplog, runtime):
    bundle = with_variants(cell_file, ("npu", ["QNN", "XNNPACK"]), ("cpu", []))
    with open_session(bundle, threads=1, runtime=runtime) as session:
        assert session.variant.name == "cpu"
    assert "variant npu: " in caplog.text and "execution provider QNN" in caplog.text and "taking cpu" in caplog.text
    with pytest.raises(RuntimeFault, match="execution provider QNN is needed, which ONNX Runtime .* here does not have; it has ") as e:
        open_session(bundle, variant="npu", runtime=runtime)
    assert e.value.code == Status.PROVIDER_MISSING
    with pytest.raises(RuntimeFault, match="no variant of this bundle runs here: npu: .*; tpu: ") as e:
        open_session(with_variants(cell_file, ("npu", ["QNN"]), ("tpu", ["TPU"])), runtime=runtime)
    assert e.value.code == Status.NO_VARIANT


def test_weights_outside_the_model_are_read_in_place_and_optimized_as_inside(tiny_bundle, tmp_path):
    """The same graph after the engine's optimizations, the same samples; and the bundle's bytes are what the engine reads."""
    import onnxruntime

    bundle = open_bundle(tiny_bundle)
    for variant in [v for v in bundle.manifest.variants if v.weights]:
        model, weights = _checked_component(bundle, variant, "denoiser")
        assert [len(w) for w in weights.values()] == [2304] and all(len(t.raw_data) < 1024 for t in model.graph.initializer)
        kinds = []
        for name, data, views in (
            ("in", network_of(bundle, variant, "denoiser").SerializeToString(), {}),
            ("out", model.SerializeToString(), outside(model, weights)),
        ):
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath, options.log_severity_level = str(tmp_path / name), 3
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(v) for v in views.values()]
            if views:
                options.add_external_initializers(list(views), values)
                for key, value in zip(views, values, strict=True):
                    options.add_initializer(key, value)
            onnxruntime.InferenceSession(data, options)
            kinds.append(sorted(n.op_type for n in onnx.load(tmp_path / name).graph.node))
        assert kinds[0] == kinds[1]
