"""What `edgegen doctor` finds: what is there, what cannot be loaded, what is missing and how to get it; and whether a recipe or a bundle fits.

Nothing is believed from a list: each execution provider opens a tiny network, in a process of its own, which may crash.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen import __version__
from edgegen.bundle import Provider, open_bundle
from edgegen.errors import BuildError, EdgegenError, RuntimeFault
from edgegen.fit import Need, build_need, free_disk, free_memory, run_need, shortage
from edgegen.targets.nvidia import Gpu, board, nvidia_gpus
from edgegen.targets.profiles import architecture, profile_named, profile_names
from edgegen.timing import machine

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["INSTRUCTIONS", "PROVIDERS", "Examination", "Fit", "Part", "Profile", "examine", "fit_of", "how_to_get", "tables", "try_provider"]

PROVIDERS = ("CUDA", "TensorRT", "NvTensorRTRTX", "OpenVINO", "XNNPACK", "CoreML", "QNN")
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that multiply and add int8 numbers several at a time, as Linux names them; the first three of x86, the others of ARM."""
_TRY = "import sys; from edgegen.doctor import try_provider; sys.exit(try_provider(sys.argv[1]))"
_SECONDS = 120.0
_LIBRARY = re.compile(r"(\S+\.(?:so|dll|dylib)[\w.]*): cannot open shared object file")


@dataclass(frozen=True, slots=True)
class Part:
    """Something that edgegen can use. state: "there", "broken" (installed, and cannot be loaded) or "missing".

    note: why it is broken, or more about it. get: how to get it, where it is not there.
    """

    kind: str
    name: str
    state: str
    version: str = ""
    note: str = ""
    get: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """A target profile, and whether it runs here; if not, why."""

    name: str
    runs: bool
    why: str


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a build of a recipe, or a run of a bundle, fits. memory_free, disk_free: bytes; None if unknown. lacks: what is too little, or ""."""

    subject: str
    kind: str
    need: Need
    memory_free: int | None
    disk_free: int
    lacks: str

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return not self.lacks

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        verb = {"build": "building", "run": "running"}[self.kind]
        if self.lacks:
            return f"{verb} {self.subject} will not fit: it needs {self.lacks}"
        memory = "how much is free is unknown" if self.memory_free is None else f"{_megabytes(self.memory_free)} are free"
        disk = f", and {_megabytes(self.need.disk)} of disk ({_megabytes(self.disk_free)} are free)" if self.need.disk else ""
        sure = "" if self.need.sure else "; perhaps more: the shapes of its weights are not known before it is exported"
        return f"{verb} {self.subject} fits: it needs about {_megabytes(self.need.peak)} of memory ({memory}){disk}{sure}"


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything found. Sizes are in bytes; None is unknown. ok: ONNX Runtime is there and opens a network, so bundles run here."""

    ok: bool
    machine: str
    board: str
    system: str
    architecture: str
    instructions: tuple[str, ...]
    memory: int | None
    memory_free: int | None
    cache: str
    cache_bytes: int
    disk_free: int
    gpus: tuple[Gpu, ...]
    parts: tuple[Part, ...]
    profiles: tuple[Profile, ...]
    fit: Fit | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value = asdict(self)
        if self.fit is not None:
            value["fit"] |= {"fits": self.fit.fits, "sentence": self.fit.sentence}
        return value


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"


def examine(cache: Path, subject: str | None = None, settings: Sequence[str] = ()) -> Examination:
    """Look at this machine; takes seconds, most of them to open networks. cache: the folder of stages. subject, settings: see `fit_of`."""
    fit = None if subject is None else fit_of(subject, cache, settings)
    gpus = nvidia_gpus()
    engine = _engine()
    providers = _providers(engine)
    parts = (Part("python", "Python", "there", platform.python_version()), Part("python", "edgegen", "there", __version__), *_packages())
    parts += (engine, *providers, *_tensorrts(), _native(), _gpu_part(gpus))
    ok = any(p.name == "CPU" and p.state == "there" for p in providers)
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) if cache.is_dir() else 0
    return Examination(
        ok, machine(), board(), f"{platform.system()} {platform.release()}", architecture(), _instructions(), _memory(), free_memory(), str(cache),
        size, free_disk(cache), gpus, parts, tuple(_profiles(gpus)), fit,
    )  # fmt: skip


def fit_of(subject: str, cache: Path, settings: Sequence[str] = ()) -> Fit:
    """Whether a bundle (a path) can run here, or a recipe (a path, or a family of export/) be built, with its stages in `cache`.

    settings: overrides of a recipe. Raises the errors of `edgegen inspect` and `edgegen build`. A checkpoint that needs --trust-pickle is not opened.
    """
    path = Path(subject)
    if path.suffix == ".edgegen" or (path.is_file() and path.suffix != ".toml"):
        kind, need = "run", run_need(open_bundle(path))
    else:
        kind, need = "build", _build_need(subject, settings)
    memory, disk = free_memory(), free_disk(cache)
    short = shortage(need, memory, disk)
    return Fit(subject, kind, need, memory, disk, "" if short is None else short[1])


