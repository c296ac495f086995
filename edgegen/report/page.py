"""A bundle's report: in goes a bundle, out comes one HTML page that needs nothing else, with what was measured and samples made here.

Nothing is written here. The page depends on the bundle's bytes, the seed, and the samples that this device makes; there is no date in it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle
from edgegen.canonical import from_hex
from edgegen.comparing import Side
from edgegen.errors import EdgegenError, RecipeError, RuntimeFault, Status
from edgegen.images import png_bytes
from edgegen.inspection import facts
from edgegen.recipe import Recipe, recipe_from_json
from edgegen.report.blocks import Block, Cell, Figure, Grid, Note, Section, Table, bars, cell, entries, number, pairs, shaded, table, text
from edgegen.report.charts import COLOURS, Line, band_chart, line_chart, point_chart
from edgegen.samples import SampleComparison, compare_samples
from edgegen.spec import ConditionSpec, draw_condition

__all__ = ["Drawn", "check_jinja", "draw_samples", "report_page", "shrunk"]

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
"""progress(what is being made, done, total)"""

_SMALL_CHARTS = 24
_WIDEST = 168
"""Pixels of an image's width; of those that are twice as wide or wider, squares of pixels are averaged."""
_COLUMNS = 4
_CURVES = 6


def check_jinja() -> None:
    """Raise RuntimeFault (BACKEND_MISSING) now, before slow work, if jinja2 is not installed."""
    import importlib.util

    if importlib.util.find_spec("jinja2") is None:
        raise RuntimeFault("a report needs jinja2; install with: pip install 'edgegen[report]'", Status.BACKEND_MISSING)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of each variant that runs here, as it ships, compared with the reference's; and why the others do not run.

    steps: the same step by step. words: what the conditions are.
    """

    reference: str
    made: Mapping[str, SampleComparison]
    steps: Mapping[str, SampleComparison]
    elsewhere: Mapping[str, str]
    words: str


def draw_samples(bundle: Bundle, *, samples: int, seed: int = 0, threads: int = 0, progress: Progress | None = None) -> Drawn:
    """`samples` samples of the default program per variant, from the seeds `seed`, `seed` + 1, ..., beside those of float32 (else the first variant).

    A condition has its default where it has one, else it is drawn over its range, equal for all variants.
    """
    variants = {v.name: v for v in bundle.manifest.variants}
    reference = "float32" if "float32" in variants else next(iter(variants))
    conditions, words = _conditions(bundle.manifest.conditions, samples, seed)
    made, steps, elsewhere = {}, {}, {}
    sides = {name: Side(name, {}, bundle, variant) for name, variant in variants.items()}

    def compared(side: Side, *, stepwise: bool) -> SampleComparison:
        return compare_samples(
            sides[reference], side, samples=samples, seed=seed, conditions=conditions, stepwise=stepwise, threads=threads
        )  # fmt: skip

    for i, (name, side) in enumerate(sides.items()):
        if progress is not None:
            progress(f"samples of {name}", i, len(sides))
        try:
            made[name] = compared(side, stepwise=False)
            steps[name] = compared(side, stepwise=True) if any(made[name].fused) else made[name]
        except RuntimeFault as e:
            elsewhere[name] = str(e)
    return Drawn(reference, made, steps, elsewhere, words)


def _conditions(specs: Sequence[ConditionSpec], samples: int, seed: int) -> tuple[dict[str, Array], str]:
    rng, conditions, words = np.random.default_rng(seed), {}, []
    for spec in specs:
        drawn = draw_condition(spec, samples, rng)
        conditions[spec.name] = drawn if spec.default is None else np.full_like(drawn, spec.default)
        if spec.default is not None:
            words.append(f"{spec.name} is its default, {spec.default:g}")
        elif spec.shape:
            words.append(f"{spec.name} is drawn over its range")
        else:
            words.append(f"{spec.name} is {', '.join(f'{v:g}' for v in drawn.tolist())}")
    return conditions, "; ".join(words)


def report_page(bundle: Bundle, drawn: Drawn | None = None) -> str:
    """The page, as HTML in UTF-8. drawn: of `draw_samples`; None leaves out what needs the networks to run.

    Raises RuntimeFault (BACKEND_MISSING) without jinja2. Documents of the bundle that are missing or of another form are left out.
    """
    check_jinja()
    sections = _Page(bundle, drawn).sections()
    return _template().render(title=f"{bundle.manifest.name}: edgegen report", sections=sections, colours=COLOURS).lstrip()  # type: ignore[no-any-return]


@functools.cache
def _template() -> Any:
    """page.html, compiled."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def shrunk(images: Array, width: int) -> Array:
    """float[N, C, H, W] with squares of pixels averaged until they are less than twice as wide as `width`; what is left over is cut off."""
    n, c, h, w = images.shape
    factor = max(1, min(w // width, h))
    h, w = h // factor, w // factor
    return np.asarray(images[:, :, : h * factor, : w * factor].reshape(n, c, h, factor, w, factor).mean((3, 5)))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _size(value: str) -> float:
    """A number to be sorted by; what is none, or infinite, is the largest."""
    found = number(value)
    return math.inf if found is None else found


def _curves_by_time(curves: Mapping[str, Sequence[Sequence[str]]]) -> tuple[list[str], list[Line]]:
    """(times, lines) of name -> rows (time, value): the times in the order in which they first come, a place for each in every line."""
    positions = list(dict.fromkeys(row[0] for rows in curves.values() for row in rows))
    found = {name: {row[0]: number(row[1]) for row in rows} for name, rows in curves.items()}
    return positions, [Line(name, [values.get(position) for position in positions]) for name, values in found.items()]


def _curve_table(caption: str, curves: Mapping[str, Sequence[Sequence[str]]]) -> Table:
    """What a chart of curves shows, in numbers."""
    positions, _ = _curves_by_time(curves)
    found = {name: {row[0]: row[1] for row in rows} for name, rows in curves.items()}
    rows = [[cell(position), *(cell(values.get(position, "")) for values in found.values())] for position in positions]
    return Table(("time", *curves), rows, caption, folded=True)


class _Page:
    """The sections of a bundle's page."""

    def __init__(self, bundle: Bundle, drawn: Drawn | None) -> None:
        self.bundle, self.drawn, self.facts = bundle, drawn, facts(bundle)
        self.report, self.measured, self.quantization = (_object(bundle.document(name)) for name in ("report", "measured", "quantization"))
        self.verdicts = dict(entries(self.report.get("variants")))
        self.quantized = dict(entries(self.quantization.get("variants")))
        self.milliseconds = _object(self.measured.get("milliseconds"))
        self.recipe = self._recipe()
        self.shipped = [v.name for v in bundle.manifest.variants]
        self.names = list(dict.fromkeys([*self.shipped, *self.verdicts, *self.quantized]))

    def _recipe(self) -> Recipe | None:
        document = self.bundle.document("recipe")
        try:
            return None if document is None else recipe_from_json(document)
        except RecipeError:
            return None

    def sections(self) -> list[Section]:
        """All of them, in the page's order."""
        return [
            self.summary(), self.samples(), self.speed(), self.steps(), self.ranges(), self.drift(), self.sensitivity(), self.layers(), self.gate(),
            self.provenance(),
        ]  # fmt: skip

    def _error(self, name: str, seeds: str = "validation") -> str:
        """The relative error of a variant's final samples on the gate's seeds, or on those of "calibration"; "" where nobody measured it."""
        error = text(_object(self.quantized.get(name, {}).get("error")).get(seeds))
        return error or (self._worst(name, "relative_error", max) if seeds == "validation" else "")

    def _worst(self, name: str, key: str, pick: Callable[..., str]) -> str:
        """A figure of a variant at the gate, of the program where it is worst."""
        figures = [text(figures.get(key)) for _, figures in entries(self.verdicts.get(name, {}).get("programs"))]
        return pick((f for f in figures if f), key=_size, default="")

    def summary(self) -> Section:
        f = self.facts
        shape = " x ".join(map(str, f["sample"]["shape"]))
        blocks: list[Block] = [Note(f["summary"])] if f["summary"] else []
        span = f"values {f['sample']['low']:g} to {f['sample']['high']:g}"
        blocks.append(Note(f"One sample is an {f['sample']['kind']} of {shape}, {span}. The bundle has {f['bytes'] / 1e6:.2f} MB."))
        rows = [[cell(p["name"]), cell(p["steps"]), cell(", ".join(f"{n} x {count}" for n, count in p["nfe"].items()))] for p in f["programs"]]
        blocks.append(Table(("program", "steps", "network evaluations"), rows, "programs, the default first"))
        sizes = {v["name"]: v["bytes"] for v in f["variants"]}
        rows = []
        for name in self.names:
            verdict, made = self.verdicts.get(name, {}), self.drawn.made.get(name) if self.drawn else None
            size = sizes.get(name, verdict.get("bytes"))
            here = "" if made is None else f"{made.error:.5f}"
            place = f"ships, choice {self.shipped.index(name) + 1}" if name in self.shipped else "left out"
            rows.append(
                [
                    cell(name, strong=name == self.shipped[0]), cell(self._kind(name)), cell(f"{size / 1e6:.2f}" if isinstance(size, int) else ""),
                    cell(self.milliseconds.get(name)), cell(self._worst(name, "psnr_db", min)), cell(self._error(name)),
                    cell(self._error(name, "calibration")), cell(here),
                    cell(place), cell(verdict.get("why")),
                ]
            )  # fmt: skip
        headings = ("variant", "numbers", "MB", "ms", "PSNR dB", "relative error", "error, choosing", "error here", "verdict", "why")
        where = text(self.measured.get("machine"))
        note = f"ms: one sample of {text(self.measured.get('program'))} on {where}. " if where else ""
        blocks.append(table(headings, rows, "variants, the first choice first"))
        words = "PSNR and relative error: final samples against the float network's, of the worst program, at the gate's seeds; "
        words += "choosing: at the seeds that the build chose by."
        blocks.append(Note(note + words))
        if self.drawn is not None and self.drawn.made:
            blocks.append(Note(f"Error here: the mean relative error of the samples below against those of {self.drawn.reference}."))
        return Section("summary", "Summary", blocks)

    def _kind(self, name: str) -> str:
        """The numbers that a variant computes with, in few words."""
        q = self.quantized.get(name)
        if q is None:
            return ""
        bits = [f"{letter}{text(q.get(key))}" for letter, key in (("W", "weight_bits"), ("A", "activation_bits")) if number(q.get(key))]
        words = [text(q.get(key)) for key in ("rounding", "ranges", "times")]
        counts = f"{text(q['fused'])} of {text(q['planned'])} layers fused" if "fused" in q and "planned" in q else ""
        return ", ".join(word for word in ["".join(bits), *words, counts] if word)

    def samples(self) -> Section:
        drawn, title = self.drawn, "Samples"
        if drawn is None:
            return Section("samples", title, missing="No samples were made: leave out --samples 0 of edgegen report.")
        notes = [Note(f"{name} did not run here: {reason}") for name, reason in drawn.elsewhere.items()]
        if not drawn.made:
            return Section("samples", title, notes, "No variant runs here: edgegen doctor says what is missing.")
        first = next(iter(drawn.made.values()))
        seeds = f"{first.program}, seeds {first.seed} to {first.seed + len(first.a) - 1}, each variant as it ships"
        figures = [figure for name, found in drawn.made.items() for figure in self._pictures(name, found, drawn.reference)]
        return Section("samples", title, [Note("; ".join(word for word in (seeds, drawn.words) if word) + "."), Grid(figures), *notes])

    def _pictures(self, name: str, found: SampleComparison, reference: str) -> list[Figure]:
        """A variant's samples as one sheet of images, or as curves of the first few."""
        spec = self.bundle.manifest.sample
        caption = f"{name}, the reference" if name == reference else f"{name}, relative error {found.error:.5f}"
        if spec.kind == "image":
            columns = min(_COLUMNS, len(found.b))
            shown = shrunk(found.b, _WIDEST)
            data = png_bytes(shown, spec.low, spec.high, columns=columns, scale=max(1, _WIDEST * 2 // (columns * shown.shape[3])))
            return [Figure(caption, picture=f"data:image/png;base64,{base64.b64encode(data).decode()}")]
        figures = []
        for i, sample in enumerate(found.b[:_COLUMNS]):
            flat = sample.reshape(-1, sample.shape[-1]).astype(np.float64)
            curves = (flat if flat.shape[1] >= flat.shape[0] else flat.T)[:_CURVES]
            lines = [Line(f"{k}", curve.tolist()) for k, curve in enumerate(curves)]
            svg = line_chart(lines, [str(k) for k in range(curves.shape[1])], x="element", y="value")
            figures.append(Figure(f"{caption}; seed {found.seed + i}", svg))
        return figures

    def speed(self) -> Section:
        title, search = "Latency against error", _object(self.quantization.get("search"))
        points = [(text(p.get("label")), text(p.get("error")), text(p.get("milliseconds"))) for _, p in entries(search.get("points"))]
        chosen, budget = search.get("chosen"), text(search.get("budget"))
        if not points:
            points = [
                (name, self._error(name) or self._error(name, "calibration"), text(self.milliseconds.get(name)))
                for name in self.names
                if self.milliseconds.get(name)
            ]
            points = [point for point in points if point[1]]
            chosen, budget = next((i for i, point in enumerate(points) if point[0] == self.shipped[0]), None), ""
        if not points:
            command = "edgegen build RECIPE --set quantization.search=true searches, edgegen build without --no-measure times"
            return Section("speed", title, missing=f"Left out: this bundle holds neither a search nor times and errors of its variants. {command}.")
        marked = chosen if isinstance(chosen, int) and 0 <= chosen < len(points) else None
        svg = point_chart(
            [(number(ms), number(error)) for _, error, ms in points], x="milliseconds", y="relative error", marked=marked, bound=number(budget)
        )  # fmt: skip
        words = "one point per candidate, numbered as in the table; the large one ships"
        rows = [[cell(i + 1), cell(label, strong=i == marked), cell(error), cell(ms)] for i, (label, error, ms) in enumerate(points)]
        blocks = [Grid([Figure(f"{words}; the dashed line is the budget, {budget}" if budget else words, svg)])]
        return Section("speed", title, [*blocks, table(("", "candidate", "relative error", "ms"), rows)])

    def steps(self) -> Section:
        title = "Error after each step"
        curves = {name: rows for name, q in self.quantized.items() if (rows := pairs(q.get("steps"), 2))}
        words = "relative error of the state, as the build measured it"
        if not curves and self.drawn is not None:
            found = {name: made for name, made in self.drawn.steps.items() if name != self.drawn.reference and made.steps}
            curves = {name: [[f"{s.time:g}", f"{s.error:.5g}"] for s in made.steps] for name, made in found.items()}
            words = f"relative error of the state to that of {self.drawn.reference}, at the seeds above; time: where the step ends"
            fused = [name for name in found if self.drawn.made[name].fused[1]]
            words += f"; {', '.join(fused)}: ships fused, and these are its steps, with scales for all times" if fused else ""
        if not curves:
            command = "edgegen compare A B --samples 20 prints it for two variants"
            return Section("steps", title, missing=f"Left out: no variant beside the reference was measured step by step. {command}.")
        positions, lines = _curves_by_time(curves)
        svg = line_chart(lines, positions, x="time", y="relative error", log=True)
        return Section("steps", title, [Grid([Figure(words, svg, lines=list(curves))]), _curve_table("the numbers", curves)])

    def _tensors(self) -> list[tuple[str, str, list[list[str]]]]:
        """(name, drift, rows of time, low, high from the noisiest time on) of each tensor, the largest drift first."""
        tensors = [
            (text(t.get("name")), text(t.get("drift")), sorted(pairs(t.get("rows"), 3), key=lambda row: -_size(row[0])))
            for _, t in entries(self.quantization.get("tensors"))
        ]
        return sorted(tensors, key=lambda tensor: -math.inf if (drift := number(tensor[1])) is None else drift, reverse=True)

    def ranges(self) -> Section:
        title = "Ranges over time"
        tensors = [t for t in self._tensors() if t[2]]
        if not tensors:
            return Section("ranges", title, missing=f"Left out: this bundle holds no ranges of tensors. {_REBUILD}.")
        figures = [
            Figure(
                f"drift {drift}" if drift else "",
                band_chart(name, [number(r[1]) for r in rows], [number(r[2]) for r in rows], [r[0] for r in rows]),
            )
            for name, drift, rows in tensors[:_SMALL_CHARTS]
        ]
        more = f"; {len(tensors) - _SMALL_CHARTS} more are in the table" if len(tensors) > _SMALL_CHARTS else ""
        words = Note(f"Smallest and largest value at each time of the sampler, the most drifting tensor first{more}.")
        rows = [[cell(name), *map(cell, row)] for name, _, rows in tensors for row in rows]
        return Section("ranges", title, [words, Grid(figures), Table(("tensor", "time", "low", "high"), rows, "the numbers", folded=True)])

    def drift(self) -> Section:
        title = "Drift"
        tensors = [t for t in self._tensors() if t[1]]
        if not tensors:
            return Section("drift", title, missing=f"Left out: this bundle holds no drifts of tensors. {_REBUILD}.")
        rows = [[cell(name), bar] for (name, _, _), bar in zip(tensors, bars([t[1] for t in tensors]), strict=True)]
        words = Note("The largest range of a tensor at any time over its smallest: where it is far above 1, ranges by time pay.")
        return Section("drift", title, [words, table(("tensor", "drift"), rows)])

    def sensitivity(self) -> Section:
        title = "Sensitivity"
        effects = [effect for _, effect in entries(self.quantization.get("sensitivity"))]
        if not effects:
            command = "edgegen build RECIPE --set quantization.search=true measures it"
            return Section("sensitivity", title, missing=f"Left out: this bundle holds no effects of single layers. {command}.")
        cells: dict[str, dict[str, dict[str, Any]]] = {}
        for effect in effects:
            cells.setdefault(text(effect.get("node")), {})[text(effect.get("tensor"))] = effect
        kinds = list(dict.fromkeys(kind for own in cells.values() for kind in own))
        rows = shaded([node, *(own.get(kind, {}).get("error") for kind in kinds)] for node, own in cells.items())
        for row, own in zip(rows, cells.values(), strict=True):
            row += [cell(own.get(kind, {}).get("saves_ms")) for kind in kinds]
        headings = ("layer", *(f"{kind}, error" for kind in kinds), *(f"{kind}, saves ms" for kind in kinds))
        words = "Error of the final sample where only this layer's weight, or activation, is quantized; darker is larger, by its logarithm."
        blocks: list[Block] = [Note(words), table(headings, rows)]
        curves = {
            f"{node}, {kind}" if len(kinds) > 1 else node: steps
            for node, own in cells.items()
            for kind, effect in own.items()
            if (steps := pairs(effect.get("steps"), 2))
        }
        if curves:
            positions, _ = _curves_by_time(curves)
            values = {name: {row[0]: row[1] for row in rows} for name, rows in curves.items()}
            grid = shaded([name, *(own.get(position) for position in positions)] for name, own in values.items())
            blocks.append(table(("layer", *positions), grid, "error by layer and time"))
        return Section("sensitivity", title, blocks)

    def layers(self) -> Section:
        title = "Layers"
        blocks: list[Block] = []
        for name, q in self.quantized.items():
            keys = ("node", "operator", "weight", "elements", "weight_bits", "activation_bits", "why")
            rows = [[cell(layer.get(key)) for key in keys] for _, layer in entries(q.get("layers"))]
            if rows:
                kind = self._kind(name)
                headings = ("layer", "operator", "weight", "elements", "weight bits", "activation bits", "why kept")
                blocks.append(table(headings, rows, f"{name}: {len(rows)} layers{f'; {kind}' if kind else ''}", folded=True))
        if not blocks:
            return Section("layers", title, missing=f"Left out: this bundle lists no layers. {_REBUILD}.")
        return Section("layers", title, blocks)

    def gate(self) -> Section:
        title = "Gate"
        rows, keys = [], ("psnr_db", "relative_error", "rmse", "max_abs")
        for name, verdict in self.verdicts.items():
            passed = "passed" if verdict.get("passed") == 1 else "failed"
            for program, figures in entries(verdict.get("programs")) or [("", {})]:
                rows.append([cell(name), cell(program), *(cell(figures.get(key)) for key in keys), cell(passed), cell(verdict.get("why"))])
        if not rows:
            return Section("gate", title, missing="Left out: this bundle holds no document `report`. edgegen build writes it.")
        blocks: list[Block] = []
        if self.recipe is not None:
            asked = _without_none(msgspec.to_builtins(self.recipe.gate))
            words = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in asked.items()]
            blocks.append(Note(f"Asked: {', '.join(words)}."))
        headings = ("variant", "program", "PSNR dB", "relative error", "RMSE", "max abs", "verdict", "why")
        return Section("gate", title, [*blocks, table(headings, rows)])

    def provenance(self) -> Section:
        manifest, data = self.bundle.manifest, self.bundle.data
        exported = _object(self.report.get("export"))
        try:
            error = f"at most {from_hex(exported['max_error']):.2g} over {text(exported.get('cases'))} comparisons"
        except (KeyError, EdgegenError):
            error = ""
        rows = [
            ("made by", manifest.producer), ("licence", manifest.licence), ("bytes", f"{len(data):,}"), ("SHA-256", hashlib.sha256(data).hexdigest()),
            ("measured on", text(self.measured.get("machine"))), ("ONNX against torch", error),
            ("pickle", "made from a pickle checkpoint that its builder trusted" if manifest.trusted_pickle else ""),
        ]  # fmt: skip
        blocks: list[Block] = [Table(("", ""), [[cell(name), Cell(value)] for name, value in rows if value])]
        members = [[cell(m["name"]), cell(f"{m['bytes']:,}"), cell(m["sha256"])] for m in self.facts["members"]]
        blocks.append(Table(("member", "bytes", "SHA-256"), members, "members: every byte is hashed", folded=True))
        document = self.bundle.document("recipe")
        if document is None:
            return Section("provenance", "Provenance", [*blocks, Note("The bundle holds no recipe.")])
        shown = document if self.recipe is None else _without_none(msgspec.to_builtins(self.recipe))
        return Section("provenance", "Provenance", [*blocks, Note("The recipe as it was resolved:"), Note(json.dumps(shown, indent=1), code=True)])


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


_REBUILD = "edgegen build writes them with each precision of [quantization]"
