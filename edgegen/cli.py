"""The `edgegen` command. No logic of its own: it parses, calls, prints, and turns errors into exit codes.

Exit codes: 0 ok, 1 error, 2 usage (recipe, names, values), 3 quality gate failed, 4 this device cannot run it, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import edgegen
from edgegen.errors import EdgegenError, GateError, RecipeError, RuntimeFault, Status

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgegen", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Compile a few-step generative model into one .edgegen file, and run it.",
)  # fmt: skip

_stderr = Console(stderr=True)
_USAGE = {
    Status.BAD_RECIPE, Status.BAD_ARGUMENT, Status.UNKNOWN_NAME, Status.OUT_OF_RANGE, Status.BAD_SHAPE, Status.BAD_DTYPE,
}  # fmt: skip
_DEVICE = {Status.BACKEND_MISSING, Status.BACKEND_TOO_OLD, Status.PROVIDER_MISSING, Status.NO_VARIANT}

RecipeArgument = Annotated[str, typer.Argument(help="Path of a recipe.toml, or the name of a family of export/.")]
BundleArgument = Annotated[Path, typer.Argument(help="An .edgegen file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: --set gate.psnr_db=30. May repeat.")]
ConditionOption = Annotated[
    list[str] | None, typer.Option("--set", help="A condition: --set label=3, or one value per sample: --set label=0,1,2. May repeat.")
]
CacheOption = Annotated[Path | None, typer.Option("--cache-dir", help="Stage cache; default $EDGEGEN_CACHE, else ~/.cache/edgegen.")]
PickleOption = Annotated[bool, typer.Option("--trust-pickle", help="Allow a checkpoint that may run code when it is opened.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="Threads of the engine; 0 for one per core.")]
VariantOption = Annotated[str | None, typer.Option("--variant", help="A variant by name; default: the bundle's first.")]


RuntimeOption = Annotated[str, typer.Option("--runtime", help="python, or native for libedgegen.")]


class _Lines(logging.Handler):
    """Each message as one line on standard error, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        _stderr.print(self.format(record), style="yellow", markup=False, highlight=False, soft_wrap=True)


def _exit_code(error: EdgegenError) -> int:
    if error.code == Status.GATE_FAILED:
        return 3
    if error.code in _DEVICE:
        return 4
    return 2 if error.code in _USAGE else 1


