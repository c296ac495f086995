"""Two networks on the same inputs, tensor by tensor: where a quantized, rewritten or compiled one parts from its reference.

Each side runs in a Polygraphy runner (ONNX Runtime, TensorRT). A tensor is compared by its name in the float network, with the value that the
network goes on with: see `matches`. Outputs are those of the networks as they are; the tensors between come from copies that keep them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, Provider, Variant, open_bundle
from edgegen.errors import EdgegenError, RuntimeFault, Status, nearest
from edgegen.program import Eval, Executable, Program, StreamState, initial_state, normals
from edgegen.spec import draw_condition

if TYPE_CHECKING:
    import onnx

    from edgegen.targets.component import Component

__all__ = [
    "Comparison", "Match", "Measure", "Network", "Row", "Side", "compare", "keep_tensors", "matches", "measure", "open_side", "read_inputs",
]  # fmt: skip

Array = npt.NDArray[Any]
Inputs = dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]
"""Name -> dtype and shape; None for a dimension of any size."""
Progress = Callable[[int, int], None]
"""progress(evaluations done, in all)"""

_EXPECTED = "expected FILE.edgegen, FILE.edgegen:VARIANT, FILE.onnx, or a TensorRT engine (.engine, .plan)"
_NARROW = ("_half", "_bf16")
"""What `edgegen.targets.tensorrt.lower_precision` puts behind the name of a tensor that it makes narrower."""


# --- the numbers


@dataclass(frozen=True, slots=True)
class Measure:
    """How far a tensor is from its reference.

    max_rel: max_abs over the reference's range (largest - smallest; its magnitude where all elements are equal). snr_db: 10 log10 of the
    reference's power over the difference's; inf where they are equal, -inf where only one is NaN or infinite, or the reference is 0.
    """

    max_abs: float
    max_rel: float
    snr_db: float


def measure(reference: Array, candidate: Array) -> Measure:
    """Compare arrays of equal shape, in float64. NaN equals NaN and infinity itself, as in the masks of attention; neither counts as power."""
    a, b = (np.atleast_1d(np.asarray(array, np.float64)) for array in (reference, candidate))
    finite = np.isfinite(a) & np.isfinite(b)
    difference = np.abs(np.subtract(b, a, where=finite, out=np.zeros(a.shape)))
    difference[~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))] = math.inf
    largest = float(difference.max(initial=0.0))
    if largest == 0.0:
        return Measure(0.0, 0.0, math.inf)
    known = a[np.isfinite(a)]
    if math.isinf(largest) or not known.any():
        return Measure(largest, math.inf, -math.inf)
    span = float(known.max() - known.min()) or float(abs(known[0]))
    # by the largest, so that squares of tiny and of huge numbers are neither 0 nor infinite
    peak = float(np.abs(known).max())
    power, noise = float(np.sum((known / peak) ** 2)), float(np.sum((difference / largest) ** 2))
    return Measure(largest, largest / span, 10.0 * math.log10(power / noise) + 20.0 * math.log10(peak / largest))


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor over all evaluations: each number is the worst; evaluation (from 1) and time are those of the lowest SNR.

    curve: (time, SNR) of each evaluation; time is None where a network takes none. node, operator, node_name: what computes it (-1 and
    "input" for an input; -1 and "" where no side says). counterpart: the tensor of B that was compared with A's.
    """

    component: str
    tensor: str
    counterpart: str
    node: int
    operator: str
    node_name: str
    output: bool
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    snr_db: float
    evaluation: int
    time: float | None
    curve: tuple[tuple[float | None, float], ...]

    @property
    def rmse(self) -> float:
        """The root mean square of the difference over that of the reference: 1e-3 is 60 dB."""
        return math.inf if self.snr_db < -6000.0 else float(10.0 ** (-self.snr_db / 20.0))

    def __str__(self) -> str:
        made = f" ({self.operator}, node {self.node})" if self.node >= 0 else f" ({self.operator})" if self.operator else ""
        at = f"at time {self.time:g}" if self.time is not None else f"in evaluation {self.evaluation}"
        return f"{self.tensor}{made}, {at}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite are the words "inf" and "-inf"."""
        values = {name: getattr(self, name) for name in self.__slots__} | {"shape": list(self.shape), "rmse": self.rmse}
        values["curve"] = [[time, _plain(snr)] for time, snr in self.curve]
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Comparison:
    """rows: in the order of A's graph, component by component. program: whose evaluations they are; "" for given or drawn inputs.

    unlike: tensors of one name and different shapes, which were left out.
    """

    rows: tuple[Row, ...]
    program: str
    evaluations: int
    unlike: tuple[str, ...] = ()

    @property
    def worst(self) -> Row:
        """The tensor of the lowest SNR, the first of several."""
        return min(self.rows, key=lambda row: row.snr_db)

    @property
    def worst_output(self) -> Row:
        """The output of the networks that agrees least: its `rmse` is what decides whether they agree."""
        return min((row for row in self.rows if row.output), key=lambda row: row.snr_db)

    def first_below(self, snr_db: float) -> Row | None:
        """The first tensor in the graph whose lowest SNR is below; None if there is none."""
        return next((row for row in self.rows if row.snr_db < snr_db), None)

    def lowest(self, count: int, snr_db: float) -> tuple[Row, ...]:
        """The `count` rows of the lowest SNR, all outputs and the first below `snr_db`, in graph order; 0 for every row."""
        lowest = sorted(range(len(self.rows)), key=lambda i: self.rows[i].snr_db)[: count or None]
        first = self.first_below(snr_db)
        return tuple(row for i, row in enumerate(self.rows) if row.output or row is first or i in lowest)


