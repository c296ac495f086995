"""Will it fit? What a build, or a run, needs of memory and disk, from sizes alone, beside what is free here. Nothing is loaded.

The estimates are meant as upper bounds. The factors were measured (docs/targets.md): peak resident memory of builds of 0.7 to 420 MB of weights,
ONNX Runtime 1.32, torch 2.13. What sizes cannot tell is not counted: attention's matrices of scores, and weights that a network makes itself.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgegen.bundle import Bundle
from edgegen.errors import BuildError, ExportError, Status
from edgegen.judging import AT_A_TIME
from edgegen.onnx_export.component import source_file
from edgegen.plan import Plan
from edgegen.quantize.scheme import SCHEMES
from edgegen.quantizing import HESSIAN_BYTES
from edgegen.targets.choose import AT_ONCE, thread_counts

__all__ = ["Need", "build_need", "check_fit", "free_disk", "free_memory", "run_need", "shortage"]

Shape = tuple[int, ...]

_MB = 10**6
_TORCH, _NO_TORCH = 700 * _MB, 200 * _MB
"""Libraries that a build loads: 460 MB with torch and its exporter, 100 MB without."""
_COPIES, _COPIES_PER_PRECISION = 11, 2
"""Of the weights, at the peak of a build (torch's own, ONNX's, its checker's, ONNX Runtime's, of every variant): 9.8 to 11.5 with int8."""
_WATCHED = 3.2
"""Of the watched tensors, while calibrating: two batches at once, in an arena that grows by doubling: 2.6 to 3.1."""
_LIVE = 6
"""Of the widest layer's input and output, while the gate's samples are drawn: 5."""
_CONTENDER, _CONTENDER_COPIES, _AFTER_BUILD = 130 * _MB, 3.2, 5
"""Of a process that is timed: its libraries, and copies of the weights (1.5 to 3.1); copies that the build's own process still holds then (4.5)."""
_RUN, _RUN_COPIES = 150 * _MB, 3.2
"""Of running a bundle: libraries (100 MB), and copies of the file (2.6)."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. memory: peak of a build's process, or of a run. measuring: of all processes while candidates are timed; 0 if none are.

    disk: the stages' cache and the bundle. weights: of the network as float32. sure: whether the weights' shapes could be read.
    """

    memory: int
    measuring: int
    disk: int
    weights: int
    sure: bool

    @property
    def peak(self) -> int:
        """The most memory at any time, in bytes."""
        return max(self.memory, self.measuring)


def build_need(plan: Plan, *, measured: bool = True) -> Need:
    """What `edgegen build` needs. measured: with its candidates timed. Raises ExportError for a weights file that cannot be read."""
    shapes, nbytes = _weights(plan)
    variants = 1 + len(plan.recipe.quantization.precisions)
    torch = source_file(plan.recipe.model.source, plan.folder)[1] is not None
    base = _TORCH if torch else _NO_TORCH
    copies = _COPIES + _COPIES_PER_PRECISION * (variants - 1)
    memory = base + copies * nbytes + max(_activations(plan, shapes), _rounding(plan, shapes))
    timed = min(variants * _forms(plan) * (1 if plan.recipe.target.threads else len(thread_counts())), AT_ONCE)
    measuring = base + _AFTER_BUILD * nbytes + timed * int(_CONTENDER + _CONTENDER_COPIES * nbytes)
    disk = (2 + 2 * variants) * nbytes + (1 + variants) * _MB  # export, quantize, compile; the bundle
    return Need(memory, measuring if measured else 0, disk, nbytes, shapes is not None)


def run_need(bundle: Bundle) -> Need:
    """What running a bundle needs, one sample at a time. The file is there, so no disk."""
    size = len(bundle.data)
    return Need(int(_RUN + _RUN_COPIES * size), 0, 0, size, True)


def _forms(plan: Plan) -> int:
    """In how many forms the default program is timed: stepwise and fused, or one of them."""
    return 2 if plan.recipe.target.form == "auto" else 1


def _weights(plan: Plan) -> tuple[list[Shape] | None, int]:
    """Shapes of the network's weights (None if they cannot be known without opening a pickle, or running its code), and bytes as float32."""
    path, function = source_file(plan.recipe.model.source, plan.folder)
    if function is None:
        shapes = _onnx_shapes(path)
        return shapes, max(path.stat().st_size, _float32_bytes(shapes))
    if plan.weights is None:
        return None, 0
    if plan.weights.suffix == ".safetensors":
        shapes = _safetensors_shapes(plan.weights)
        return shapes, _float32_bytes(shapes)
    return None, plan.weights.stat().st_size


def _float32_bytes(shapes: Sequence[Shape]) -> int:
    return 4 * sum(math.prod(shape) for shape in shapes)


def _onnx_shapes(path: Path) -> list[Shape]:
    """Shapes of an ONNX file's constants; those that lie outside it are not opened."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as e:
        raise ExportError(f"{path}: not an ONNX file: {e}") from e
    return [tuple(t.dims) for t in model.graph.initializer]


def _safetensors_shapes(path: Path) -> list[Shape]:
    """Shapes from the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            return [tuple(f.get_slice(name).get_shape()) for name in f.keys()]  # noqa: SIM118  (it is no dict)
    except (OSError, SafetensorError) as e:
        raise ExportError(f"{path}: not a safetensors file: {e}") from e


