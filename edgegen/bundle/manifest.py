"""The manifest: what the bundle holds and how its parts belong together. Canonical JSON (runtimes/FORMAT.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgegen.bundle.layout import FORMAT
from edgegen.canonical import from_hex, to_hex
from edgegen.errors import BundleError, Status
from edgegen.spec import MAX_TENSORS, MAX_TEXT, ConditionSpec, SampleSpec, Signature, TensorSpec, check_count, check_name, keys

if TYPE_CHECKING:
    from edgegen.program import Program

__all__ = ["FusedEntry", "Golden", "Manifest", "ProgramEntry", "Provider", "Variant"]

MOST = {
    "conditions": 64, "components": 64, "programs": 256, "variants": 64, "documents": 64, "golden": 256, "fused": 256, "providers": 16, "options": 64,
}  # fmt: skip
"""How many entries a list of the manifest may have: what a reader holds in memory is bounded."""


@dataclass(frozen=True, slots=True)
class Golden:
    """A known answer: `program` on seed 0, batch 1 and default conditions gives the float32 tensor in `member`, within RMSE `tolerance`."""

    program: str
    member: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider of ONNX Runtime by its short name (CUDA, XNNPACK, QNN, ...), and its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FusedEntry:
    """`program` as one network for `batch` samples, in `member`: faster than its steps where it was measured (FORMAT.md, section 3.2)."""

    program: str
    batch: int
    member: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled choice: for each component the member that holds its network, and, where it has large constants, the one that holds them.

    engine: "onnxruntime". providers: in order of preference, before the CPU, which is always the last. fused: programs as one network each,
    which keep their large constants in `weights`. threads: what was fastest where it was measured; 0 for one per core.
    """

    name: str
    engine: str
    components: Mapping[str, str]
    golden: tuple[Golden, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    providers: tuple[Provider, ...] = ()
    fused: tuple[FusedEntry, ...] = ()
    threads: int = 0

    def members(self) -> set[str]:
        """The names of the members that it refers to."""
        return {*self.components.values(), *self.weights.values(), *(g.member for g in self.golden), *(f.member for f in self.fused)}


@dataclass(frozen=True, slots=True)
class ProgramEntry:
    """A program's name, its step count, and the member that holds it."""

    name: str
    steps: int
    member: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything but the bytes. variants and programs: the first of each is the default.

    documents: what else is inside, such as recipe, report, measured -> member.
    """

    name: str
    summary: str
    licence: str
    producer: str
    trusted_pickle: bool
    sample: SampleSpec
    conditions: tuple[ConditionSpec, ...]
    components: Mapping[str, Signature]
    programs: tuple[ProgramEntry, ...]
    variants: tuple[Variant, ...]
    documents: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the member table that the writer adds."""
        return {
            "format": FORMAT,
            "name": self.name,
            "summary": self.summary,
            "licence": self.licence,
            "producer": self.producer,
            "trusted_pickle": int(self.trusted_pickle),
            "sample": self.sample.to_json(),
            "conditions": [c.to_json() for c in self.conditions],
            "components": {name: s.to_json() for name, s in self.components.items()},
            "programs": [{"name": p.name, "steps": p.steps, "member": p.member} for p in self.programs],
            "variants": [
                {
                    "name": v.name,
                    "engine": v.engine,
                    "providers": [{"name": p.name, "options": dict(p.options)} for p in v.providers],
                    "components": dict(v.components),
                    "weights": dict(v.weights),
                    "golden": [{"program": g.program, "member": g.member, "tolerance": to_hex(g.tolerance)} for g in v.golden],
                    "fused": [{"program": f.program, "batch": f.batch, "member": f.member} for f in v.fused],
                    "threads": v.threads,
                }
                for v in self.variants
            ],
            "documents": dict(self.documents),
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The checked inverse of `to_json`. Raises BundleError (BAD_MANIFEST, BAD_VERSION, LIMIT or INCONSISTENT)."""
        value = keys(
            value, "manifest",
            {"format": str, "name": str, "summary": str, "licence": str, "producer": str, "trusted_pickle": int, "sample": dict,
             "conditions": list, "components": dict, "programs": list, "variants": list, "documents": dict},
        )  # fmt: skip
        if value["format"] != FORMAT:
            raise BundleError(f"manifest: format {value['format']!r}, the header says {FORMAT}", Status.BAD_VERSION)
        for key in ("name", "summary", "licence", "producer"):
            check_count(len(value[key].encode()), MAX_TEXT, f"manifest: bytes of {key!r}")
        for key in ("conditions", "components", "programs", "variants", "documents"):
            check_count(len(value[key]), MOST[key], f"manifest: {key}")
        for key in ("components", "documents"):
            for name in value[key]:
                check_name(name, key)
        manifest = cls(
            value["name"], value["summary"], value["licence"], value["producer"], bool(value["trusted_pickle"]),
            SampleSpec.from_json(value["sample"], "sample"),
            tuple(ConditionSpec.from_json(c, f"conditions[{i}]") for i, c in enumerate(value["conditions"])),
            _signatures(value["components"]),
            tuple(_program(p, f"programs[{i}]") for i, p in enumerate(value["programs"])),
            tuple(_variant(v, f"variants[{i}]") for i, v in enumerate(value["variants"])),
            _strings(value["documents"], "documents"),
        )  # fmt: skip
        manifest._check(value["trusted_pickle"])
        return manifest

    def inputs(self, program: Program) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(dtype, shape without the batch) of a program's inputs, whose conditions are the manifest's."""
        conditions = {c.name: (c.dtype, c.shape) for c in self.conditions}
        return {i.name: conditions[i.name] if i.kind == "condition" else ("float32", self.sample.shape) for i in program.inputs}

    def tails(self) -> dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]:
        """Shapes without the batch of each component's inputs and outputs."""
        return {name: (_tails(s.inputs), _tails(s.outputs)) for name, s in self.components.items()}

    def members(self) -> set[str]:
        """The names of all members that the manifest refers to."""
        named = {p.member for p in self.programs} | set(self.documents.values())
        for v in self.variants:
            named |= v.members()
        return named

    def _check(self, trusted_pickle: int) -> None:
        """What must agree between the parts."""
        programs = {p.name for p in self.programs}
        faults = [
            (not self.programs or len(programs) != len(self.programs), "programs: expected at least one, each name once"),
            (not self.variants or len({v.name for v in self.variants}) != len(self.variants), "variants: expected at least one, each name once"),
            (len({c.name for c in self.conditions}) != len(self.conditions), "conditions: a name appears twice"),
            (len({p.member for p in self.programs}) != len(self.programs), "programs: two share a member"),
            (any(not 1 <= p.steps <= 65_536 for p in self.programs), "programs: steps must be in 1 .. 65536"),
            (trusted_pickle not in (0, 1), "trusted_pickle is neither 0 nor 1"),
        ]
        for v in self.variants:
            faults.append((set(v.components) != set(self.components), f"variant {v.name!r} does not hold exactly the components"))
            faults.append((not set(v.weights) <= set(v.components), f"variant {v.name!r} has weights of an unknown component"))
            faults.append((any(g.program not in programs for g in v.golden), f"variant {v.name!r} has a golden vector of an unknown program"))
            faults.append((any(g.tolerance < 0 for g in v.golden), f"variant {v.name!r} has a negative tolerance"))
            faults.append((any(f.program not in programs for f in v.fused), f"variant {v.name!r} fuses an unknown program"))
            faults.append((any(not 1 <= f.batch <= 65_536 for f in v.fused), f"variant {v.name!r} has a fused batch outside 1 .. 65536"))
            fused = {(f.program, f.batch) for f in v.fused}
            faults.append((len(fused) != len(v.fused), f"variant {v.name!r} fuses a program twice for one batch"))
            faults.append((not 0 <= v.threads <= 1024, f"variant {v.name!r}: threads must be in 0 .. 1024"))
        for wrong, message in faults:
            if wrong:
                raise BundleError(f"manifest: {message}", Status.INCONSISTENT)


def _tails(tensors: Iterable[TensorSpec]) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(n for n in t.shape if isinstance(n, int)) for t in tensors}