# --- the two sides


@dataclass(frozen=True, slots=True)
class Network:
    """A network and what runs it.

    model: as ONNX, weights inside; None for an engine file, whose bytes are `data`. engine: "onnxruntime", or "tensorrt-rtx" or "tensorrt",
    for which an engine is built of the model.
    """

    label: str
    model: onnx.ModelProto | None
    engine: str = "onnxruntime"
    providers: tuple[Provider, ...] = ()
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Side:
    """What was given as A or B. networks: by component; the one of a file has the name ""."""

    label: str
    networks: Mapping[str, Network]
    bundle: Bundle | None = None
    variant: Variant | None = None


def open_side(text: str, engine: str | None = None) -> Side:
    """Read FILE.edgegen, FILE.edgegen:VARIANT, FILE.onnx, or an engine file. engine: what runs it, in place of the variant's own.

    Raises BundleError (no such file, or what is in it), RuntimeFault (NO_VARIANT, UNKNOWN_NAME, PROVIDER_MISSING: TensorRT without a GPU).
    """
    path, variant = _split(text)
    kind = path.suffix.lower()
    if kind not in (".edgegen", ".onnx", ".engine", ".plan"):
        raise RuntimeFault(f"{text}: {_EXPECTED}", Status.BAD_ARGUMENT)
    if not path.is_file():
        raise RuntimeFault(f"{path}: no such file; {_EXPECTED}", Status.CANNOT_OPEN)
    if kind == ".edgegen":
        side = _bundle_side(text, path, variant)
    elif kind == ".onnx":
        side = Side(text, {"": Network(text, _read_onnx(path))})
    else:
        _check_gpu(text)
        side = Side(text, {"": Network(text, None, _installed_engine(), data=path.read_bytes())})
    if engine is not None:
        side = _with_engine(side, engine)
    if any(network.engine != "onnxruntime" for network in side.networks.values()):
        _check_gpu(side.label)
    return side


def _split(text: str) -> tuple[Path, str | None]:
    head, colon, tail = text.rpartition(":")
    if colon and head.lower().endswith(".edgegen") and not Path(text).exists():
        return Path(head), tail
    return Path(text), None


def _bundle_side(text: str, path: Path, name: str | None) -> Side:
    from edgegen.targets.onnxruntime import network_of

    bundle = open_bundle(path)
    variants = {v.name: v for v in bundle.manifest.variants}
    if name is not None and name not in variants:
        raise RuntimeFault(f"{path}: no variant {name!r} in this bundle: {nearest(name, variants)}", Status.NO_VARIANT)
    variant = bundle.manifest.variants[0] if name is None else variants[name]
    networks = {c: Network(f"{text}, component {c!r}", network_of(bundle, variant, c), variant.engine, variant.providers) for c in variant.components}
    return Side(text if name is not None else f"{text}:{variant.name}", networks, bundle, variant)


