"""`edgegen tune`: a bundle's candidates timed on this device, the fastest first in the bundle that comes out.

Candidates are variant x execution provider x fused or stepwise x threads. One that cannot be opened here, or whose golden vector differs here,
is not timed; if the bundle held it, it stays there behind those that were, and the document `measured` says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgegen import canonical
from edgegen.bundle import Bundle, Provider, Variant, bundle_bytes, open_bundle
from edgegen.errors import EdgegenError, RuntimeFault, Status
from edgegen.fusing import with_fused
from edgegen.runtime.session import open_session
from edgegen.spec import check_name
from edgegen.targets.choose import Candidate, candidates_of, measured_document, settle, thread_counts, time_candidates
from edgegen.targets.opening import ENGINES
from edgegen.timing import machine

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The bundle's new bytes, milliseconds per candidate, and why others were not measured: variant -> reason."""

    data: bytes
    times: Mapping[Candidate, float]
    unmeasured: Mapping[str, str]


def tune(
    path: Path, *, providers: Sequence[str] = (), threads: Sequence[int] = (), rounds: int = 9, runs: int = 3,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tuned:  # fmt: skip
    """Time a bundle's candidates on this device. providers: execution providers to try beside those of the bundle. threads: counts to try.

    Raises BundleError, RuntimeFault (NO_VARIANT) if nothing of the bundle runs here, BuildError if a candidate fails while it is timed.
    """
    bundle = open_bundle(path)
    say = progress or (lambda what, done, total: None)
    offered = _offered(bundle, providers)
    ready: list[Variant] = []
    unmeasured: dict[str, str] = {}
    members: dict[str, bytes] = {}
    trial = replace(bundle, manifest=replace(bundle.manifest, variants=offered))
    for i, variant in enumerate(offered):
        say(f"trying {variant.name}", i, len(offered))
        reason = _reason_against(trial, variant)
        if reason:
            unmeasured[variant.name] = reason
            continue
        try:
            variant, added = with_fused(trial, variant)
            members |= added
        except EdgegenError as e:
            unmeasured[variant.name] = f"fused: {e}"
        ready.append(variant)
    if not ready:
        raise RuntimeFault(f"no variant of this bundle runs here: {'; '.join(f'{n}: {r}' for n, r in unmeasured.items())}", Status.NO_VARIANT)
    program = bundle.manifest.programs[0].name
    with tempfile.TemporaryDirectory(prefix="edgegen-tune-") as folder:
        candidates_path = Path(folder) / "candidates.edgegen"
        candidates_path.write_bytes(_bundle(bundle, ready, members, {}))
        candidates = candidates_of(ready, program, threads or thread_counts())
        what = f"timing {len(candidates)} candidates"
        say(what, 0, rounds)
        times = time_candidates(candidates_path, candidates, program, rounds=rounds, runs=runs, on_round=lambda i: say(what, i, rounds))
    left = [v for v in bundle.manifest.variants if v.name not in {r.name for r in ready}]
    document = measured_document(program, machine(), times) | {"unmeasured": unmeasured}
    return Tuned(_bundle(bundle, (*settle(ready, times), *left), members, {"measured": document}), times, unmeasured)


def _offered(bundle: Bundle, providers: Sequence[str]) -> tuple[Variant, ...]:
    """The bundle's variants, and each with every provider more: those are named `VARIANT-provider`."""
    variants = [replace(v, fused=()) for v in bundle.manifest.variants]
    known = {v.name for v in variants}
    for variant in [v for v in variants if v.engine == "onnxruntime" and not v.providers]:
        for provider in providers:
            made = replace(variant, name=f"{variant.name}-{provider.lower()}", providers=(Provider(provider),))
            check_name(made.name, "the variant of that provider,")
            if made.name not in known:
                variants.append(made)
    return tuple(variants)


def _reason_against(bundle: Bundle, variant: Variant) -> str:
    """Why a variant cannot be timed here; empty if it can."""
    try:
        if variant.engine not in ENGINES:
            return f"is for {variant.engine}, which this runtime cannot run"
        with open_session(bundle, variant=variant.name, fused=False) as session:
            wrong = [(program, d.rmse, tolerance) for program, _, d, tolerance in session.self_test() if not d.rmse <= tolerance]
    except EdgegenError as e:
        return str(e)
    return "; ".join(f"{program} differs from its golden vector by {rmse:.2e}, {tolerance:.0e} is allowed" for program, rmse, tolerance in wrong)


def _bundle(bundle: Bundle, variants: Sequence[Variant], members: Mapping[str, bytes], documents: Mapping[str, Any]) -> bytes:
    """A bundle of these variants: programs and documents as they were, but for `documents`."""
    names = {**bundle.manifest.documents, **{name: f"{name}.json" for name in documents}}
    manifest = replace(bundle.manifest, variants=tuple(variants), documents=names)
    held = {name: bundle.member(name) for name in bundle.table} | dict(members)
    held |= {f"{name}.json": canonical.encode(value) for name, value in documents.items()}
    return bundle_bytes(manifest, {name: held[name] for name in manifest.members()})
