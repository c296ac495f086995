"""NVIDIA GPUs of this machine, from what the driver tells without loading CUDA: nvidia-smi, /proc/driver/nvidia, a Jetson's device tree."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gpu", "board", "nvidia_gpus"]

_QUERY = "name,compute_cap,memory.total,driver_version"
_TEGRA = {"nvidia,tegra234": ("Jetson Orin", "SM87"), "nvidia,tegra264": ("Jetson Thor", "SM110")}
"""Chip in a Jetson's device tree -> its name and compute capability (Thor's as CUDA 13 counts; CUDA 12 said SM101)."""
_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """compute_capability: as SM86; "" where the driver does not say. memory_bytes: its own; 0 where it shares the machine's, or is not known."""

    name: str
    compute_capability: str = ""
    memory_bytes: int = 0
    driver: str = ""


def board(root: Path = Path("/")) -> str:
    """The model that a board's device tree names ("NVIDIA Jetson Orin Nano Developer Kit", "Raspberry Pi 5 ..."); "" on a PC."""
    return _device_tree(root, "model")[0]


def nvidia_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs that can be seen here; empty if there are none or their driver is not loaded. Takes up to a second where there is a driver."""
    found = _by_smi()
    if any(gpu.compute_capability for gpu in found):
        return found
    return _by_device_tree(root) or found or _by_proc(root)


def _device_tree(root: Path, name: str) -> list[str]:
    """The strings of a property at the root of the device tree."""
    with contextlib.suppress(OSError):
        return [part for part in (root / "proc/device-tree" / name).read_bytes().decode(errors="replace").split("\0") if part] or [""]
    return [""]


def _by_smi() -> tuple[Gpu, ...]:
    """What nvidia-smi lists; empty where it is not there, or cannot talk to the driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(_gpu(*row) for row in rows if len(row) == 4)


def _gpu(name: str, capability: str, mebibytes: str, driver: str) -> Gpu:
    """A row of nvidia-smi; a cell that it cannot fill is [N/A]."""
    digits = capability.replace(".", "")
    return Gpu(
        name, f"SM{digits}" if digits.isdigit() else "", int(mebibytes) << 20 if mebibytes.isdigit() else 0, driver if "[" not in driver else ""
    )


def _by_device_tree(root: Path) -> tuple[Gpu, ...]:
    """A Jetson's own GPU, which shares the machine's memory."""
    for chip in _device_tree(root, "compatible"):
        if chip in _TEGRA:
            name, capability = _TEGRA[chip]
            return (Gpu(board(root) or name, capability),)
    return ()


def _by_proc(root: Path) -> tuple[Gpu, ...]:
    """Names alone, from the loaded driver."""
    names = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            names += [line.partition(":")[2].strip() for line in path.read_text(errors="replace").splitlines() if line.startswith("Model:")]
    return tuple(Gpu(name) for name in names)