def _strings(value: dict[str, Any], where: str) -> dict[str, str]:
    if not all(isinstance(v, str) for v in value.values()):
        raise BundleError(f"{where}: expected strings", Status.BAD_MANIFEST)
    return dict(value)


def _signatures(value: dict[str, Any]) -> dict[str, Signature]:
    signatures: dict[str, Signature] = {}
    left = MAX_TENSORS
    for name, item in value.items():
        signatures[name] = Signature.from_json(item, f"components.{name}", left)
        left -= len(signatures[name].inputs) + len(signatures[name].outputs)
    return signatures


def _program(value: Any, where: str) -> ProgramEntry:
    value = keys(value, where, {"name": str, "steps": int, "member": str})
    check_name(value["name"], where)
    return ProgramEntry(value["name"], value["steps"], value["member"])


def _variant(value: Any, where: str) -> Variant:
    lists = ("providers", "golden", "fused")
    kinds: dict[str, type] = {"name": str, "engine": str, "components": dict, "weights": dict, "threads": int} | dict.fromkeys(lists, list)
    value = keys(value, where, kinds)
    for key in ("name", "engine"):
        check_name(value[key], where)
    for key in lists:
        check_count(len(value[key]), MOST[key], f"{where}.{key}")
    providers, golden, fused = [], [], []
    for i, item in enumerate(value["providers"]):
        item = keys(item, f"{where}.providers[{i}]", {"name": str, "options": dict})
        check_name(item["name"], f"{where}.providers[{i}]")
        check_count(len(item["options"]), MOST["options"], f"{where}.providers[{i}].options")
        providers.append(Provider(item["name"], _strings(item["options"], f"{where}.providers[{i}].options")))
    components, weights = (_strings(value[key], f"{where}.{key}") for key in ("components", "weights"))
    for i, item in enumerate(value["golden"]):
        item = keys(item, f"{where}.golden[{i}]", {"program": str, "member": str, "tolerance": str})
        golden.append(Golden(item["program"], item["member"], from_hex(item["tolerance"])))
    for i, item in enumerate(value["fused"]):
        item = keys(item, f"{where}.fused[{i}]", {"program": str, "batch": int, "member": str})
        fused.append(FusedEntry(item["program"], item["batch"], item["member"]))
    return Variant(value["name"], value["engine"], components, tuple(golden), weights, tuple(providers), tuple(fused), value["threads"])
