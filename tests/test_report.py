"""`edgegen report`: the page is whole by itself, holds every number of its documents, survives any document, and its charts are where numbers say."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import edgegen
from edgegen import canonical
from edgegen.bundle import bundle_bytes, open_bundle, parse_bundle
from edgegen.errors import RuntimeFault, Status
from edgegen.fusing import with_fused
from edgegen.report.blocks import bars, number, shaded
from edgegen.report.charts import Line, band_chart, line_chart, log_ticks, point_chart, ticks
from edgegen.report.page import draw_samples, report_page, shrunk
from tests.tiny import stream_bundle

pytest.importorskip("jinja2")

TIMES = ["999", "401.5", "3.25"]
QUANTIZATION = {
    "variants": {
        "int8": {
            "weight_bits": 8, "activation_bits": 8, "rounding": "gptq", "ranges": "minmax", "times": "step", "planned": 34, "fused": 33,
            "layers": [
                {"node": "conv1", "operator": "Conv", "weight": "w1.of.conv1", "elements": 288, "weight_bits": 8, "activation_bits": 8, "why": ""},
                {"node": "conv2", "operator": "Conv", "weight": "w2", "elements": 9216, "weight_bits": 16, "activation_bits": 0, "why": "kept: last layer"},
            ],
            "error": {"calibration": "0.01231", "validation": "0.01302"}, "steps": [[t, f"0.00{k}7"] for k, t in enumerate(TIMES, 1)],
        },
        "w4a8": {"weight_bits": 4, "activation_bits": 8, "error": {"calibration": "0.0634"}},
    },
    "tensors": [
        {"name": "calm", "drift": "1.06", "rows": [[t, "-0.278", f"3.{k}1"] for k, t in enumerate(TIMES)]},
        {"name": "wild", "drift": "7.52", "rows": [[t, f"-{k}.5", "4.75"] for k, t in reversed(list(enumerate(TIMES)))]},
    ],
    "sensitivity": [
        {"node": "conv1", "tensor": "weight", "error": "0.00123", "saves_ms": "0.121", "steps": [[t, f"0.000{k}3"] for k, t in enumerate(TIMES, 1)]},
        {"node": "conv1", "tensor": "activation", "error": "0.0456", "saves_ms": "0.122", "steps": []},
        {"node": "conv2", "tensor": "weight", "error": "0.0789", "saves_ms": "0.123", "steps": []},
    ],
    "search": {
        "budget": "0.0501", "chosen": 1,
        "points": [{"label": f"{k} layers in float", "error": f"0.0{9 - k}11", "milliseconds": f"3.{k}14"} for k in range(4)],
    },
}  # fmt: skip
MEASURED = {
    "program": "dpmpp_2m-4", "batch": 1, "machine": "Elbrus 3, 2 cores", "milliseconds": {"float32": "4.567", "int8": "2.345"}, "candidates": [],
}  # fmt: skip
VOID = {"meta", "img", "br", "path", "circle", "link", "input", "hr"}


class Page(HTMLParser):
    """The page's elements, text and references; it must be balanced."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.pictures, self.ids, self.labels = [], [], [], [], [], set(), []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        assert not any(name.startswith("on") for name in values)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "data", "action") if name in values]
        self.ids |= {values["id"]} if "id" in values else set()
        self.labels.append(values.get("aria-label", ""))
        if tag == "img":
            self.pictures.append(values["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert tag in VOID or (self.open and self.open.pop() == tag), f"</{tag}> is not the end of {self.open}"

    def handle_data(self, data):
        self.words.append(data)


def with_documents(path, **documents):
    """A bundle with these documents added, or in place of its own."""
    bundle = open_bundle(path)
    members = {name: bundle.member(name) for name in bundle.table}
    named = dict(bundle.manifest.documents) | {name: f"{name}.json" for name in documents}
    members |= {f"{name}.json": canonical.encode(value) for name, value in documents.items()}
    return parse_bundle(bundle_bytes(replace(bundle.manifest, documents=named), members), "with documents")


@pytest.fixture(scope="module")
def whole(tiny_bundle):
    """(the bundle with all documents, its page with samples)."""
    bundle = with_documents(tiny_bundle, quantization=QUANTIZATION, measured=MEASURED)
    return bundle, report_page(bundle, draw_samples(bundle, samples=3, seed=5, threads=1))


def decimals(value):
    """Every decimal number and name in a document."""
    if isinstance(value, dict):
        return [found for item in value.values() for found in decimals(item)]
    if isinstance(value, list):
        return [found for item in value for found in decimals(item)]
    return [value] if isinstance(value, str) and value else []


# --- the page


def test_the_page_is_whole_by_itself(whole):
    page = Page(whole[1])
    assert page.tags.count("svg") == 4 and page.tags.count("img") == 2  # points, steps, two tensors; two variants
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert "script" not in page.tags and "link" not in page.tags and "http" not in whole[1] and "@import" not in whole[1] and "url(" not in whole[1]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in whole[1] and "prefers-color-scheme: dark" in whole[1]
    sizes = [int(size) for size in re.findall(r"font(?:-size)?: (\d+)px", whole[1])]
    assert min(sizes) >= 14
    widths = [int(width) for width in re.findall(r'<svg [^>]*width="(\d+)"', whole[1])]
    assert max(widths) <= 340  # drawn at their size on a phone 360 wide, so letters keep theirs
    assert "Left out" not in page.text
    for svg in re.findall(r"<svg.*?</svg>", whole[1], re.DOTALL):
        ElementTree.fromstring(svg)


def test_every_number_of_the_documents_is_in_it(whole):
    bundle, html = whole
    page = Page(html)
    for found in [*decimals(QUANTIZATION), *decimals(MEASURED)]:
        assert found in page.text, found
    for variant in bundle.document("report")["variants"].values():
        for found in decimals(variant):
            assert found in page.text
    for name, member in bundle.table.items():
        assert f"{name} {member.nbytes:,} {member.sha256}" in page.text
    assert "33 of 34 layers fused" in page.text and "W8A8, gptq, minmax, step" in page.text and '"solver": "dpmpp_2m"' in page.text


def test_the_worst_drift_is_first_and_the_chosen_candidate_marked(whole):
    html = whole[1]
    labels = [label for label in Page(html).labels if label.startswith("range of")]
    assert labels == ["range of wild", "range of calm"]
    drifts = html[html.index('id="drift"') : html.index('id="sensitivity"')]
    assert drifts.index("wild") < drifts.index("calm") and 'style="width:100px"></span>7.52' in drifts and 'style="width:14px"></span>1.06' in drifts
    assert Page(whole[1]).text.index("wild 999 -0.5 4.75") < Page(whole[1]).text.index("wild 401.5 -1.5 4.75")  # from the noisiest on
    points = html[html.index('id="speed"') : html.index('id="steps"')]
    assert "<b>1 layers in float</b>" in points and points.count('class="dot mark"') == 1 and points.count('class="dot s0"') == 3
    assert 'class="bound"' in points


def test_pictures_are_the_samples_of_the_session(whole, tiny_bundle):
    bundle, html = whole
    drawn = draw_samples(bundle, samples=3, seed=5, threads=1)
    for uri, variant in zip(Page(html).pictures, ("float32", "int8"), strict=True):
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        assert sheet.shape == (8 * 14, 24 * 14)  # three images of 8 x 8 pixels, each 14 wide
        with edgegen.load(tiny_bundle, variant=variant, threads=1) as session:
            samples = [session.generate(seed=5 + i, label=1)[0, 0] for i in range(3)]  # the label's default
        wanted = np.rint((np.clip(np.concatenate(samples, axis=1), -1, 1) + 1) * 127.5)
        assert np.abs(sheet[7::14, 7::14].astype(float) - wanted).max() <= 1
        assert f"{drawn.made[variant].error:.5f}" in html
    assert "label is its default, 1" in html


def test_wide_images_are_averaged_in_squares():
    images = np.random.default_rng(1).normal(size=(2, 3, 7, 9))
    small = shrunk(images, 4)
    assert small.shape == (2, 3, 3, 4)
    for y in range(3):
        for x in range(4):
            assert small[:, :, y, x] == pytest.approx(images[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum((2, 3)) / 4)
    assert np.array_equal(shrunk(images, 5), images) and shrunk(images[:, :, :1], 2).shape == (2, 3, 1, 9)


def test_equal_inputs_give_equal_bytes(whole):
    bundle, html = whole
    assert report_page(bundle, draw_samples(bundle, samples=3, seed=5, threads=1)) == html
    assert report_page(bundle, draw_samples(bundle, samples=3, seed=6, threads=1)) != html


def test_what_a_bundle_lacks_is_one_line_each(tiny_bundle, tmp_path):
    """The plain bundle: no quantization, no times. Its steps are measured by the samples that are made."""
    bare = with_documents(tiny_bundle, quantization={}, report={})
    page = Page(report_page(bare))
    sections = re.split(r"(?<=</section>)", report_page(bare))
    missing = {re.search(r'<section id="(\w+)"', s)[1] for s in sections if 'class="missing"' in s}
    assert missing == {"samples", "speed", "steps", "ranges", "drift", "sensitivity", "layers", "gate"}
    assert page.text.count("edgegen build") >= 5 and "edgegen compare A B --samples 20" in page.text
    drawn = report_page(bare, draw_samples(bare, samples=2, threads=1))
    assert "relative error of the state to that of float32" in drawn
    (tmp_path / "s.edgegen").write_bytes(stream_bundle())  # arrays, one variant, no document at all
    stream = open_bundle(tmp_path / "s.edgegen")
    html = report_page(stream, draw_samples(stream, samples=6, threads=1))
    assert Page(html).tags.count("svg") == 4 and "The bundle holds no recipe" in html


def test_points_without_a_search_are_the_variants(tiny_bundle):
    document = {"variants": {"int8": {"error": {"validation": "0.0321"}}, "float32": {"error": {"validation": "0"}}}}
    html = report_page(with_documents(tiny_bundle, quantization=document, measured=MEASURED))
    points = Page(html[html.index('id="speed"') : html.index('id="steps"')].partition(">")[2].replace("</section>", "").replace("<section ", "")).text
    assert "float32 0 4.567" in points and "int8 0.0321 2.345" in points


def test_the_summary_has_the_worst_program(tiny_bundle):
    programs = {
        "dpmpp_2m-4": {"psnr_db": "46.51", "relative_error": "0.01663"},
        "dpmpp_2m-4.fused": {"psnr_db": "40.48", "relative_error": "0.02805"},
    }
    report = {"variants": {"int8": {"passed": 1, "why": "", "bytes": 3, "programs": programs}, "float32": {"programs": {"a": {"psnr_db": "inf"}}}}}
    html = report_page(with_documents(tiny_bundle, report=report, quantization={}))
    summary = html[html.index("variants, the first choice") : html.index("</table>", html.index("variants, the first choice"))]
    assert "40.48" in summary and "0.02805" in summary and "46.51" not in summary and ">inf<" in summary


def test_a_fused_variant_is_drawn_as_it_ships_and_its_steps_are_shown(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    members = {name: bundle.member(name) for name in bundle.table}
    fused, added = with_fused(bundle, next(v for v in bundle.manifest.variants if v.name == "int8"))
    variants = tuple(fused if v.name == "int8" else v for v in bundle.manifest.variants)
    bundle = parse_bundle(bundle_bytes(replace(bundle.manifest, variants=variants), members | added), "fused")
    drawn = draw_samples(bundle, samples=1, threads=1)
    assert drawn.made["int8"].fused == (False, True) and drawn.steps["int8"].fused == (False, False) and len(drawn.steps["int8"].steps) == 4
    html = report_page(bundle, drawn)
    assert "int8: ships fused, and these are its steps" in html and f"{drawn.made['int8'].error:.5f}" in html


def test_a_variant_that_does_not_run_here_is_named(tiny_bundle, monkeypatch):
    import edgegen.targets.opening as opening

    def refuse(bundle, variant, component, *, threads=0, real=opening.open_component):
        if variant.name == "int8":
            raise RuntimeFault("no such provider here", Status.PROVIDER_MISSING)
        return real(bundle, variant, component, threads=threads)

    monkeypatch.setattr(opening, "open_component", refuse)
    bundle = open_bundle(tiny_bundle)
    drawn = draw_samples(bundle, samples=1, threads=1)
    assert set(drawn.made) == {"float32"} and "int8 did not run here: no such provider here" in report_page(bundle, drawn)


# --- documents of strangers


def test_markup_in_documents_is_escaped(tiny_bundle):
    evil = '<script>alert("1")</script>'

    def poisoned(value):
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        return [poisoned(item) for item in value] if isinstance(value, list) else evil if isinstance(value, str) else value

    report = poisoned(open_bundle(tiny_bundle).document("report"))
    bundle = with_documents(tiny_bundle, quantization=poisoned(QUANTIZATION), measured=poisoned(MEASURED), report=report, recipe=poisoned({"a": "b"}))
    html = report_page(bundle)
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html and page.text.count(evil) > 20


STRANGE = [
    0, -1, 2**63 - 1, -(2**63), "", "0", "-1", "1e999", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "1_0", "0x1.8000000000000p+1", "<b>&\"'", "x" * 300,
    [], [[]], [["1"]], [["a", "b", "c"]], [["1e99", "-1e99", "1e-99"]], {}, {"int8": []}, {"rows": {"a": 1}}, [{"node": 3}], [{}, "a", {"error": ["1"]}],
]  # fmt: skip


def mutated(value, rng):
    """The document with parts of it left out, or something else in their place."""
    if rng.random() < 0.06:
        return STRANGE[rng.integers(len(STRANGE))]
    if isinstance(value, dict):
        return {key: mutated(item, rng) for key, item in value.items() if rng.random() < 0.95}
    return [mutated(item, rng) for item in value] if isinstance(value, list) else value


def test_any_document_gives_a_balanced_page(tiny_bundle):
    documents = {"quantization": QUANTIZATION, "measured": MEASURED} | {
        name: open_bundle(tiny_bundle).document(name) for name in ("report", "recipe")
    }
    for seed in range(80):
        rng = np.random.default_rng(seed)
        html = report_page(with_documents(tiny_bundle, **{name: mutated(value, rng) for name, value in documents.items()}))
        Page(html)
        for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
            for element in ElementTree.fromstring(svg).iter():
                placed = " ".join(value for name, value in element.items() if name in ("d", "cx", "cy", "x", "y"))
                assert "nan" not in placed and "inf" not in placed


# --- charts


def places(svg, kind="circle"):
    """Centres of the dots of a chart."""
    return [(float(e.get("cx")), float(e.get("cy"))) for e in ElementTree.fromstring(svg).iter(kind)]


def test_ticks_are_round_numbers_within():
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0]) or ticks(0.0, 1.0) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert ticks(-3.0, 17.0) == pytest.approx([0.0, 5.0, 10.0, 15.0])
    assert log_ticks(0.001, 1.0) == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert log_ticks(0.9, 6.0) == pytest.approx([1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(size=300) * 10.0 ** rng.integers(-9, 9, 300), 10.0 ** rng.uniform(-6, 6, 300), strict=True):
        found = ticks(low, low + width)
        assert 1 <= len(found) <= 5 and all(low <= t * (1 + 1e-9 * np.sign(t)) and t * (1 - 1e-9 * np.sign(t)) <= low + width for t in found)
        found = log_ticks(width, width * (1 + abs(low)))
        assert len(found) <= 5 and all(math.isclose(float(f"{t:.0e}"), t, rel_tol=1e-9) for t in found)


def test_a_line_goes_through_its_numbers():
    svg = line_chart([Line("a", [1.0, 2.0, None, 4.0])], ["9", "7", "5", "3"], x="time", y="error")
    dots = places(svg)
    assert [x for x, _ in dots] == pytest.approx([62.0, 150.0, 326.0]) and len(dots) == 3  # 62 .. 326 in thirds, without the third
    ys = [y for _, y in dots]
    assert ys[0] > ys[1] > ys[2] and (ys[0] - ys[1]) / (ys[0] - ys[2]) == pytest.approx(1 / 3, abs=1e-3)
    (path,) = re.findall(r'class="line s0" d="([^"]*)"', svg)
    assert path.count("M") == 2 and path.count("L") == 1  # broken where there is no number
    logarithmic = [y for _, y in places(line_chart([Line("a", [1e-3, 1e-2, 1e-1, 0.0])], list("abcd"), x="", y="e", log=True))]
    assert len(logarithmic) == 3 and logarithmic[0] - logarithmic[1] == pytest.approx(logarithmic[1] - logarithmic[2], abs=0.11)
    for values in ([], [None], [5.0], [0.0, 0.0], [-1e99, 1e99]):
        for log in (False, True):
            ElementTree.fromstring(line_chart([Line("<&>", values)], [str(k) for k in range(len(values))], x="<", y="&", log=log))


def test_points_and_bands_are_where_their_numbers_are():
    svg = point_chart([(1.0, 0.0), (2.0, 0.04), (None, 0.1), (3.0, 0.08)], x="ms", y="error", marked=1, bound=0.04)
    (ax, ay), (bx, by), (cx, cy) = places(svg)
    assert bx - ax == pytest.approx(cx - bx, abs=0.11) and ay > by > cy
    assert re.search(r'class="bound" d="M62 ([\d.]+)H', svg)[1] == f"{by:.1f}" and svg.count("dot mark") == 1
    assert (ay - by) / (ay - cy) == pytest.approx(0.5, abs=2e-3)
    band = band_chart("t", [-1.0, -2.0], [1.0, 2.0], ["9", "1"])
    (path,) = re.findall(r'class="band" d="([^"]*)Z"', band)
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path)[1:]]
    zero = float(re.search(r'class="zero" d="M62 ([\d.]+)H', band)[1])
    assert [x for x, _ in points] == [62.0, 326.0, 326.0, 62.0] and zero == pytest.approx((points[1][1] + points[2][1]) / 2)
    assert (points[0][1] - zero) / (points[1][1] - zero) == pytest.approx(0.5, abs=2e-3)


def test_shades_and_bars_by_hand():
    rows = shaded([["a", "0.001", "0.1"], ["b", "0.01", ""], ["c", "0", "x"]])
    assert [[cell.shade for cell in row] for row in rows] == [[None, 0, 9], [None, 4, None], [None, 0, None]]
    assert [cell.bar for cell in bars(["2", "4", "-1", ""])] == [50, 100, 0, 0]
    assert [number(v) for v in ("1e3", "nan", "1e101", "1e-101", "", [], 7, "0x1p+0")] == [1000.0, None, None, 0.0, None, None, 7.0, None]


# --- the command


@pytest.fixture
def command(edgegen_command):
    """`edgegen report` in this process: (standard output, standard error)."""
    return functools.partial(edgegen_command, "report")


def test_the_command(command, tiny_bundle, tmp_path, monkeypatch):
    out = tmp_path / "r.html"
    assert command(tiny_bundle, "-o", out, "--samples", 2, "--threads", 1).out.strip().endswith("r.html")
    html = out.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>") and Page(html).tags.count("img") == 2
    command(tiny_bundle, "-o", out, "--samples", 0)
    assert "No samples were made" in out.read_text(encoding="utf-8")
    assert "cannot write" in command(tiny_bundle, "-o", tmp_path / "absent" / "r.html", code=1).err
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else real(name, *rest))
    assert "pip install 'edgegen[report]'" in command(tiny_bundle, "-o", out, code=4).err