def _read_onnx(path: Path) -> onnx.ModelProto:
    from onnx.external_data_helper import load_external_data_for_model

    from edgegen.targets.onnxruntime import parse_model

    try:
        model = parse_model(path.read_bytes(), str(path))
        load_external_data_for_model(model, str(path.parent))
    except EdgegenError:
        raise
    except Exception as e:  # OSError, ValueError, onnx's ValidationError: the weights' file
        raise RuntimeFault(f"{path}: cannot be read: {e}", Status.CANNOT_OPEN) from e
    return model


def _with_engine(side: Side, engine: str) -> Side:
    from edgegen.targets.opening import ENGINES

    if engine not in ENGINES:
        raise RuntimeFault(f"no engine {engine!r}: {nearest(engine, ENGINES)}", Status.UNKNOWN_NAME)
    if any(network.model is None for network in side.networks.values()):
        raise RuntimeFault(f"{side.label} is an engine already; give its ONNX file to run it in {engine}", Status.BAD_ARGUMENT)
    networks = {name: replace(network, engine=engine, providers=()) for name, network in side.networks.items()}
    return replace(side, networks=networks)


def _check_gpu(label: str) -> None:
    from edgegen.targets.nvidia import nvidia_gpus

    if not nvidia_gpus():
        message = f"{label} runs in TensorRT, and there is no NVIDIA GPU here; run this command on the device that has one"
        raise RuntimeFault(message, Status.PROVIDER_MISSING)


def _installed_engine() -> str:
    """The TensorRT module that opens engine files: the first that is installed."""
    import importlib.util

    from edgegen.targets.tensorrt.module import MODULES

    for engine, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            return engine
    raise RuntimeFault("TensorRT is not installed; install it with: pip install 'edgegen[tensorrt]'  (or JetPack's)", Status.BACKEND_MISSING)


# --- which tensors are compared


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor that both sides have: its name, and the tensors that hold its value on each side. output: of both networks."""

    tensor: str
    a: str
    b: str
    node: int = -1
    operator: str = ""
    node_name: str = ""
    output: bool = False


def matches(a: onnx.ModelProto | Sequence[str], b: onnx.ModelProto | Sequence[str]) -> tuple[Match, ...]:
    """The tensors to compare, in A's order. Either side: its ONNX model, or the names of an engine's outputs.

    By name, for every output of a node, and every input that a side quantizes. Where a side quantizes tensor X and dequantizes it again
    (Q, DQ), the DQ's output is X's value there, since that is what its quantized nodes read, whatever its name; a narrower X is found as
    X_half or X_bf16. Left out are codes, constants, dequantized weights, and what is inside subgraphs. Where both sides quantize, a value
    counts once, under its shortest name.
    """
    values, outputs = (_values(a), _values(b)), set(_outputs(a)) & set(_outputs(b))
    makers, entries = _makers(b if isinstance(a, Sequence) else a), set(_entries(a))
    found: dict[tuple[str, str], Match] = {}
    for name in values[0]:
        if name not in values[1]:
            continue
        if values[0][name] == values[1][name] == name and name in entries:
            continue  # an input that neither quantizes
        pair = (name, name) if name in outputs else (values[0][name], values[1][name])
        node, operator, node_name = makers.get(name, (-1, "", ""))
        match = Match(name, *pair, node, operator, node_name, name in outputs)
        if pair not in found or (not found[pair].output and len(name) < len(found[pair].tensor)):
            found[pair] = match
    return tuple(sorted(found.values(), key=lambda m: m.node))


def _entries(graph: onnx.ModelProto | Sequence[str]) -> list[str]:
    """Names of the inputs; an engine's are not known here."""
    if isinstance(graph, Sequence):
        return []
    stored = {t.name for t in graph.graph.initializer}
    return [v.name for v in graph.graph.input if v.name not in stored]


