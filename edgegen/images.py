"""Samples as files: a PNG grid, written with the standard library alone, or a .npy array."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import RuntimeFault, Status
from edgegen.spec import SampleSpec
from edgegen.workspace import write_atomically

__all__ = ["png_bytes", "save_picture", "save_samples"]

_COLOUR_TYPE = {1: 0, 3: 2}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(samples: npt.NDArray[Any], low: float, high: float, *, columns: int | None = None, scale: int = 1) -> bytes:
    """A PNG of float[N, C, H, W] samples (C = 1 grey, 3 RGB; low is black, high is full) in a grid of `columns`, each pixel scale x scale."""
    n, channels, height, width = samples.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    levels = np.clip(np.rint((samples.astype(np.float64) - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
    sheet = np.zeros((rows * columns, channels, height, width), np.uint8)
    sheet[:n] = levels
    picture = sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    lines = np.zeros((picture.shape[0], 1 + picture.shape[1] * channels), np.uint8)
    lines[:, 1:] = picture.reshape(picture.shape[0], -1)
    header = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], 8, _COLOUR_TYPE[channels], 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def save_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write uint8[H, W, 3] to `path` (.png) atomically."""
    if path.suffix != ".png":
        raise RuntimeFault(f"{path}: a picture is written as .png; give such a name with -o", Status.BAD_ARGUMENT)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise RuntimeFault(f"expected a picture uint8[H, W, 3], found {picture.dtype.name}{list(picture.shape)}", Status.BAD_SHAPE)
    write_atomically(path, png_bytes(picture.transpose(2, 0, 1)[np.newaxis], 0.0, 255.0))


def save_samples(path: Path, samples: npt.NDArray[Any], spec: SampleSpec, *, columns: int | None = None) -> None:
    """Write samples to `path` atomically: .npy for any, .png for images (small ones are enlarged four times).

    Raises RuntimeFault for another suffix, or .png of what is no image; BuildError where the file cannot be written.
    """
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, samples, allow_pickle=False)
        data = buffer.getvalue()
    elif path.suffix == ".png":
        if spec.kind != "image":
            raise RuntimeFault(f"{path}: this bundle's samples are arrays of shape {list(spec.shape)}; write them as .npy", Status.BAD_ARGUMENT)
        data = png_bytes(samples, spec.low, spec.high, columns=columns, scale=4 if max(spec.shape[1:]) <= 64 else 1)
    else:
        raise RuntimeFault(f"{path}: cannot write {path.suffix or 'a file without suffix'}; give a .png or .npy", Status.BAD_ARGUMENT)
    write_atomically(path, data)
