"""One ONNX component open in ONNX Runtime: called by the interpreter with named arrays, safe to call from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from edgegen.bundle import Bundle, FusedEntry, Provider, Variant
from edgegen.errors import BundleError, RuntimeFault, Status
from edgegen.program.shapes import infer_shapes, noise_shapes
from edgegen.spec import MAX_TENSORS, Signature, TensorSpec
from edgegen.targets.component import Component
from edgegen.targets.onnxruntime.check import check_model, parse_model
from edgegen.targets.onnxruntime.weights import join_weights, outside

if TYPE_CHECKING:
    import onnx

__all__ = ["OrtComponent", "fused_network_of", "fused_signature", "network_of", "onnxruntime_version", "open_component", "open_engine", "open_fused"]

_construct = threading.Lock()
"""ONNX Runtime's registries race when two sessions are made at once (onnxruntime#27089)."""


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise RuntimeFault(
            "ONNX Runtime is not installed; install it with: pip install 'edgegen[cpu]'  (or 'edgegen[gpu]')", Status.BACKEND_MISSING
        ) from e
    return onnxruntime


def onnxruntime_version() -> str:
    """The version of ONNX Runtime. Raises RuntimeFault (BACKEND_MISSING) where it is not installed."""
    return str(_onnxruntime().__version__)


def _providers(onnxruntime: Any, wanted: Sequence[Provider], what: str) -> list[tuple[str, dict[str, str]]]:
    """The long names that ONNX Runtime has for providers, the CPU last. Raises RuntimeFault for one that this build of it lacks."""
    available = onnxruntime.get_available_providers()
    long = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    found = []
    for provider in wanted:
        if provider.name.lower() not in long:
            raise RuntimeFault(
                f"{what}: the execution provider {provider.name} is needed, which ONNX Runtime {onnxruntime.__version__} here does not have; "
                f"it has {', '.join(sorted(long.values()))}",
                Status.PROVIDER_MISSING,
            )
        found.append((long[provider.name.lower()], dict(provider.options)))
    return [*found, ("CPUExecutionProvider", {})]


def _line(error: Exception) -> str:
    """What ONNX Runtime says, on one line: it goes into a bundle's documents too."""
    return " ".join(str(error).split())


def open_engine(
    model: bytes, what: str, threads: int, weights: Mapping[str, npt.NDArray[Any]] | None = None, providers: Sequence[Provider] = ()
) -> Any:
    """An onnxruntime.InferenceSession of checked ONNX bytes. Raises RuntimeFault, which names `what`.

    weights: constants that lie outside the model, by name; read in place, so the caller keeps them. providers: before the CPU.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    chosen = _providers(onnxruntime, providers, what)
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)  # for the optimizer, and
        for name, value in zip(weights, values, strict=True):
            options.add_initializer(name, value)  # in place of the copy that it would make
    try:
        with _construct:
            session = onnxruntime.InferenceSession(model, options, providers=chosen)
    except Exception as e:  # ONNX Runtime's exceptions have no common public base
        raise RuntimeFault(f"{what}: ONNX Runtime {onnxruntime.__version__} cannot open it: {_line(e)}", Status.BACKEND_FAILED) from e
    absent = [name for name, _ in chosen if name not in session.get_providers()]
    if absent:  # it goes on without a provider that is there and cannot be loaded
        raise RuntimeFault(
            f"{what}: ONNX Runtime {onnxruntime.__version__} has {absent[0]} and cannot load it here; what it prints says which library is missing",
            Status.PROVIDER_MISSING,
        )
    return session


def _checked(bundle: Bundle, variant: Variant, member: str, signature: Signature, weights: Iterable[str]) -> tuple[onnx.ModelProto, dict[str, bytes]]:
    """The network in a member, checked, and the bytes of the members that may hold its weights."""
    model, data = parse_model(bundle.member(member), member), {name: bundle.member(name) for name in weights}
    check_model(model, signature, f"{bundle.origin}: member {member!r}", {name: len(value) for name, value in data.items()}, variant.engine)
    return model, data


def _checked_component(bundle: Bundle, variant: Variant, component: str) -> tuple[onnx.ModelProto, dict[str, bytes]]:
    weights = [variant.weights[component]] if component in variant.weights else []
    return _checked(bundle, variant, variant.components[component], bundle.manifest.components[component], weights)


def network_of(bundle: Bundle, variant: Variant, component: str) -> onnx.ModelProto:
    """A component's network as an ONNX model like any other, its weights inside. Raises BundleError (INCONSISTENT)."""
    model, weights = _checked_component(bundle, variant, component)
    join_weights(model, weights)
    return model