def _activations(plan: Plan, shapes: Sequence[Shape] | None) -> int:
    """Bytes of activations at the peak: of the tensors that calibration watches, or of the gate's samples, whichever is more.

    Every layer is counted at the sample's full resolution. 0 where shapes are not known.
    """
    if not shapes:
        return 0
    recipe = plan.recipe
    positions = _positions(tuple(n for n in plan.signature.inputs[0].shape[1:] if isinstance(n, int)))
    branches = 2 if any(s.guidance not in (None, 1.0) and s.batched_guidance for s in recipe.programs) else 1
    gate = _LIVE * max(map(_channels, shapes)) * min(recipe.gate.samples, AT_A_TIME)
    watched = 0.0
    if any(SCHEMES[p].activation_bits for p in recipe.quantization.precisions):
        ranks = {"Conv": (3, 4, 5), "Gemm": (2,), "MatMul": (2,)}
        among = {rank for operator in recipe.quantization.operators for rank in ranks.get(operator, ())}
        rows = min(recipe.calibration.batch, recipe.calibration.samples)
        watched = _WATCHED * sum(_channels(shape) for shape in shapes if len(shape) in among) * rows
    return int(4 * positions * branches * max(gate, watched))


def _rounding(plan: Plan, shapes: Sequence[Shape] | None) -> int:
    """Bytes of second moments while weights are rounded: those that are held at once, or of the widest layer, three times, for factors of it."""
    options = plan.recipe.quantization
    if not shapes or options.weights == "nearest" or not any(SCHEMES[p].weight_bits for p in options.precisions):
        return 0
    # of a matrix either side may be summed over; a table is no layer
    widths = [math.prod(shape[1:]) if len(shape) != 2 else min(max(shape), 4 * min(shape)) for shape in shapes if len(shape) > 1]
    squares = [8 * width**2 for width in widths]
    return min(HESSIAN_BYTES, sum(squares)) + 3 * max(squares, default=0)


def _positions(shape: Shape) -> int:
    """Pixels of an image, tokens of a sequence: a sample's elements without its channels, which are the first or the last axis."""
    return max(math.prod(shape[1:]), math.prod(shape[:-1])) if len(shape) > 1 else 1


def _channels(shape: Shape) -> int:
    """Channels of the input and the output of the layer that has a weight of this shape; 0 for a bias. A table is counted by its width."""
    if len(shape) < 2:
        return 0
    if len(shape) == 2:
        return min(sum(shape), 5 * min(shape))
    return 2 * shape[0] if shape[1] == 1 else shape[0] + shape[1]  # one input channel: depthwise, or the first


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a new process can have here: MemAvailable, or what this process's control groups leave if that is less; None if unknown."""
    free = [_meminfo(root), *_cgroup_rooms(root)]
    known = [n for n in free if n is not None]
    return max(min(known), 0) if known else None


def _meminfo(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_rooms(root: Path) -> list[int]:
    """Limit minus use of each control group (v2 or v1) of this process and those above it. Use: without cached files, which make room."""
    rooms = []
    for folder, limit, use in _cgroups(root):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max": none
            cached = 0
            with contextlib.suppress(OSError):
                fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
            rooms.append(most - int((folder / use).read_text()) + cached)
    return rooms


def _cgroups(root: Path) -> list[tuple[Path, str, str]]:
    """Folders of this process's control groups, with their files' names; inside a container, where its own is mounted as the top one, that too."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    found = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = top / path.lstrip("/")
        found += [(folder, *names) for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return found


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be made."""
    return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free


def shortage(need: Need, memory: int | None, disk: int) -> tuple[Status, str] | None:
    """What there is too little of: a status, and a sentence with the numbers; None if it fits. memory, disk: bytes free."""
    if memory is not None and need.memory > memory:
        return Status.NO_MEMORY, _lacking(need.memory, "memory", memory)
    if memory is not None and need.measuring > memory:
        return Status.NO_MEMORY, f"{_lacking(need.measuring, 'memory', memory)} while its candidates are timed; --no-measure needs {_mb(need.memory)}"
    if need.disk > disk:
        return Status.NO_SPACE, _lacking(need.disk, "disk", disk)
    return None


def _lacking(needed: int, what: str, free: int) -> str:
    return f"about {_mb(needed)} of {what}, there are {_mb(free)}"


def _mb(nbytes: int) -> str:
    return f"{math.ceil(nbytes / _MB):,} MB"


def check_fit(plan: Plan, cache_folder: Path, *, measured: bool = True) -> None:
    """Raise BuildError (NO_MEMORY, NO_SPACE) if a build will not fit this machine. Reads headers only: milliseconds.

    cache_folder: of the stages; it need not exist. measured: with the candidates timed.
    """
    short = shortage(build_need(plan, measured=measured), free_memory(), free_disk(cache_folder))
    if short is None:
        return
    status, sentence = short
    advice = {
        Status.NO_MEMORY: "lower calibration.batch or gate.samples, end other programs, or build on a larger machine",
        Status.NO_SPACE: f"free some at {cache_folder}, or give another place with --cache-dir",
    }
    raise BuildError(f"this build will not fit: it needs {sentence}; {advice[status]}; --no-fit starts all the same", status)
