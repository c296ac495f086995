"""The corpora that the test programs of runtimes/c/tests/ read: records of a name, the status that is expected, and a bundle's bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from edgegen.errors import Status
from tests.attacks import bundles, programs
from tests.attacks.fused import FUSED, fused_bundle
from tests.attacks.networks import ENCODINGS, NETWORKS, QUANTIZED, constant, field, varint, whole, with_encoding, with_network

__all__ = ["everything", "write_corpus"]

Record = tuple[str, bytes, int]


def write_corpus(path: Path, records: Iterable[Record]) -> Path:
    """Write a corpus; see runtimes/c/tests/kit.h."""
    with path.open("wb") as f:
        for name, data, status in records:
            f.write(struct.pack("<IiQ", len(name.encode()), status, len(data)) + name.encode() + data)
    return path


def everything(tiny_bundle: Path) -> list[Record]:
    """Every malformation of the format and of networks, and what is sound."""
    records: list[Record] = [*bundles.CASES, *programs.CASES, ("the tiny bundle", tiny_bundle.read_bytes(), Status.OK)]
    for name, (change, _) in NETWORKS.items():
        records.append((f"network: {name}", with_network(tiny_bundle, change), Status.INCONSISTENT))
    for name, encode in ENCODINGS.items():
        records.append((f"encoding: {name}", with_encoding(tiny_bundle, encode), Status.INCONSISTENT))
    records += [(f"network: fused: {name}", data, Status.INCONSISTENT) for name, (data, _) in FUSED.items()]
    records.append(("network: fused, sound", fused_bundle(), Status.OK))
    packed = with_encoding(tiny_bundle, lambda m: whole(m, graph=constant(dims=field(1, varint(1) + varint(2)))))
    records.append(("encoding: sound, with packed sizes", packed, Status.OK))
    records.append(("network: sound, of four bits", with_network(tiny_bundle, QUANTIZED), Status.OK))
    return records