def fused_signature(bundle: Bundle, entry: FusedEntry) -> Signature:
    """What the network of a fused program takes and gives (FORMAT.md, section 3.2): the program's inputs, `draw.K` for each draw, `out.NAME`.

    Raises BundleError (INCONSISTENT) for a program that cannot be fused.
    """
    program, manifest = bundle.programs[entry.program], bundle.manifest
    inputs, components = manifest.inputs(program), manifest.tails()
    shapes = {name: shape for name, (_, shape) in inputs.items()}
    draws = {} if program.states else noise_shapes(program, shapes, components)
    made = [(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    made += [(f"draw.{draw}", "float32", shape) for draw, shape in draws.items()]
    outputs = [] if program.states else infer_shapes(program, shapes, components).items()
    given = [(f"out.{name}", "float32", shape) for name, shape in outputs]
    names = [name for name, _, _ in (*made, *given)]
    faults = {
        "has states": bool(program.states),
        "has an input that is named like a draw": len(set(names)) != len(names),
        f"has more than {MAX_TENSORS} inputs, draws and outputs": len(names) > MAX_TENSORS,
        "has a name that is too long": any(len(name) > 64 for name in names),
        "has a tensor of rank 6, which the batch makes 7": any(len(shape) > 5 for _, _, shape in (*made, *given)),
    }
    for what in (w for w, wrong in faults.items() if wrong):
        raise BundleError(f"{bundle.origin}: the fused program {entry.program!r} {what}", Status.INCONSISTENT)
    return Signature(*(tuple(TensorSpec(n, d, (entry.batch, *shape)) for n, d, shape in side) for side in (made, given)))


def fused_network_of(bundle: Bundle, variant: Variant, entry: FusedEntry) -> onnx.ModelProto:
    """The network of a fused program as an ONNX model like any other, its weights inside. Raises BundleError (INCONSISTENT)."""
    model, weights = _checked(bundle, variant, entry.member, fused_signature(bundle, entry), variant.weights.values())
    join_weights(model, weights)
    return model


def open_fused(bundle: Bundle, variant: Variant, entry: FusedEntry, *, threads: int = 0) -> OrtComponent:
    """A fused program of a bundle's variant in ONNX Runtime. Raises BundleError (INCONSISTENT) or RuntimeFault."""
    signature = fused_signature(bundle, entry)
    model, weights = _checked(bundle, variant, entry.member, signature, variant.weights.values())
    return OrtComponent(
        entry.program, bundle.member(entry.member), signature, threads=threads, weights=outside(model, weights), providers=variant.providers,
        what=f"fused program {entry.program!r}",
    )  # fmt: skip


def open_component(bundle: Bundle, variant: Variant, component: str, *, threads: int = 0) -> OrtComponent:
    """A component of a bundle's variant in ONNX Runtime. Raises BundleError (INCONSISTENT) or RuntimeFault."""
    model, weights = _checked_component(bundle, variant, component)
    return OrtComponent(
        component, bundle.member(variant.components[component]), bundle.manifest.components[component],
        threads=threads, weights=outside(model, weights), providers=variant.providers,
    )  # fmt: skip


class OrtComponent(Component):
    """A network in ONNX Runtime; a context manager. Calls may come from several threads at once.

    model: the ONNX bytes, checked beforehand. threads: of the engine, 0 for one per core. weights, providers: see `open_engine`. what: its name in
    errors.
    """

    def __init__(
        self, name: str, model: bytes, signature: Signature, *, threads: int = 0,
        weights: Mapping[str, npt.NDArray[Any]] | None = None, providers: Sequence[Provider] = (), what: str = "",
    ) -> None:  # fmt: skip
        super().__init__(name, signature)
        self._what = what or f"component {name!r}"
        self._session = open_engine(model, self._what, threads, weights, providers)
        self._weights = weights
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The named outputs for feeds that `feeds` prepared."""
        try:
            values = self._session.run(self._outputs, feeds)
        except Exception as e:  # ONNX Runtime's exceptions have no common public base
            raise RuntimeFault(f"{self._what} failed in ONNX Runtime: {_line(e)}", Status.BACKEND_FAILED) from e
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Release the engine's session."""
        self._session = self._weights = None
