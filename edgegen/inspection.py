"""What `edgegen inspect` and `bench` say: facts as plain values, and their tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.bundle import Bundle
from edgegen.canonical import from_hex
from edgegen.spec import ConditionSpec
from edgegen.targets.choose import Candidate

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["bench_variant", "describe", "facts"]


def _condition(spec: ConditionSpec) -> dict[str, Any]:
    numbers = {k: getattr(spec, k) for k in ("minimum", "maximum", "default", "null")}
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "summary": spec.summary} | {
        k: v for k, v in numbers.items() if v is not None
    }


def facts(bundle: Bundle) -> dict[str, Any]:
    """Everything that inspect shows, for scripts."""
    m = bundle.manifest
    return {
        "name": m.name,
        "summary": m.summary,
        "licence": m.licence,
        "producer": m.producer,
        "trusted_pickle": m.trusted_pickle,
        "bytes": len(bundle.data),
        "sample": {"kind": m.sample.kind, "shape": list(m.sample.shape), "low": m.sample.low, "high": m.sample.high},
        "conditions": [_condition(c) for c in m.conditions],
        "components": {name: {"inputs": [str(t) for t in s.inputs], "outputs": [str(t) for t in s.outputs]} for name, s in m.components.items()},
        "programs": [
            {
                "name": p.name, "steps": p.steps, "nfe": dict(bundle.programs[p.name].nfe), "instructions": len(bundle.programs[p.name].instructions),
                "times": [round(s.time, 6) for s in bundle.programs[p.name].steps],
            }
            for p in m.programs
        ],
        "variants": [
            {
                "name": v.name, "engine": v.engine, "providers": [p.name for p in v.providers], "golden": len(v.golden),
                "bytes": sum(bundle.table[x].nbytes for x in {*v.components.values(), *v.weights.values(), *(f.member for f in v.fused)}),
                "fused": [{"program": f.program, "batch": f.batch} for f in v.fused], "threads": v.threads,
            }
            for v in m.variants
        ],
        "report": bundle.document("report"),
        "measured": bundle.document("measured"),
        "members": [{"name": name, "bytes": entry.nbytes, "sha256": entry.sha256} for name, entry in bundle.table.items()],
    }  # fmt: skip


def _measured(measured: Any, console: Console) -> None:
    """The candidates' times, the fastest first, and what was not measured. A document of another form, which nobody checked, has no table."""
    from rich.table import Table

    try:
        rows = sorted((float(r["milliseconds"]), Candidate(r["variant"], bool(r["fused"]), r["threads"])) for r in measured["candidates"])
        title = f"measured on {measured['machine']}: {measured['program']}, one sample"
    except (KeyError, TypeError, ValueError):
        return
    table = Table("candidate", "ms", title=title, title_justify="left")
    for milliseconds, candidate in rows:
        table.add_row(str(candidate), f"{milliseconds:.3f}")
    console.print(table)
    for name, reason in measured.get("unmeasured", {}).items():
        console.print(f"{name}: not measured: {reason}", highlight=False)


def describe(bundle: Bundle, console: Console) -> None:
    """Print the facts for a newcomer."""
    from rich.table import Table

    f = facts(bundle)
    shape = " x ".join(map(str, f["sample"]["shape"]))
    console.print(f"[bold]{f['name']}[/]: {f['summary'] or 'no summary'}", highlight=False)
    span = f"{f['sample']['low']:g} to {f['sample']['high']:g}"
    console.print(f"one sample is an {f['sample']['kind']} of {shape}, values {span}; {f['bytes'] / 1e6:.2f} MB, by {f['producer']}", highlight=False)
    if f["licence"]:
        console.print(f"licence: {f['licence']}", highlight=False)
    if f["trusted_pickle"]:
        console.print("[yellow]made from a pickle checkpoint that its builder trusted[/]")
    for c in f["conditions"]:
        low, high = c.get("minimum"), c.get("maximum")
        span = f" from {low:g} to {high:g}" if low is not None and high is not None else ""
        default = f", default {c['default']:g}" if "default" in c else ", you must give it"
        console.print(
            f"you choose [bold]{c['name']}[/]: {c['summary'] or 'a condition'}; {c['dtype']}{c['shape'] or ''}{span}{default}", highlight=False
        )
    programs = Table(
        "program",
        "steps",
        "network evaluations",
        "instructions",
        title="programs: from noise to a sample; the first is the default",
        title_justify="left",
    )
    for p in f["programs"]:
        programs.add_row(p["name"], str(p["steps"]), ", ".join(f"{k} x {v}" for k, v in p["nfe"].items()), str(p["instructions"]))
    console.print(programs)
    verdicts = (f["report"] or {}).get("variants", {})
    variants = Table(
        "variant",
        "engine",
        "MB",
        "quality and speed when it was built",
        title="variants: the network compiled in different ways; the first is used",
        title_justify="left",
    )
    for v in f["variants"]:
        variants.add_row(v["name"], ", ".join([v["engine"], *v["providers"]]), f"{v['bytes'] / 1e6:.2f}", verdicts.get(v["name"], {}).get("why", ""))
    for name, verdict in verdicts.items():
        if name not in {v["name"] for v in f["variants"]}:
            variants.add_row(f"({name})", "", f"{verdict['bytes'] / 1e6:.2f}", f"left out: {verdict['why']}")
    console.print(variants)
    if f["measured"]:
        _measured(f["measured"], console)
    members = Table("member", "bytes", "SHA-256", title="members: every byte is hashed", title_justify="left")
    for m in f["members"]:
        members.add_row(m["name"], f"{m['bytes']:,}", m["sha256"][:16])
    console.print(members)
    if f["report"]:
        error = from_hex(f["report"]["export"]["max_error"])
        console.print(f"export: ONNX differs from torch by at most {error:.1e} over {f['report']['export']['cases']} comparisons", highlight=False)
    values = " ".join(f"--set {c['name']}={c.get('default', c.get('minimum', 0)):g}" for c in f["conditions"])
    console.print(
        f"try: edgegen run {bundle.origin} --seed 1 {values} -o out.{'png' if f['sample']['kind'] == 'image' else 'npy'}",
        highlight=False,
        soft_wrap=True,
    )


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def bench_variant(
    bundle: Bundle,
    variant: str,
    program: str | None,
    batch: int,
    warmup: int,
    iters: int,
    threads: int,
    runtime: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Percentiles of `iters` generations in milliseconds, medians per component, and the median share of time outside them."""
    from edgegen.runtime.session import open_session

    totals, shares, components = [], [], []
    with open_session(bundle, variant=variant, threads=threads, runtime=runtime) as session:
        conditions: dict[str, Any] = session.default_conditions(program)
        for i in range(warmup + iters):
            session.generate(seed=i, batch=batch, program=program, **conditions)
            report = session.report
            if i >= warmup:
                totals.append(report.total_seconds * 1e3)
                shares.append(report.overhead)
                components.append([s * 1e3 for s in report.seconds.values()])
            progress(i + 1, warmup + iters)
    p50, p90, p99 = np.percentile(totals, [50, 90, 99])
    medians = dict(zip(report.seconds, np.median(components, axis=0).tolist(), strict=True))
    return {
        "variant": variant, "program": report.program, "batch": batch, "iters": iters, "nfe": dict(report.nfe),
        "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "component_ms": medians, "outside": float(np.median(shares)),
        "peak_rss_mib": peak_rss_mib(),
    }  # fmt: skip