def _cache(given: Path | None) -> Path:
    if given is not None:
        return given
    from edgegen.workspace import cache_folder

    return cache_folder()


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, str, int, int], None]]:
    """A progress bar per stage, on standard error."""
    columns = (
        TextColumn("{task.fields[stage]:>9}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_stderr) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, what: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(what, total=total, stage=stage)
            progress.update(tasks[stage], completed=done, total=total, description=what)

        yield report


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def _plan(recipe: str, settings: list[str] | None, trust_pickle: bool) -> Any:
    from edgegen.library import find_recipe
    from edgegen.plan import make_plan
    from edgegen.recipe import load_recipe

    path = find_recipe(recipe)
    plan = make_plan(load_recipe(path, settings or ()), path.resolve().parent, trust_pickle=trust_pickle)
    if plan.trusted_pickle:
        _stderr.print(f"[yellow]--trust-pickle: {plan.weights} is opened with Python's unpickler; the bundle is marked so[/]")
    return plan


@app.command()
def build(
    recipe: RecipeArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle to write; default NAME.edgegen.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be built; build nothing.")] = False,
    settings: SetOption = None,
    target: Annotated[str | None, typer.Option("--target", help="Also build for a kind of device: a target profile, by name or .toml file.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="The variants that the bundle holds, separated by commas.")] = None,
    until: Annotated[str, typer.Option("--until", help="Stop after this stage: export, calibrate, quantize, compile, measure or pack.")] = "pack",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time the candidates and drop slow ones; without it builds are reproducible.")
    ] = True,
    fit: Annotated[bool, typer.Option("--fit/--no-fit", help="Refuse at once what by its sizes will not fit; an estimate.")] = True,
    cache_dir: CacheOption = None,
    trust_pickle: PickleOption = False,
) -> None:
    """Build a bundle from a recipe: export, calibrate, quantize, compile, measure, pack."""
    from edgegen.errors import nearest
    from edgegen.pipeline import STAGES, Options
    from edgegen.pipeline import build as build_bundle
    from edgegen.workspace import Workspace, check_writable

    if until not in STAGES:
        raise RecipeError(f"--until: no stage {until!r}: {nearest(until, STAGES)}")
    if target is not None:
        path = Path(target).resolve() if target.endswith(".toml") else target
        settings = [*(settings or ()), f"target.profile={path}"]
    if only is not None:
        settings = [*(settings or ()), f"target.variants={json.dumps(only.split(','))}"]
    plan = _plan(recipe, settings, trust_pickle)
    output = output or Path(f"{plan.recipe.name}.edgegen")
    if dry_run:
        for name, program in plan.programs.items():
            _stderr.print(f"program {name}: {len(program.steps)} steps, NFE {sum(program.nfe.values())}")
        _stderr.print(f"variants to try: float32, {', '.join(plan.recipe.quantization.precisions)}; stages: {', '.join(STAGES)}")
        print(output)
        return
    check_writable(output)
    with _bars() as report:
        made = build_bundle(plan, output, Workspace(_cache(cache_dir)), Options(until, measure, fit), report)
    if made == output:
        _verdict(output)
    print(made)


def _verdict(path: Path) -> None:
    """One line per candidate: shipped or not, and why."""
    from edgegen.bundle import open_bundle

    bundle = open_bundle(path)
    shipped = [v.name for v in bundle.manifest.variants]
    for name, verdict in bundle.document("report")["variants"].items():
        place = f"ships (choice {shipped.index(name) + 1})" if name in shipped else "stays out"
        _stderr.print(f"{name:>9} {place}: {verdict['bytes'] / 1e6:.2f} MB; {verdict['why']}", highlight=False)


@app.command()
def export(
    recipe: RecipeArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The ONNX file to write; default NAME.onnx.")] = None,
    settings: SetOption = None,
    cache_dir: CacheOption = None,
    trust_pickle: PickleOption = False,
) -> None:
    """Export a recipe's network to ONNX, compared with torch."""
    from edgegen.pipeline import Options
    from edgegen.pipeline import build as build_bundle
    from edgegen.workspace import Workspace, check_writable, write_atomically

    plan = _plan(recipe, settings, trust_pickle)
    output = output or Path(f"{plan.recipe.name}.onnx")
    check_writable(output)
    with _bars() as report:
        made = build_bundle(plan, output, Workspace(_cache(cache_dir)), Options("export"), report)
    write_atomically(output, (made / "float32.onnx").read_bytes())
    print(output)


@app.command()
def quantize(
    recipe: RecipeArgument,
    precision: Annotated[str, typer.Option("--precision", help="int8, w4a8, w8a16, w4a16, float16 or float8.")] = "int8",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The ONNX file to write; default NAME.PRECISION.onnx.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Measure every layer's effect on the final sample, and choose which stay float.")] = False,
    settings: SetOption = None,
    cache_dir: CacheOption = None,
    trust_pickle: PickleOption = False,
    json_output: JsonOption = False,
) -> None:
    """Quantize a recipe's network for ONNX Runtime and say what became of each layer."""
    from edgegen.errors import BuildError
    from edgegen.pipeline import Options
    from edgegen.pipeline import build as build_bundle
    from edgegen.workspace import Workspace, check_writable, write_atomically

    settings = [*(settings or ()), f'quantization.precisions=["{precision}"]', *(["quantization.search=true"] if search else [])]
    plan = _plan(recipe, settings, trust_pickle)
    output = output or Path(f"{plan.recipe.name}.{precision}.onnx")
    check_writable(output)
    with _bars() as report:
        made = build_bundle(plan, output, Workspace(_cache(cache_dir)), Options("quantize"), report)
    found = json.loads((made / "quantize.json").read_text())
    if precision in found["refused"]:
        raise BuildError(found["refused"][precision])
    write_atomically(output, (made / f"{precision}.onnx").read_bytes())
    document = found["quantization"]
    if json_output:
        _print_json({"output": str(output), **document})
        return
    variant = document["variants"][precision]
    effects = {(row["node"], row["tensor"]): row for row in document.get("sensitivity", [])}
    columns = ["error: weight", "activation", "saves ms"] if effects else []
    table = Table("layer", "operator", "weights", "activations", *columns, "", box=None, pad_edge=False)
    for layer in variant["layers"]:
        bits, activation = layer["weight_bits"], layer["activation_bits"]
        rows = [effects.get((layer["weight"], tensor)) for tensor in ("weight", "activation")]
        cells = [row["error"] if row else "" for row in rows] + [rows[0]["saves_ms"] if rows[0] else ""] if effects else []
        weights = f"float{bits}" if bits > 8 else f"{bits} bits"
        table.add_row(layer["weight"], layer["operator"], weights, f"{activation} bits" if activation else "float", *cells, layer["why"])
    Console().print(table)
    _stderr.print(f"relative error of the final samples: {variant['error']['calibration']} (noise that did not calibrate)", highlight=False)
    print(output)


def _conditions(settings: list[str] | None) -> dict[str, Any]:
    """--set name=value as numbers: one, or a list separated by commas."""
    conditions: dict[str, Any] = {}
    for setting in settings or ():
        name, separator, text = setting.partition("=")
        try:
            values = [float(v) if any(c in v for c in ".eEnN") else int(v) for v in text.split(",")]
        except ValueError:
            values = []
        if not separator or not values:
            raise RuntimeFault(f"--set {setting!r}: expected name=number, or name=number,number,...", Status.BAD_ARGUMENT)
        conditions[name.strip()] = np.asarray(values if len(values) > 1 else values[0])
    return conditions


@app.command()
def run(
    file: BundleArgument,
    seed: Annotated[int, typer.Option("--seed", help="0 .. 2^64 - 1; equal seeds give equal noise on every device.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Pick the program with so many steps.")] = None,
    program: Annotated[str | None, typer.Option("--program", help="Pick a program by name.")] = None,
    settings: ConditionOption = None,
    batch: Annotated[int, typer.Option("--batch", help="Number of samples.")] = 1,
    output: Annotated[Path, typer.Option("-o", "--output", help="out.png (images) or out.npy.")] = Path("out.npy"),
    columns: Annotated[int | None, typer.Option("--columns", min=1, help="Columns of the picture grid.")] = None,
    variant: VariantOption = None,
    rollout: Annotated[
        str | None, typer.Option("--rollout", help="Run a policy in its world: a family of export/ with a simulator.py, or a path of one.")
    ] = None,
    threads: ThreadsOption = 0,
    runtime: RuntimeOption = "python",
    json_output: JsonOption = False,
) -> None:
    """Generate samples from a bundle; or, with --rollout, run a policy in its world and draw its paths."""
    from edgegen.images import save_samples
    from edgegen.workspace import check_writable

    if rollout is not None:
        _roll_out(file, rollout, seed, steps, program, batch, output, variant, threads, runtime, json_output)
        return
    conditions = _conditions(settings)
    check_writable(output)
    with edgegen.load(file, variant=variant, threads=threads, runtime=runtime) as session, _bars() as bar:
        fused = session.runs_fused(steps, batch, program=program)
        on_step = None if fused else lambda done, total, x: bar("run", f"step {done} of {total}", done, total)
        samples = session.generate(seed, steps, batch, program=program, on_step=on_step, **conditions)
        report, sample = session.report, session.bundle.manifest.sample
    save_samples(output, samples, sample, columns=columns)
    figures = {
        "program": report.program, "variant": report.variant, "nfe": dict(report.nfe), "milliseconds": round(report.total_seconds * 1e3, 3),
        "component_milliseconds": {k: round(v * 1e3, 3) for k, v in report.seconds.items()}, "output": str(output),
    }  # fmt: skip
    if json_output:
        _print_json(figures)
        return
    nfe = ", ".join(f"{name} x {n}" for name, n in report.nfe.items())
    _stderr.print(f"{report.program} on {report.variant}: {nfe} evaluations, {figures['milliseconds']:.1f} ms", highlight=False)
    print(output)


def _roll_out(
    file: Path, world: str, seed: int, steps: int | None, program: str | None, episodes: int, output: Path, variant: str | None, threads: int,
    runtime: str, json_output: bool,
) -> None:  # fmt: skip
    """--batch episodes of a policy in a world, the rate of success, and a picture."""
    from edgegen.images import save_picture
    from edgegen.rollout import load_world
    from edgegen.workspace import check_writable

    evaluate = load_world(world)
    check_writable(output)
    with edgegen.load(file, variant=variant, threads=threads, runtime=runtime) as session:
        nfe = 0

        def act(seed: int, **conditions: Any) -> Any:
            nonlocal nfe
            rows = len(next(iter(conditions.values())))
            actions = session.generate(seed, steps, rows, program=program, **conditions)
            nfe = sum(session.report.nfe.values())
            return actions

        success, picture = evaluate(act, episodes, seed)
        name = session.report.program
    save_picture(output, picture)
    rate = float(np.mean(success))
    if json_output:
        _print_json({"program": name, "nfe": nfe, "episodes": episodes, "success": rate, "output": str(output)})
        return
    _stderr.print(f"{name}: {rate:.1%} of {episodes} episodes succeed, {nfe} evaluations per decision", highlight=False)
    print(output)


@app.command()
def tune(
    file: BundleArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle to write; default: FILE itself.")] = None,
    providers: Annotated[list[str] | None, typer.Option("--provider", help="A provider to try too: CUDA, OpenVINO, ... May repeat.")] = None,
    threads: Annotated[str, typer.Option("--threads", help="Thread counts to try, separated by commas; default: 1, 2, 4, ... and all cores.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of three generations for each candidate.")] = 9,
    json_output: JsonOption = False,
) -> None:
    """Time a bundle's candidates on this device and put the fastest first."""
    from edgegen.tuning import tune as tune_bundle
    from edgegen.workspace import check_writable, write_atomically

    output = output or file
    check_writable(output)
    counts = _counts(threads, "--threads") if threads else ()
    with _bars() as bar:
        tuned = tune_bundle(
            file, providers=tuple(providers or ()), threads=counts, rounds=rounds, progress=lambda what, done, total: bar("tune", what, done, total)
        )  # fmt: skip
    write_atomically(output, tuned.data)
    rows = sorted(tuned.times.items(), key=lambda row: row[1])
    if json_output:
        candidates = [{"variant": c.variant, "fused": c.fused, "threads": c.threads, "milliseconds": ms} for c, ms in rows]
        _print_json({"candidates": candidates, "unmeasured": dict(tuned.unmeasured), "output": str(output)})
        return
    table = Table("candidate", "ms", "to the fastest", title="milliseconds, batch 1, measured here", title_justify="left")
    for candidate, ms in rows:
        table.add_row(str(candidate), f"{ms:.3f}", f"{ms / rows[0][1]:.2f}x")
    _stderr.print(table)
    for name, reason in tuned.unmeasured.items():
        _stderr.print(f"{name}: not measured: {reason}", highlight=False)
    print(output)


@app.command(name="compile")
def compile_engines(
    file: BundleArgument,
    target: Annotated[str | None, typer.Option("--target", help="A target profile, by name or .toml file; default: whatever GPU is here.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Build ahead for --target into this folder; needs no GPU.")] = None,
    engines: Annotated[Path | None, typer.Option("--engines", help="Take engines from a folder that -o wrote. They are native code.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Build a bundle's TensorRT engines on this device, verify them and time them; or, with -o, build them ahead for another."""
    from edgegen.compiling import build_ahead, compile_here, take_engines
    from edgegen.targets.profiles import profile_named

    profile = None if target is None else profile_named(target)
    with _bars() as bar:
        if output is not None:
            if profile is None:
                raise RuntimeFault("-o builds engines ahead: say for which device with --target", Status.BAD_ARGUMENT)
            written = build_ahead(file, profile, output, lambda what, done, total: bar("compile", what, done, total))
        else:
            if engines is not None:
                for taken in take_engines(file, engines):
                    _stderr.print(f"took {taken}", highlight=False)
            made = compile_here(file, profile, lambda what, done, total: bar("compile", what, done, total))
    if output is not None:
        if json_output:
            _print_json({"engines": [str(p) for p in written]})
        else:
            print("\n".join(map(str, written)))
        return
    if json_output:
        _print_json({"variants": [{"variant": c.variant, "worst": c.worst, "milliseconds": c.milliseconds} for c in made]})
        return
    table = Table("variant", "ms", "golden, of the tolerance")
    for c in made:
        table.add_row(c.variant, f"{c.milliseconds:.3f}", f"{c.worst:.0%}")
    Console().print(table)


@app.command()
def fuse(
    file: BundleArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The ONNX file to write; default PROGRAM.onnx.")] = None,
    program: Annotated[str | None, typer.Option("--program", help="A program by name; default: the first.")] = None,
    variant: VariantOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples; fixed in the graph.")] = 1,
    loop: Annotated[bool, typer.Option("--loop", help="One Loop for the steps: the file does not grow with them.")] = False,
) -> None:
    """Write a program with its networks as one ONNX file, which runs in ONNX Runtime without edgegen."""
    from edgegen.bundle import open_bundle
    from edgegen.fusing import fused_onnx
    from edgegen.workspace import check_writable, write_atomically

    bundle = open_bundle(file)
    output = output or Path(f"{program or bundle.manifest.programs[0].name}.onnx")
    check_writable(output)
    model = fused_onnx(bundle, program, variant=variant, batch=batch, loop=loop)
    write_atomically(output, model.SerializeToString(deterministic=True))
    for tensor in model.graph.input:
        shape = [d.dim_value for d in tensor.type.tensor_type.shape.dim]
        _stderr.print(f"input {tensor.name} {shape}", highlight=False)
    print(output)


@app.command()
def inspect(file: BundleArgument, json_output: JsonOption = False) -> None:
    """Say what is in a bundle: programs, conditions, variants, what was measured, members with their hashes."""
    from edgegen.bundle import open_bundle
    from edgegen.inspection import describe, facts

    bundle = open_bundle(file)
    if json_output:
        _print_json(facts(bundle))
        return
    describe(bundle, Console())


@app.command()
def verify(
    file: BundleArgument,
    variant: VariantOption = None,
    threads: ThreadsOption = 0,
    runtime: RuntimeOption = "python",
    json_output: JsonOption = False,
) -> None:
    """Check every hash, then run the golden vectors on this device. Exit 1 if any differs."""
    from edgegen.bundle import open_bundle
    from edgegen.runtime.session import open_session

    bundle = open_bundle(file)
    names = [variant] if variant is not None else [v.name for v in bundle.manifest.variants]
    rows: list[dict[str, Any]] = []
    elsewhere: dict[str, str] = {}
    for name in names:
        try:
            session = open_session(bundle, variant=name, threads=threads, runtime=runtime)
        except RuntimeFault as e:
            if e.code not in (Status.PROVIDER_MISSING, Status.NO_VARIANT) or variant is not None:
                raise
            elsewhere[name] = str(e)
            continue
        with session:
            for program, _, distance, tolerance in session.self_test():
                rows.append({"variant": name, "program": program, "rmse": distance.rmse, "tolerance": tolerance, "ok": distance.rmse <= tolerance})
    if len(elsewhere) == len(names):
        raise RuntimeFault(f"{file}: no variant runs here: {'; '.join(elsewhere.values())}", Status.NO_VARIANT)
    for name, reason in elsewhere.items():
        _stderr.print(f"{name}: not run here: {reason}", highlight=False)
    if json_output:
        _print_json({"members": len(bundle.table), "golden": rows, "not_run_here": elsewhere})
    else:
        table = Table("variant", "program", "RMSE", "tolerance", "")
        for row in rows:
            table.add_row(row["variant"], row["program"], f"{row['rmse']:.2e}", f"{row['tolerance']:.0e}", "ok" if row["ok"] else "DIFFERS")
        Console().print(table)
        print(f"{len(bundle.table)} members: every SHA-256 agrees")
    if not all(row["ok"] for row in rows):
        raise RuntimeFault(f"{file}: golden vectors differ on this device; do not ship this variant here", Status.BACKEND_FAILED)
    if not json_output:
        print(file)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The reference: FILE.edgegen, FILE.edgegen:VARIANT, FILE.onnx, or a TensorRT engine.")],
    b: Annotated[str, typer.Argument(help="What is compared with it, in the same forms.")],
    layers: Annotated[bool, typer.Option("--all-layers/--outputs-only", help="Every tensor that both have, or only the outputs.")] = True,
    snr: Annotated[float, typer.Option("--snr", help="Name the first tensor below so many decibels.")] = 40.0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="Relative RMSE that outputs may have, default 1e-3; with --samples the PSNR in dB that samples must have, default B's own gate.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="Rows of the table: the tensors of the lowest SNR; 0 for all.")] = 25,
    program: Annotated[str | None, typer.Option("--program", help="Whose evaluations: a program by name; default: the first.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of noise, conditions and drawn inputs.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Number of samples.")] = 1,
    inputs: Annotated[Path | None, typer.Option("--inputs", help="An .npz file with the inputs of one evaluation, in place of a program's.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Run B in this engine: onnxruntime, tensorrt-rtx or tensorrt.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Compare so many final samples instead, and x after each step.")] = 0,
    stepwise: Annotated[bool, typer.Option("--stepwise", help="With --samples: step by step even where a variant ships fused.")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="With --samples: a PNG to write, with A, B and |B - A| of the worst.")] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="With --samples: an ONNX network from samples to features, for the Frechet distance.")
    ] = None,
    quality: Annotated[str | None, typer.Option("--quality", help="With --samples: file.py:function(samples, conditions) -> number.")] = None,
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Run two networks on equal inputs and say, tensor by tensor, where B parts from A; or compare final samples. Exit 3 if they differ."""
    if samples:
        if inputs is not None or engine is not None or batch != 1:
            raise RuntimeFault("--samples makes samples from seeds, one at a time: leave out --inputs, --engine and --batch", Status.BAD_ARGUMENT)
        _compare_samples(a, b, samples, seed, program, tolerance, stepwise, sheet, features, quality, threads, json_output)
        return
    if stepwise or sheet is not None or features is not None or quality is not None:
        raise RuntimeFault("--stepwise, --sheet, --features and --quality are of final samples: say how many with --samples", Status.BAD_ARGUMENT)
    from edgegen.comparing import compare as compare_networks
    from edgegen.comparing import open_side, read_inputs

    tolerance = 1e-3 if tolerance is None else tolerance
    given = None if inputs is None else read_inputs(inputs)
    with _bars() as bar:
        found = compare_networks(
            open_side(a), open_side(b, engine), program=program, seed=seed, batch=batch, inputs=given, layers=layers, threads=threads,
            progress=lambda done, total: bar("compare", f"evaluation {done} of {total}", done, total),
        )  # fmt: skip
    first, output = found.first_below(snr), found.worst_output
    agree = output.rmse <= tolerance
    if json_output:
        _print_json(
            {
                "a": a, "b": b, "program": found.program, "evaluations": found.evaluations, "agree": agree, "tolerance": tolerance, "snr_db": snr,
                "first_below": None if first is None else first.to_json(), "worst_output": output.to_json(),
                "tensors": [row.to_json() for row in found.rows], "unlike": list(found.unlike),
            }
        )  # fmt: skip
    else:
        _print_comparison(found, snr, top)
    if not agree:
        message = f"the outputs differ by a relative RMSE of {output.rmse:.1e}, most in {output}; {tolerance:g} is allowed (--tolerance)"
        raise GateError(message)
    if not json_output:
        print(f"the outputs agree: relative RMSE {output.rmse:.1e}, {tolerance:g} is allowed")


def _compare_samples(
    a: str, b: str, samples: int, seed: int, program: str | None, tolerance: float | None, stepwise: bool, picture: Path | None,
    features: Path | None, quality: str | None, threads: int, json_output: bool,
) -> None:  # fmt: skip
    """`edgegen compare --samples`: the table of steps, the final samples, and whether they are near enough."""
    from edgegen.comparing import open_side
    from edgegen.samples import compare_samples, feature_distance, gate_of, sheet
    from edgegen.search import load_quality
    from edgegen.workspace import check_writable, write_atomically

    judge = None if quality is None else load_quality(quality, Path.cwd())
    if picture is not None:
        check_writable(picture)
    first, second = open_side(a), open_side(b)
    with _bars() as bar:
        found = compare_samples(
            first, second, samples=samples, seed=seed, program=program, stepwise=stepwise, threads=threads,
            progress=lambda done, total: bar("compare", f"sample {done} of {total}", done, total),
        )  # fmt: skip
    extra: dict[str, Any] = {}
    if features is not None:
        extra["frechet"], extra["features"] = feature_distance(features, found.a, found.b)
    if judge is not None:
        extra["quality"] = {side: float(judge(rows, found.conditions)) for side, rows in (("a", found.a), ("b", found.b))}
    if picture is not None:
        assert first.bundle is not None
        data, extra["amplified"] = sheet(found, first.bundle.manifest.sample)
        write_atomically(picture, data)
    source, least, most = "--tolerance", tolerance, None
    if least is None and second.bundle is not None:
        gate = gate_of(second.bundle)
        source = f"the gate of {second.label}"
        least, most = (None, None) if gate is None else (gate.psnr_db, gate.relative_error)
    agree = (least is None or found.final.psnr_db >= least) and (most is None or found.error <= most)
    asked = f"{found.final.psnr_db:.2f} dB, nothing is asked: the bundle holds no recipe; see --tolerance"
    if least is not None:
        asked = f"{found.final.psnr_db:.2f} dB, {least:g} dB is asked by {source}"
    if most is not None:
        asked += f"; relative error {found.error:.4g}, {most:g} is allowed"
    if json_output:
        bounds = {"tolerance_db": least, "tolerance_error": most, "tolerance_of": source}
        _print_json({"a": first.label, "b": second.label, "agree": agree} | bounds | found.to_json() | extra)
    else:
        _print_samples(found, first.label, second.label, extra, picture)
    if not agree:
        raise GateError(f"the samples differ: {asked}")
    if not json_output:
        print(f"the samples agree: {asked}")


def _print_samples(found: Any, a: str, b: str, extra: dict[str, Any], picture: Path | None) -> None:
    """What a comparison of samples found."""
    print(f"{len(found.a)} samples of {found.program}, seeds {found.seed} to {found.seed + len(found.a) - 1}; A is {a}, B is {b}")
    if found.steps:
        table = Table("step", "network at", "x at", "x, PSNR dB", "x, error", "prediction, error", box=None, pad_edge=False)
        for row in found.steps:
            at = "" if row.evaluated is None else f"{row.evaluated:g}"
            prediction = "" if row.prediction is None else f"{row.prediction:.2e}"
            table.add_row(str(row.step), at, f"{row.time:g}", f"{row.psnr_db:.1f}", f"{row.error:.2e}", prediction)
        Console().print(table)
    elif any(found.fused):
        which = " and ".join(side for side, fused in zip("AB", found.fused, strict=True) if fused)
        print(f"{which} ran fused, as shipped: one network for all steps, so only final samples are compared (--stepwise for the steps)")
    ones = {name: np.atleast_1d(rows[found.worst]) for name, rows in found.conditions.items()}
    settings = "".join(f" --set {name}={','.join(f'{v:g}' for v in rows)}" for name, rows in ones.items() if rows.ndim == 1)
    print(
        f"final: {found.final.psnr_db:.2f} dB; relative error {found.error:.3e} in the mean, {found.errors.max():.3e} at most (--seed "
        f"{found.seed + found.worst}{settings})"
    )
    if "frechet" in extra:
        print(f"Frechet distance of A's and B's samples: {extra['frechet']:.4g}, in {extra['features']} features")
    if "quality" in extra:
        print(f"quality: {extra['quality']['a']:.6g} of A, {extra['quality']['b']:.6g} of B")
    if picture is not None:
        print(f"{picture}: the worst samples from the top; A, B, and |B - A| times {extra['amplified']:g}")


def _print_comparison(found: Any, snr: float, top: int) -> None:
    """The table of a comparison, and where it first goes below `snr` decibels."""
    first, rows = found.first_below(snr), found.lowest(top, snr)
    source = f"{found.evaluations} evaluations of {found.program}" if found.program else "one evaluation"
    shown = "" if len(rows) == len(found.rows) else f", {len(rows)} of {len(found.rows)} tensors (--top 0 for all)"
    several = len({row.component for row in found.rows}) > 1
    table = Table("tensor", "node", "shape", box=None, pad_edge=False, title=f"{source}{shown}", title_justify="left")
    for heading in ("max abs", "max rel", "SNR dB", "at"):
        table.add_column(heading, no_wrap=True)
    table.add_column("")
    for row in rows:
        marks = [
            word
            for word, is_it in (("output", row.output), (f"first below {snr:g}", row is first), ("worst", row is found.worst and row.snr_db < np.inf))
            if is_it
        ]
        at = f"{row.evaluation}" if row.time is None else f"t {row.time:g}"
        node, shape = (f"{row.node} {row.operator}" if row.node >= 0 else row.operator), "x".join(map(str, row.shape)) or "1"
        name = escape(f"{row.component}/{row.tensor}" if several else row.tensor)
        table.add_row(name, node, shape, f"{row.max_abs:.1e}", f"{row.max_rel:.1e}", f"{row.snr_db:.1f}", at, ", ".join(marks))
    Console().print(table)
    if found.unlike:
        print(f"of different shapes in A and B, and left out: {', '.join(found.unlike)}")
    output = found.worst_output
    if len(output.curve) > 1:
        names = [str(i) if time is None else f"{time:g}" for i, (time, _) in enumerate(output.curve, 1)]
        print(f"{output.tensor}, dB by time: {', '.join(f'{n}: {snr_db:.1f}' for n, (_, snr_db) in zip(names, output.curve, strict=True))}")
    print(f"no tensor is below {snr:g} dB" if first is None else f"the first tensor below {snr:g} dB is {first}")


@app.command()
def report(
    file: BundleArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    samples: Annotated[int, typer.Option("--samples", min=0, help="Samples of each variant to make and compare; 0 runs no network.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the first sample.")] = 0,
    threads: ThreadsOption = 0,
) -> None:
    """Write what was measured of a bundle, with samples of each variant that runs here, as one HTML file."""
    from edgegen.bundle import open_bundle
    from edgegen.report.page import check_jinja, draw_samples, report_page
    from edgegen.workspace import check_writable, write_atomically

    check_jinja()
    check_writable(output)
    bundle, drawn = open_bundle(file), None
    if samples:
        with _bars() as bar:
            drawn = draw_samples(
                bundle, samples=samples, seed=seed, threads=threads, progress=lambda what, done, total: bar("report", what, done, total)
            )  # fmt: skip
    write_atomically(output, report_page(bundle, drawn).encode())
    print(output)


@app.command()
def bench(
    file: BundleArgument,
    program: Annotated[str | None, typer.Option("--program", help="A program by name; default: the first.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    warmup: Annotated[int, typer.Option("--warmup", min=0)] = 5,
    iters: Annotated[int, typer.Option("--iters", min=1)] = 50,
    variant: VariantOption = None,
    threads: ThreadsOption = 0,
    runtime: RuntimeOption = "python",
    json_output: JsonOption = False,
) -> None:
    """Time a bundle on this device: percentiles, per component, and the share outside the networks."""
    from edgegen.bundle import open_bundle
    from edgegen.inspection import bench_variant

    bundle = open_bundle(file)
    names = [variant] if variant is not None else [v.name for v in bundle.manifest.variants]
    with _bars() as bar:
        rows = [
            bench_variant(bundle, name, program, batch, warmup, iters, threads, runtime, lambda d, t, name=name: bar(name, "timing", d, t))  # type: ignore[misc]
            for name in names
        ]
    if json_output:
        _print_json(rows)
        return
    table = Table(
        "variant", "program", "p50", "p90", "p99", "networks", "outside", "RSS MiB", title=f"milliseconds, batch {batch}", title_justify="left"
    )
    for r in rows:
        table.add_row(
            r["variant"], r["program"], f"{r['p50_ms']:.2f}", f"{r['p90_ms']:.2f}", f"{r['p99_ms']:.2f}",
            f"{sum(r['component_ms'].values()):.2f}", f"{r['outside']:.1%}", f"{r['peak_rss_mib']:.0f}",
        )  # fmt: skip
    Console().print(table)
    print(file)


@app.command()
def doctor(
    subject: Annotated[str | None, typer.Argument(metavar="[RECIPE_OR_BUNDLE]", help="Say whether building it, or running it, fits here.")] = None,
    settings: SetOption = None,
    cache_dir: CacheOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say what is here, what is missing and how to get it, and what fits. Exit 4 if bundles cannot run here, or it will not fit."""
    from edgegen.doctor import examine, tables

    found = examine(_cache(cache_dir), subject, settings or ())
    if json_output:
        _print_json(found.to_json())
    else:
        for table in tables(found):
            Console().print(table)
    if not found.ok:
        raise RuntimeFault("bundles cannot run here: ONNX Runtime is not there; install it with: pip install 'edgegen[cpu]'", Status.BACKEND_MISSING)
    if found.fit is not None and not found.fit.fits:
        _stderr.print(f"error: {found.fit.sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(4)
    if found.fit is not None and not json_output:
        print(found.fit.sentence)


@app.command()
def solvers(
    compare: Annotated[Path | None, typer.Option("--compare", help="Draw error against evaluations of every solver on this bundle's model.")] = None,
    fits: Annotated[Path | None, typer.Option("--for", help="Say which solvers fit this bundle's process, and why others do not.")] = None,
    names: Annotated[str | None, typer.Option("--solvers", help="With --compare: only these, separated by commas.")] = None,
    budgets: Annotated[str, typer.Option("--nfe", help="With --compare: budgets of evaluations without guidance, e.g. 4,6,8,10.")] = "4,6,8,10,15,20",
    samples: Annotated[int, typer.Option("--samples", min=1, help="With --compare: samples per measurement.")] = 16,
    output: Annotated[Path, typer.Option("-o", "--output", help="With --compare: the picture.")] = Path("solvers.png"),
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """List the solvers: order, evaluations per step, history, noise, source; or compare them on a bundle's own model."""
    if compare is not None:
        _compare(compare, names, budgets, samples, output, threads, json_output)
        return
    from edgegen.solvers.table import solver_table, why_not

    rows, reasons = solver_table(), {}
    if fits is not None:
        from edgegen.bundle import open_bundle
        from edgegen.search import Subject

        with Subject(open_bundle(fits), samples=1, threads=threads) as subject:
            reasons = why_not(subject.process, subject.recipe.model.prediction, subject.recipe.programs[0].steps[0])
    if json_output:
        _print_json([{name: getattr(r, name) for name in r.__slots__} | ({"why_not": reasons[r.name]} if reasons else {}) for r in rows])
        return
    if reasons:
        table = Table("solver", "fits", "why not")
        for r in rows:
            reason = reasons[r.name] or ("" if r.order else "made for networks that were trained for it")
            table.add_row(r.name, "no" if reasons[r.name] else "yes" if r.order else "perhaps", reason)
    else:
        table = Table("solver", "order", "NFE/step", "history", "noise", "grid", "source", box=None, pad_edge=False)
        for r in rows:
            order, noise = (str(r.order) if r.order else "-"), ("yes" if r.stochastic else "no")
            table.add_row(r.name, order, f"{r.nfe_per_step:g}", str(r.history), noise, r.grid, r.source)
    Console().print(table)


def _counts(text: str, option: str) -> list[int]:
    """Whole numbers >= 1 from "4,6,8" or "4..12"."""
    low, dots, high = text.partition("..")
    try:
        counts = list(range(int(low), int(high) + 1)) if dots else [int(v) for v in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise RuntimeFault(f"{option} {text!r}: expected whole numbers >= 1, as 4,6,8 or 4..12", Status.BAD_ARGUMENT)
    return counts


def _compare(file: Path, names: str | None, budgets: str, samples: int, output: Path, threads: int, json_output: bool) -> None:
    from edgegen.bundle import open_bundle
    from edgegen.report.curves import check_matplotlib, draw_comparison
    from edgegen.search import Subject
    from edgegen.search import compare as compare_solvers
    from edgegen.workspace import check_writable

    counts = _counts(budgets, "--nfe")
    check_matplotlib()
    check_writable(output)
    bundle = open_bundle(file)
    with Subject(bundle, samples=samples, threads=threads) as subject, _bars() as bar:
        found = compare_solvers(
            subject, names.split(",") if names else None, counts, lambda done, total: bar("compare", f"run {done} of {total}", done, total)
        )
        columns = [n * subject.per_step for n in counts]
    draw_comparison(output, found, f"{bundle.manifest.name}: solvers against the model's own many-step solution")
    if json_output:
        _print_json([{"solver": c.solver, "steps": c.steps, "nfe": c.nfe, "error": c.error} for c in found])
        return
    table = Table("solver", *(f"NFE {n}" for n in columns), box=None, pad_edge=False)
    by_solver: dict[str, list[Any]] = {}
    for c in found:
        by_solver.setdefault(c.solver, []).append(c)
    for name, runs in sorted(by_solver.items(), key=lambda item: min(c.error for c in item[1])):
        within = [max((c for c in runs if c.nfe <= n), key=lambda c: c.nfe, default=None) for n in columns]
        table.add_row(name, *("" if c is None else f"{c.error:.4f}" for c in within))
    Console().print(table)
    print(output)


@app.command()
def search(
    file: BundleArgument,
    steps: Annotated[str, typer.Option("--steps", help="Numbers of evaluations without guidance: 4..12 or 4,6,8.")] = "4..12",
    names: Annotated[str, typer.Option("--solvers", help="Solvers to try, separated by commas.")] = "ddim,dpmpp_2m,dpmpp_3m,unipc,deis,ipndm,heun",
    quality: Annotated[str | None, typer.Option("--quality", help="file.py:function(samples, conditions) -> number, higher is better.")] = None,
    refine: Annotated[int, typer.Option("--refine", min=0, help="Trials of the search for times, per number of evaluations.")] = 40,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples per trial.")] = 16,
    write: Annotated[Path | None, typer.Option("--write", help="Append the winner to this recipe as a further program.")] = None,
    within: Annotated[float, typer.Option("--within", help="The winner has the fewest evaluations whose error is at most this.")] = 0.05,
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Find the solver, steps and times for a bundle's model: error against its own many-step solution, or your quality function."""
    from edgegen.bundle import open_bundle
    from edgegen.search import Subject, load_quality
    from edgegen.search import search as search_sampling
    from edgegen.search.sampling import winner_of, with_program
    from edgegen.workspace import write_atomically

    counts = _counts(steps, "--steps")
    bundle = open_bundle(file)
    with Subject(bundle, samples=samples, threads=threads) as subject, _bars() as bar:
        chosen = quality or subject.recipe.search.quality
        judge = load_quality(chosen, Path.cwd() if quality or write is None else write.parent) if chosen else None
        best = search_sampling(
            subject, names.split(","), counts, quality=judge, refine=refine,
            progress=lambda done, total: bar("search", f"trial {done} of {total}", done, total),
        )  # fmt: skip
        winner = winner_of(best, within)
        if write is not None:
            write_atomically(write, with_program(write.read_text(encoding="utf-8"), winner, subject.recipe).encode())
    if json_output:
        _print_json({"best": [c.to_json() for c in best], "winner": winner.to_json()})
        return
    table = Table("NFE", "solver", "steps", "error", "quality", "times")
    for c in best:
        score = "" if c.quality is None else f"{c.quality:.5g}"
        times = ", ".join(f"{t:.4g}" for t in c.times) if c.times else "the solver's own"
        table.add_row(str(c.nfe), c.solver, str(c.steps), f"{c.error:.4f}", score, times)
    Console().print(table)
    _stderr.print(f"winner: {winner.solver}, {winner.steps} steps, {winner.nfe} evaluations, error {winner.error:.4f}", highlight=False)
    if write is not None:
        print(write)


def _version(show: bool) -> None:
    if show:
        print(f"edgegen {edgegen.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say which stages were found and which were made.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s", handlers=[_Lines()])


class _Interrupted(BaseException):
    """Ctrl-C, under a name that Typer does not turn into its own "Aborted!"."""


def _interrupt(signum: int, frame: object) -> None:
    raise _Interrupted


def main() -> None:
    """The console script: run the command, print errors as one line, exit with the documented code."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(standalone_mode=True)
    except EdgegenError as e:
        _stderr.print(f"error: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(_exit_code(e))
    except _Interrupted:
        _stderr.print("interrupted; completed stages are kept, the same command goes on from there")
        sys.exit(130)
    except MemoryError:
        _stderr.print("error: out of memory; try a smaller batch or calibration set", style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