def _build_need(subject: str, settings: Sequence[str]) -> Need:
    from edgegen.library import find_recipe
    from edgegen.plan import make_plan
    from edgegen.recipe import load_recipe

    path = find_recipe(subject)
    return build_need(make_plan(load_recipe(path, settings), path.resolve().parent, trust_pickle=True))


def _packages() -> Iterator[Part]:
    """Python packages, without importing them: torch takes seconds."""
    for name in ("numpy", "onnx", "torch", "onnxscript"):
        if importlib.util.find_spec(name) is not None:
            yield Part("python", name, "there", next((d.version for d in metadata.distributions(name=name)), ""))
        elif name in ("torch", "onnxscript"):
            yield Part("python", name, "missing", note="for building from PyTorch, not for running bundles", get="pip install 'edgegen[torch]'")
        else:
            yield Part("python", name, "missing", get=f"pip install {name}")


def _engine() -> Part:
    from edgegen.targets.onnxruntime import onnxruntime_version

    try:
        return Part("engine", "ONNX Runtime", "there", onnxruntime_version())
    except RuntimeFault as e:
        note = "" if "onnxruntime" not in sys.modules or sys.modules["onnxruntime"] is None else str(e.__cause__)
        return Part("engine", "ONNX Runtime", "missing", note=note, get="pip install 'edgegen[cpu]'  (or 'edgegen[gpu]')")


def _providers(engine: Part) -> tuple[Part, ...]:
    """The CPU, what else this ONNX Runtime lists of those that edgegen's profiles name, and how to get the others."""
    listed: set[str] = set()
    if engine.state == "there":
        import onnxruntime

        listed = {name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()}
    found = []
    for name in ("CPU", *PROVIDERS) if listed else PROVIDERS:
        if name.lower() in listed:
            why = _try(name)
            found.append(Part("provider", name, "broken" if why else "there", note=why, get=_repair(name) if why else ""))
        else:
            found.append(Part("provider", name, "missing", get=how_to_get(name)))
    return tuple(found)


