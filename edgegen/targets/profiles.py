"""Target profiles: what is known of a kind of device before anything was measured on it. One TOML file each, in profiles/ or the user's own.

A profile says what to try there (engine, providers, precisions, threads), never what is fast: that is measured on the device.
"""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgegen.errors import BuildError, RecipeError, RuntimeFault, nearest
from edgegen.targets.nvidia import Gpu, nvidia_gpus

__all__ = ["ARCHITECTURES", "PRECISIONS", "PROVIDERS", "TargetProfile", "architecture", "host_profile", "profile_named", "profile_names"]

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "float8", "int4", "w4a8", "w8a16")
PROVIDERS = (
    "ACL", "ArmNN", "CANN", "CUDA", "CoreML", "DML", "DNNL", "MIGraphX", "NNAPI", "NvTensorRTRTX", "OpenVINO", "QNN", "RKNPU", "ROCM", "TensorRT",
    "VitisAI", "WebGPU", "XNNPACK",
)  # fmt: skip
"""Execution providers of ONNX Runtime by their short names (runtimes/FORMAT.md, section 3), without the CPU, which is always the last."""
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
"""What systems call a processor's architecture -> its name in a profile."""
_HOSTS = {"x86_64": "cpu-x86", "aarch64": "cpu-arm64"}
_FOLDER = Path(__file__).with_suffix("")


class TargetProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of device. docs/targets.md describes each key.

    name: of its file. compute_capability: of an NVIDIA GPU, as "SM86". providers: of ONNX Runtime, in order of preference, before the CPU.
    precisions: candidates, in the order in which they are tried. threads: of the engine, counts to try, 0 for one per core. memory_mb: megabytes
    (10^6 bytes) that the device has at most; None where that differs from one device of the kind to the next.
    """

    summary: str
    engine: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    architecture: Literal["x86_64", "aarch64", "any"]
    precisions: Annotated[tuple[str, ...], Meta(min_length=1)] = ("float32",)
    threads: Annotated[tuple[Annotated[int, Meta(ge=0, le=1024)], ...], Meta(min_length=1)] = (0,)
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    compute_capability: Annotated[str, Meta(pattern=r"^SM[0-9]{2,3}$")] | None = None
    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    name: str = ""

    def runs_here(self, gpus: Sequence[Gpu] | None = None) -> tuple[bool, str]:
        """Whether this machine is such a device and has the engine; if not, why. gpus: what `nvidia_gpus` found; None looks now."""
        here = architecture()
        if self.architecture not in ("any", here):
            return False, f"it needs a processor of architecture {self.architecture}, this one is {here}"
        why = _no_provider(self.providers) if self.engine == "onnxruntime" else _no_tensorrt(self, nvidia_gpus() if gpus is None else gpus)
        return not why, why


def architecture() -> str:
    """This machine's architecture, by its name in a profile; or as the system calls it."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine.lower(), machine)


def _no_provider(providers: Sequence[str]) -> str:
    """Why ONNX Runtime does not serve a profile here; "" if it does. It can without any, or with one of the providers."""
    from edgegen.targets.onnxruntime import onnxruntime_version

    try:
        version = onnxruntime_version()
    except RuntimeFault as e:
        return str(e)
    import onnxruntime

    there = {name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()}
    if not providers or any(p.lower() in there for p in providers):
        return ""
    return f"ONNX Runtime {version} here has no execution provider {' or '.join(providers)}"


def _no_tensorrt(profile: TargetProfile, gpus: Sequence[Gpu]) -> str:
    """Why a TensorRT engine does not serve a profile here; "" if it does."""
    from edgegen.targets.tensorrt.module import find

    try:
        find(profile.engine)
    except BuildError as e:
        return str(e)
    if not gpus:
        return "no NVIDIA GPU is seen here, or its driver is not loaded"
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    if profile.compute_capability is None or not capabilities or profile.compute_capability in capabilities:
        return ""
    return f"it is for GPUs of {profile.compute_capability}, here is {' and '.join(f'{g.name} ({g.compute_capability})' for g in gpus)}"


def profile_names() -> tuple[str, ...]:
    """The profiles that edgegen carries."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def profile_named(name: str | Path) -> TargetProfile:
    """The profile of that name, or of a file of the user's own: a path that ends in .toml. Raises RecipeError."""
    path = Path(name)
    if path.suffix == ".toml":
        return _read(path)
    if name not in profile_names():
        raise RecipeError(
            f"no target profile {str(name)!r}: expected the path of a .toml file (docs/targets.md), or {nearest(str(name), profile_names())}"
        )
    return _read(_FOLDER / f"{name}.toml")


def host_profile() -> TargetProfile:
    """The profile of this machine's own processor. Raises RecipeError where there is none for its architecture."""
    here = architecture()
    if here not in _HOSTS:
        raise RecipeError(
            f"no target profile for a processor of architecture {here!r}: expected {' or '.join(_HOSTS)}; "
            f'write a file of your own with architecture = "any" (docs/targets.md) and give its path'
        )
    return profile_named(_HOSTS[here])


def _read(path: Path) -> TargetProfile:
    """A profile from its file. Raises RecipeError that names the file, the key and what was expected."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise RecipeError(f"no target profile at {path}; write one (docs/targets.md), or name one of {', '.join(profile_names())}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {e}") from e
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path}: not valid TOML: {e}") from e
    keys = [f.name for f in msgspec.structs.fields(TargetProfile) if f.name != "name"]
    for key in data:
        if key not in keys:
            raise RecipeError(f"{path}: unknown key {key!r}: {nearest(key, keys)}")
    try:
        profile = msgspec.convert(data | {"name": path.stem}, TargetProfile)
    except msgspec.ValidationError as e:
        raise RecipeError(f"{path}: {_explained(str(e), data)}") from e
    _check(profile, path)
    return profile


def _explained(message: str, data: dict[str, Any]) -> str:
    """msgspec's message with the key's path as the user wrote it; a wrong choice with the known ones."""
    where = re.search(r"`\$\.(\w+)`", message)
    if where and "Invalid enum value" in message:
        key = where[1]
        choices = next(f.type for f in msgspec.structs.fields(TargetProfile) if f.name == key).__args__
        return f"{key} is {data[key]!r}: {nearest(str(data[key]), choices)}"
    return message.replace("`$.", "`")


def _check(profile: TargetProfile, path: Path) -> None:
    """What types alone cannot say."""
    for key, known in (("precisions", PRECISIONS), ("providers", PROVIDERS)):
        values: tuple[str, ...] = getattr(profile, key)
        for value in values:
            if value not in known:
                raise RecipeError(f"{path}: {key} has {value!r}: {nearest(value, known)}")
    for key in ("precisions", "providers", "threads"):
        values = getattr(profile, key)
        if len(set(values)) != len(values):
            raise RecipeError(f"{path}: {key} names one value twice: {', '.join(map(str, values))}")
    if profile.engine == "tensorrt-rtx" and profile.compute_capability is None:
        raise RecipeError(f'{path}: engine tensorrt-rtx builds for a known GPU: add compute_capability, such as "SM86"')