def _outputs(graph: onnx.ModelProto | Sequence[str]) -> list[str]:
    return list(graph) if isinstance(graph, Sequence) else [o.name for o in graph.graph.output]


def _values(graph: onnx.ModelProto | Sequence[str]) -> dict[str, str]:
    """Name of a tensor -> the tensor that holds the value that the network goes on with."""
    if isinstance(graph, Sequence):
        return {name: name for name in graph}
    constants = {t.name for t in graph.graph.initializer}
    values = {name: name for name in _entries(graph)}
    codes: dict[str, str] = {}
    pairs: dict[str, str] = {}
    views: dict[str, str] = {}
    """What `edgegen.targets.onnxruntime.lowering.finish` reshapes between a Q and the value: codes, and what they are dequantized to."""
    for node in graph.graph.node:
        if node.op_type == "Reshape" and node.input[0] in codes:
            views[node.output[0]] = codes[node.input[0]]
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in views:
            views[node.output[0]] = views[node.input[0]]
            continue
        if node.op_type == "Reshape" and node.input[0] in views:
            pairs.setdefault(views[node.input[0]], node.output[0])
        if node.op_type == "QuantizeLinear":
            codes[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in codes:
            pairs.setdefault(codes[node.input[0]], node.output[0])
        made = () if node.op_type in ("Constant", "QuantizeLinear", "DynamicQuantizeLinear") else node.output
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            values.update((name, name) for name in made if name)
    for name in list(values):
        plain = next((name.removesuffix(suffix) for suffix in _NARROW if name.endswith(suffix)), name)
        values.setdefault(plain, name)
    return values | {name: value for name, value in pairs.items() if name in values}


def _makers(graph: onnx.ModelProto | Sequence[str]) -> dict[str, tuple[int, str, str]]:
    """Tensor -> index, operator and name of the node that computes it; a DQ's is the one that computed what was quantized."""
    makers = dict.fromkeys(_entries(graph), (-1, "input", ""))
    codes: dict[str, bool] = {}
    """Whether they are reshaped: then so is what they are dequantized to, until it is reshaped back."""
    views: set[str] = set()
    for index, node in enumerate(() if isinstance(graph, Sequence) else graph.graph.node):
        passes = node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in makers
        if node.op_type == "Reshape" and (node.input[0] in codes or node.input[0] in views):
            passes = True
            codes.update((name, True) for name in node.output if node.input[0] in codes)
        elif node.op_type == "QuantizeLinear":
            codes[node.output[0]] = False
        elif node.op_type == "DequantizeLinear" and codes.get(node.input[0]):
            views.update(node.output)
        made = makers[node.input[0]] if passes else (index, node.op_type, node.name)
        makers |= dict.fromkeys(node.output, made)
    return {plain: made for name, made in makers.items() for plain in (name, *(name.removesuffix(s) for s in _NARROW))} | makers


def keep_tensors(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a network that has these tensors as further outputs, with their types where they can be inferred (TensorRT wants them).

    Names of inputs and outputs are passed over.
    """
    import onnx

    kept = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in kept.graph.value_info}
    have = {v.name for v in (*kept.graph.input, *kept.graph.output)}
    extra = [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name not in have]
    kept.graph.output.extend(extra)
    return kept


# --- running


def _polygraphy() -> Any:
    """Polygraphy's logger. Raises RuntimeFault (BACKEND_MISSING) where Polygraphy is not installed."""
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError as e:
        raise RuntimeFault("Polygraphy is not installed; install it with: pip install 'edgegen[compare]'", Status.BACKEND_MISSING) from e
    return G_LOGGER


@contextlib.contextmanager
def _named(network: Network) -> Iterator[None]:
    """What a runner raises becomes a RuntimeFault that names the network."""
    try:
        yield
    except EdgegenError:
        raise
    except Exception as e:  # Polygraphy's and the engines' own, which have no common base
        hint = "" if network.model is not None else "; an engine runs on the GPU model and the version of TensorRT that it was built for"
        raise RuntimeFault(f"{network.label} failed in {network.engine}: {' '.join(str(e).split()).rstrip('.')}{hint}", Status.BACKEND_FAILED) from e


class _Running:
    """A network in a Polygraphy runner, opened at its first call; a context manager. keep: tensors that it gives beside its outputs."""

    def __init__(self, network: Network, keep: Sequence[str] = (), threads: int = 0) -> None:
        self.network = network
        self._keep, self._threads = keep, threads
        self._runners: dict[Any, Any] = {}

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Named outputs of named inputs, which are cast to the network's dtypes. Raises RuntimeFault."""
        with _named(self.network):
            runner = self._opened(feeds)
            types = runner.get_input_metadata(use_numpy_dtypes=False)
            given = {name: np.asarray(array, types[name].dtype.numpy(), order="C") for name, array in feeds.items()}
            return {name: np.array(value) for name, value in runner.infer(given).items() if isinstance(value, np.ndarray)}

    def _opened(self, feeds: Mapping[str, Array]) -> Any:
        """The runner; TensorRT's is built for the inputs' shapes."""
        built = self.network.model is not None and self.network.engine != "onnxruntime"
        key = tuple(sorted((name, array.shape) for name, array in feeds.items())) if built else ()
        if key not in self._runners:
            runner = self._made(feeds)
            runner.activate()
            self._runners[key] = runner
        return self._runners[key]

    def _made(self, feeds: Mapping[str, Array]) -> Any:
        network = self.network
        if network.model is None:
            return _trt_runner(network.data, network.engine)
        model = keep_tensors(network.model, self._keep) if self._keep else network.model
        if network.engine != "onnxruntime":
            return _trt_runner(_built(model, network, feeds), network.engine)
        from polygraphy.backend.onnxrt import OnnxrtRunner

        from edgegen.targets.onnxruntime import open_engine

        return OnnxrtRunner(open_engine(model.SerializeToString(), network.label, self._threads, providers=network.providers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for runner in self._runners.values():
            runner.deactivate()
        self._runners.clear()


def _built(model: onnx.ModelProto, network: Network, feeds: Mapping[str, Array]) -> bytes:
    """A TensorRT engine of a network for this machine's GPU and these shapes. NOT RUN SO FAR: no GPU was at hand."""
    from edgegen.targets.nvidia import nvidia_gpus
    from edgegen.targets.tensorrt import BuildOptions, build_engine

    loose = {name for name, (_, shape) in _inputs_of(network).items() if None in shape}
    profiles = {name: (array.shape,) * 3 for name, array in feeds.items() if name in loose}
    gpus = [gpu.compute_capability for gpu in nvidia_gpus() if gpu.compute_capability] if network.engine == "tensorrt-rtx" else []
    options = BuildOptions(engine=network.engine, capabilities=tuple(gpus[:1]), profiles=profiles)
    return build_engine(model.SerializeToString(), options, where=network.label).data


def _trt_runner(data: bytes, engine: str) -> Any:
    """Polygraphy's runner of an engine; see `Network`. It takes one of the two modules, for as long as the process lives."""
    from polygraphy import config

    config.USE_TENSORRT_RTX = engine == "tensorrt-rtx"  # read when polygraphy.backend.trt is imported
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(data))


def _inputs_of(network: Network) -> Inputs:
    if network.model is None:
        with _named(network), _trt_runner(network.data, network.engine) as runner:
            metadata = runner.get_input_metadata(use_numpy_dtypes=False)
            return {name: (np.dtype(m.dtype.numpy()), tuple(n if n >= 0 else None for n in m.shape)) for name, m in metadata.items()}
    from onnx import helper

    stored = {t.name for t in network.model.graph.initializer}
    kinds = {v.name: v.type.tensor_type for v in network.model.graph.input if v.name not in stored}
    return {
        name: (helper.tensor_dtype_to_np_dtype(kind.elem_type), tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))
        for name, kind in kinds.items()
    }


@dataclass(slots=True)
class _Book:
    """The rows so far."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    unlike: dict[str, None] = field(default_factory=dict)
    evaluations: int = 0

    def add(self, component: str, match: Match, a: Array, b: Array, time: float | None) -> None:
        """Count a tensor of the evaluation that runs. Raises RuntimeFault if an output's shapes differ."""
        if a.shape != b.shape:
            if match.output:
                message = f"output {match.tensor!r} is {a.dtype.name}{list(a.shape)} in A and {b.dtype.name}{list(b.shape)} in B"
                raise RuntimeFault(message, Status.BAD_SHAPE)
            self.unlike[match.tensor] = None
            return
        m, key = measure(a, b), (component, match.tensor)
        made = (match.b, match.node, match.operator, match.node_name, match.output, a.shape)
        row = Row(component, match.tensor, *made, m.max_abs, m.max_rel, m.snr_db, self.evaluations, time, ((time, m.snr_db),))
        before = self.rows.get(key)
        if before is not None:
            least = row if row.snr_db < before.snr_db else before
            row = replace(
                least, max_abs=max(m.max_abs, before.max_abs), max_rel=max(m.max_rel, before.max_rel), curve=before.curve + row.curve
            )  # fmt: skip
        self.rows[key] = row


class _Pair:
    """One component on both sides; a context manager."""

    def __init__(self, component: str, a: Network, b: Network, book: _Book, *, layers: bool, threads: int) -> None:
        self._component, self._book, self._layers, self._threads = component, book, layers, threads
        self._networks, self._whole = (a, b), (_Running(a, threads=threads), _Running(b, threads=threads))
        self._kept = self._whole
        self._matches: tuple[Match, ...] | None = None

    def evaluate(self, feeds: Mapping[str, Array], time: float | None) -> dict[str, Array]:
        """Run and compare both; returns A's outputs. The pair's first call finds what there is to compare."""
        self._book.evaluations += 1
        whole = self._whole[0](feeds), self._whole[1](feeds)
        if self._matches is None:
            self._match(whole)
        kept = whole if self._kept is self._whole else (self._kept[0](feeds), self._kept[1](feeds))
        for match in self._matches or ():
            a, b = whole if match.output else (dict(feeds) | kept[0], dict(feeds) | kept[1])
            if match.a in a and match.b in b:
                self._book.add(self._component, match, a[match.a], b[match.b], time)
        return whole[0]

    def _match(self, whole: tuple[dict[str, Array], dict[str, Array]]) -> None:
        graphs = [list(given) if n.model is None else n.model for n, given in zip(self._networks, whole, strict=True)]
        found = matches(*graphs)
        if not any(match.output for match in found):
            first, second = (", ".join(_outputs(graph)) for graph in graphs)
            raise RuntimeFault(f"A and B have no output in common: A gives {first}; B gives {second}", Status.BAD_SHAPE)
        inner = [match for match in found if not match.output] if self._layers else []
        self._matches = tuple(match for match in found if match.output or self._layers)
        if inner:
            self._kept = self._keeping(0, [match.a for match in inner]), self._keeping(1, [match.b for match in inner])

    def _keeping(self, side: int, names: Sequence[str]) -> _Running:
        """A side's network with these tensors as outputs too; an engine file gives them already."""
        network = self._networks[side]
        return self._whole[side] if network.model is None else _Running(network, names, self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for running in (*self._whole, *self._kept):
            running.__exit__(kind, value, trace)


# --- the inputs


def read_inputs(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file, by name. Raises RuntimeFault (CANNOT_OPEN)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as e:  # TypeError: an .npy file
        raise RuntimeFault(f"{path}: expected an .npz file with an array for each input: {e}", Status.CANNOT_OPEN) from e


def _shape(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}]"


def _check_inputs(given: Mapping[str, Array], expected: Inputs) -> None:
    """Raise RuntimeFault unless the arrays are those that a network takes."""
    for name in given:
        if name not in expected:
            raise RuntimeFault(f"inputs: the network has no input {name!r}: {nearest(name, expected)}", Status.UNKNOWN_NAME)
    for name, (dtype, shape) in expected.items():
        if name not in given:
            raise RuntimeFault(f"inputs: holds no {name!r}, which is {dtype}{_shape(shape)}", Status.UNKNOWN_NAME)
        array = given[name]
        if not _fits(shape, array.shape):
            raise RuntimeFault(f"inputs: {name!r} is {array.dtype}{_shape(array.shape)}, expected {dtype}{_shape(shape)}", Status.BAD_SHAPE)
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise RuntimeFault(f"inputs: {name!r} is {array.dtype}{_shape(array.shape)}, expected {dtype}{_shape(shape)}", Status.BAD_DTYPE)


def _fits(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    return len(a) == len(b) and all(m == n or m is None or n is None for m, n in zip(a, b, strict=True))


def _check_signatures(a: Network, b: Network) -> None:
    """Raise RuntimeFault (BAD_SHAPE) unless two networks take the same inputs."""
    first, second = _inputs_of(a), _inputs_of(b)
    if set(first) != set(second):
        message = f"A and B take different inputs: {a.label} takes {', '.join(first)}; {b.label} takes {', '.join(second)}"
        raise RuntimeFault(message, Status.BAD_SHAPE)
    for name, (dtype, shape) in first.items():
        other, found = second[name]
        if not _fits(shape, found) or (dtype.kind == "f") != (other.kind == "f"):
            message = f"input {name!r} is {dtype}{_shape(shape)} in {a.label} and {other}{_shape(found)} in {b.label}"
            raise RuntimeFault(message, Status.BAD_SHAPE)


def _pairs(a: Side, b: Side) -> dict[str, tuple[Network, Network]]:
    """The networks to compare, by component. Raises RuntimeFault where a component has no partner."""
    if a.bundle is not None and b.bundle is not None:
        for name in a.networks:
            if name not in b.networks:
                raise RuntimeFault(f"{b.label} has no component {name!r}: {nearest(name, b.networks)}", Status.UNKNOWN_NAME)
        return {name: (network, b.networks[name]) for name, network in a.networks.items()}
    whole, file = (a, b) if a.bundle is not None else (b, a)
    names = list(whole.networks)
    if len(names) > 1:  # the component that takes what the file takes
        wanted = set(_inputs_of(file.networks[""]))
        names = [name for name in names if set(_inputs_of(whole.networks[name])) == wanted]
        if len(names) != 1:
            message = f"{file.label} takes {', '.join(sorted(wanted))}; so do {len(names)} components of {whole.label}, expected one"
            raise RuntimeFault(message, Status.BAD_SHAPE)
    return {names[0]: (a.networks.get(names[0]) or a.networks[""], b.networks.get(names[0]) or b.networks[""])}


def _rows_of(model: onnx.ModelProto | None, name: str) -> int:
    """How many rows the constant has that an input picks from by a Gather; 1 if none does."""
    if model is None:
        return 1
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == name and sizes.get(node.input[0]):
            return int(sizes[node.input[0]][next((a.i for a in node.attribute if a.name == "axis"), 0)])
    return 1


def _drawn(network: Network, seed: int, batch: int) -> dict[str, Array]:
    """Normals for floats; for integers rows of the table that they pick from, else 0; False. batch: first dimensions of any size."""
    rng, arrays = np.random.default_rng(seed), {}
    for draw, (name, (dtype, shape)) in enumerate(_inputs_of(network).items()):
        sizes = tuple((1 if axis else batch) if n is None else n for axis, n in enumerate(shape))
        if dtype.kind == "f":
            arrays[name] = normals(seed, draw, sizes).astype(dtype)
        else:
            arrays[name] = rng.integers(0, _rows_of(network.model, name), sizes).astype(dtype)
    return arrays


def _watched(pair: _Pair, filler: Component, step: Callable[[], None]) -> Callable[..., Mapping[str, Array]]:
    """What the interpreter calls in a component's place: compares both sides and goes on with A's outputs."""

    def evaluate(**arrays: Array) -> Mapping[str, Array]:
        time = next((float(array) for array in arrays.values() if array.ndim == 0), None)
        outputs = pair.evaluate(filler.feeds(arrays), time)
        step()
        return outputs

    return evaluate


def _program_of(side: Side, name: str | None) -> Program:
    assert side.bundle is not None
    name = name or side.bundle.manifest.programs[0].name
    if name not in side.bundle.programs:
        raise RuntimeFault(f"no program {name!r} in {side.label}: {nearest(name, side.bundle.programs)}", Status.UNKNOWN_NAME)
    return side.bundle.programs[name]


def _run_program(side: Side, program: Program, pairs: Mapping[str, _Pair], seed: int, batch: int, threads: int, progress: Progress | None) -> None:
    """Run a bundle's program with the first network of each pair, on conditions drawn from their ranges."""
    from edgegen.targets.component import Component
    from edgegen.targets.opening import open_component

    assert side.bundle is not None and side.variant is not None
    manifest, rng = side.bundle.manifest, np.random.default_rng(seed)
    drawn = {c.name: draw_condition(c, batch, rng) for c in manifest.conditions}
    conditions = {i.name: drawn[i.name] for i in program.inputs if i.kind == "condition"}
    inputs = conditions | initial_state(program, normals(seed, 0, (batch, *manifest.sample.shape)))
    total, done = sum(isinstance(i, Eval) for i in program.instructions), itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), total)

    with contextlib.ExitStack() as stack:
        networks: dict[str, Any] = {}
        for name in program.nfe:
            if name in pairs:
                networks[name] = _watched(pairs[name], Component(name, manifest.components[name]), step)
            else:
                networks[name] = stack.enter_context(open_component(side.bundle, side.variant, name, threads=threads))
        Executable(program).run(networks, inputs, seed=seed, stream=StreamState() if program.states else None, rows=batch)


def _run_once(pairs: Mapping[str, _Pair], networks: Mapping[str, tuple[Network, Network]], given: Mapping[str, Array]) -> None:
    """One evaluation of the component that takes the given inputs."""
    taken = {name: _inputs_of(a) for name, (a, _) in networks.items()}
    name = next((n for n, inputs in taken.items() if set(inputs) == set(given)), next(iter(taken)))
    _check_inputs(given, taken[name])
    pairs[name].evaluate({n: np.asarray(array).astype(taken[name][n][0]) for n, array in given.items()}, None)


def compare(
    a: Side, b: Side, *, program: str | None = None, seed: int = 0, batch: int = 1, inputs: Mapping[str, Array] | None = None, layers: bool = True,
    threads: int = 0, progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Compare two sides on every evaluation of a program, or on one where neither is a bundle or `inputs` are given.

    program: of A's bundle, or of B's where A is a file; None takes the first. A's networks run it, and both sides get the inputs of each
    evaluation. seed: of its noise, its conditions (uniform over their ranges) or the drawn inputs. batch: samples. inputs: by name. layers:
    the tensors between as well as the outputs. threads: of ONNX Runtime, 0 for one per core.
    Raises RuntimeFault: Polygraphy or an engine is not here (BACKEND_MISSING, PROVIDER_MISSING), the sides take different inputs or have no
    output in common (BAD_SHAPE), or a network fails.
    """
    logger = _polygraphy()
    source = next((side for side in (a, b) if side.bundle is not None), None)
    if program is not None and (source is None or inputs is not None):
        raise RuntimeFault("a program is of a bundle, and takes no inputs from a file", Status.BAD_ARGUMENT)
    running = None if source is None or inputs is not None else _program_of(source, program)
    book = _Book()
    with contextlib.ExitStack() as stack:
        stack.enter_context(logger.verbosity(logger.CRITICAL + 1))  # it prints what it then raises
        networks = _pairs(a, b)
        for pair in networks.values():
            _check_signatures(*pair)
        pairs = {name: stack.enter_context(_Pair(name, *pair, book, layers=layers, threads=threads)) for name, pair in networks.items()}
        if running is not None and source is not None:
            _run_program(source, running, pairs, seed, batch, threads, progress)
        else:
            _run_once(pairs, networks, _drawn(networks[""][0], seed, batch) if inputs is None else inputs)
    rows = sorted(book.rows.values(), key=lambda row: row.node)
    rows.sort(key=lambda row: list(networks).index(row.component))
    return Comparison(tuple(rows), "" if running is None else running.name, book.evaluations, tuple(book.unlike))