def try_provider(name: str) -> str | None:
    """Open a network of one Add with an execution provider, and run it. Returns why it cannot; None if it did. May end the process."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from edgegen.targets.onnxruntime import open_engine

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    one = numpy_helper.from_array(np.ones((1, 4), np.float32), "one")
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "add", [x], [y], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = open_engine(model.SerializeToString(), "a network of one addition", 1, providers=() if name == "CPU" else (Provider(name),))
        found = session.run(["y"], {"x": np.zeros((1, 4), np.float32)})[0]
    except Exception as e:  # ONNX Runtime's exceptions have no common public base
        return " ".join(str(e).split())
    return None if np.array_equal(found, np.ones((1, 4))) else f"1 + 0 is {found.flat[0]} there"


def _try(name: str) -> str:
    """`try_provider` in another process; "" if it worked. A missing library is named: what the provider printed says which."""
    try:
        done = subprocess.run([sys.executable, "-c", _TRY, name], capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not open a network within {_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    library = _LIBRARY.search(done.stderr)
    if library:
        return f"{library[1]} cannot be loaded"
    if done.returncode < 0:
        return f"the process that tried it ended with signal {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def how_to_get(name: str, system: str | None = None, processor: str | None = None) -> str:
    """The line that brings an execution provider, or why there is none. system: as platform.system(); processor: as `architecture`."""
    system, processor = system or platform.system(), processor or architecture()
    pc = processor == "x86_64" and system in ("Linux", "Windows")
    replace = "pip uninstall onnxruntime, then pip install "
    if name in ("CUDA", "TensorRT"):
        if processor == "aarch64" and system == "Linux":
            return "on a Jetson: NVIDIA's onnxruntime-gpu for your JetPack (PyPI has none for aarch64)"
        needs = "CUDA and cuDNN" if name == "CUDA" else "CUDA, cuDNN and TensorRT"
        return f"{replace}'edgegen[gpu]'; it needs {needs}" if pc else f"there is none for {system} on {processor}"
    if name == "NvTensorRTRTX":
        if system == "Windows" and processor == "x86_64":
            return f"{replace}onnxruntime-trt-rtx"
        return "no package for this system has it built in (plugins are not loaded); or the engine tensorrt-rtx: pip install 'edgegen[tensorrt]'"
    if name == "OpenVINO":
        return f"{replace}onnxruntime-openvino" if pc else f"PyPI has none for {system} on {processor}; build ONNX Runtime with --use_openvino"
    if name == "XNNPACK":
        return "no package of PyPI has it; on Android: onnxruntime-android; else build ONNX Runtime with --use_xnnpack"
    if name == "CoreML":
        return "pip install --force-reinstall onnxruntime" if system == "Darwin" else "on macOS and iOS only"
    if name == "QNN":
        if system == "Windows" and processor == "aarch64":
            return f"{replace}'onnxruntime-qnn<2'"
        return "on Qualcomm's processors; build ONNX Runtime with --use_qnn (onnxruntime-qnn from 2.0 on is a plugin, which is not loaded)"
    return "build ONNX Runtime with it"


def _repair(name: str) -> str:
    """What a provider that is there and cannot be loaded usually lacks."""
    return {
        "CUDA": "install NVIDIA's driver, and CUDA and cuDNN of the version that this ONNX Runtime names",
        "TensorRT": "install NVIDIA's driver, and CUDA, cuDNN and TensorRT of the version that this ONNX Runtime names",
        "NvTensorRTRTX": "install NVIDIA's driver, and the TensorRT-RTX that this ONNX Runtime names",
    }.get(name, "install the package that brought it again")


def _tensorrts() -> Iterator[Part]:
    """The modules tensorrt and tensorrt_rtx, really imported."""
    from edgegen.targets.tensorrt.module import MODULES, find, load, version

    for engine, module in MODULES.items():
        try:
            find(engine)
        except BuildError as e:
            yield Part("engine", module, "missing", get=str(e).partition("install it with: ")[2])
            continue
        try:
            load(engine)
            yield Part("engine", module, "there", version(engine))
        except BuildError as e:
            yield Part("engine", module, "broken", note=str(e.__cause__), get="install NVIDIA's driver and CUDA of the version that it names")


def _native() -> Part:
    from edgegen.runtime.native import Library, find_library

    try:
        path = find_library()
    except EdgegenError:
        return Part("engine", "libedgegen", "missing", note="for runtime='native'", get="make native, in a checkout")
    try:
        found = int(Library(path).c.eg_abi_version())
    except EdgegenError as e:
        return Part("engine", "libedgegen", "broken", note=str(e), get="make native, in a checkout")
    return Part("engine", "libedgegen", "there", f"interface {found >> 16}.{found & 0xFFFF}", str(path))


def _gpu_part(gpus: Sequence[Gpu]) -> Part:
    if not gpus:
        return Part("device", "NVIDIA GPU", "missing", get="none is seen: no nvidia-smi, no driver in /proc, no Jetson")
    return Part("device", "NVIDIA GPU", "there", f"driver {gpus[0].driver}" if gpus[0].driver else "", "; ".join(map(_described, gpus)))


def _described(gpu: Gpu) -> str:
    capability = f" ({gpu.compute_capability})" if gpu.compute_capability else ""
    return f"{gpu.name}{capability}" + (f", {gpu.memory_bytes / 1e9:.1f} GB" if gpu.memory_bytes else "")


def _instructions(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of `INSTRUCTIONS` that every core has."""
    with contextlib.suppress(OSError):
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
        cores = [set(line.partition(":")[2].split()) for line in lines if line.split(":")[0].strip() in ("flags", "Features")]
        return tuple(name for name in INSTRUCTIONS if cores and all(name in flags for flags in cores))
    return ()


def _memory() -> int | None:
    """Bytes of memory of this machine."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _profiles(gpus: Sequence[Gpu]) -> Iterator[Profile]:
    for name in profile_names():
        runs, why = profile_named(name).runs_here(gpus)
        yield Profile(name, runs, why)


_COLOURS = {"there": "green", "broken": "red", "missing": "yellow"}


def tables(found: Examination) -> Iterator[RenderableType]:
    """What a person reads: the machine, the parts, the profiles. `Fit.sentence` is the verdict."""
    from rich.table import Table
    from rich.text import Text

    device = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _machine_rows(found):
        device.add_row(name, value)
    yield device
    parts = Table("", "state", "version", "", title="what edgegen can use", title_justify="left")
    for p in found.parts:
        parts.add_row(p.name, Text(p.state, _COLOURS[p.state]), p.version, Text(": ".join(filter(None, (p.note, p.get)))))
    yield parts
    profiles = Table("target", "runs here", "why not", title="target profiles", title_justify="left")
    for profile in found.profiles:
        profiles.add_row(profile.name, "yes" if profile.runs else "no", Text(profile.why))
    yield profiles


def _machine_rows(found: Examination) -> Iterator[tuple[str, str]]:
    yield "machine", ", ".join(filter(None, (found.board, found.machine, found.architecture, found.system)))
    yield "int8 instructions", ", ".join(found.instructions) or f"none of {', '.join(INSTRUCTIONS)}"
    free = "unknown" if found.memory_free is None else f"{found.memory_free / 1e9:.1f} GB"
    yield "free memory", free + (f" of {found.memory / 1e9:.1f} GB" if found.memory else "")
    yield "free disk", f"{found.disk_free / 1e9:.1f} GB at {found.cache} (the cache there: {found.cache_bytes / 1e6:.1f} MB, delete it at any time)"
