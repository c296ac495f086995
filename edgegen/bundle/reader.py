"""Read a bundle. Any bytes end in a `Bundle` or in a BundleError with an exact status; there is no unverified way in.

Order of the checks: size, header, limits, manifest hash, JSON, canonical form, member table, padding, member hashes,
cross-checks. runtimes/FORMAT.md, section 6.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen import canonical
from edgegen.bundle.layout import ALIGNMENT, HEADER, HEADER_BYTES, MAGIC, MAX_MANIFEST, MAX_MEMBERS, MEMBER_NAME, VERSION, aligned
from edgegen.bundle.manifest import Manifest
from edgegen.errors import BundleError, ProgramError, Status
from edgegen.program import Eval, Program, program_from_json
from edgegen.program.shapes import MAX_ELEMENTS, check_types, infer_shapes
from edgegen.spec import keys

__all__ = ["Bundle", "Member", "open_bundle", "parse_bundle"]


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie, and their SHA-256."""

    offset: int
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was checked. Owns its bytes: the file may change or go."""

    manifest: Manifest
    programs: Mapping[str, Program]
    table: Mapping[str, Member]
    data: bytes
    origin: str

    def member(self, name: str) -> bytes:
        """The bytes of a member."""
        entry = self.table[name]
        return self.data[entry.offset : entry.offset + entry.nbytes]

    def document(self, name: str) -> Any:
        """A JSON document of the manifest, such as "recipe" or "report"; None if the bundle has none of that name."""
        member = self.manifest.documents.get(name)
        return None if member is None else canonical.decode(self.member(member))


class _Reader:
    def __init__(self, data: bytes, origin: str) -> None:
        self.data = data
        self.origin = origin

    def fail(self, code: Status, message: str) -> BundleError:
        return BundleError(f"{self.origin}: {message}", code)

    def header(self) -> tuple[bytes, int]:
        """The manifest's bytes and the number of members."""
        data = self.data
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise self.fail(Status.NOT_A_BUNDLE, f"not an edgegen bundle: it starts with {data[:8]!r}, expected {MAGIC!r}")
        if len(data) < HEADER_BYTES:
            raise self.fail(Status.TRUNCATED, f"{len(data)} bytes, a header alone has {HEADER_BYTES}; copy the file again")
        _, major, minor, flags, offset, length, members, total, digest = HEADER.unpack_from(data)
        if (major, minor) != VERSION:
            raise self.fail(Status.BAD_VERSION, f"format {major}.{minor}, this edgegen reads {VERSION[0]}.{VERSION[1]}; update edgegen")
        if flags != 0 or offset != HEADER_BYTES:
            raise self.fail(Status.BAD_HEADER, f"flags {flags:#x} and manifest offset {offset}, expected 0 and {HEADER_BYTES}")
        if not 2 <= length <= MAX_MANIFEST or not 1 <= members <= MAX_MEMBERS:
            raise self.fail(Status.LIMIT, f"manifest of {length} bytes, {members} members; at most {MAX_MANIFEST} and {MAX_MEMBERS}")
        if len(data) < total:
            raise self.fail(Status.TRUNCATED, f"{len(data)} bytes of {total}; copy the file again")
        if len(data) > total or HEADER_BYTES + length > total:
            raise self.fail(Status.CORRUPT, f"{len(data)} bytes, the header says {total} with a manifest of {length}")
        text = data[HEADER_BYTES : HEADER_BYTES + length]
        if hashlib.sha256(text).digest() != digest:
            raise self.fail(Status.CORRUPT, "the manifest's SHA-256 differs from the header's; the file is damaged")
        return text, members

    def table(self, entries: Any, count: int, start: int) -> dict[str, Member]:
        """The member table: contiguous from the manifest to the end of the file, each entry named once."""
        if not isinstance(entries, list) or len(entries) != count:
            raise self.fail(Status.BAD_TABLE, f"the header says {count} members, the table has another number")
        table: dict[str, Member] = {}
        end, previous = start, ""
        for entry in entries:
            entry = keys(entry, f"{self.origin}: member table", {"name": str, "offset": int, "nbytes": int, "sha256": str})
            name, offset, nbytes = entry["name"], entry["offset"], entry["nbytes"]
            if not MEMBER_NAME.fullmatch(name) or name <= previous:
                raise self.fail(Status.BAD_TABLE, f"member {name!r}: not a member name, or not in sorted order")
            if offset != aligned(end) or nbytes < 1 or offset + nbytes > len(self.data):
                raise self.fail(
                    Status.BAD_TABLE, f"member {name!r}: {nbytes} bytes at {offset}; expected at least 1 at {aligned(end)}, a multiple of {ALIGNMENT}"
                )
            if any(self.data[end:offset]):
                raise self.fail(Status.CORRUPT, f"the padding before member {name!r} is not zero")
            table[name] = Member(offset, nbytes, entry["sha256"])
            end, previous = offset + nbytes, name
        if end != len(self.data):
            raise self.fail(Status.BAD_TABLE, f"{len(self.data) - end} bytes after the last member")
        return table

    def read(self) -> Bundle:
        text, count = self.header()
        value = canonical.decode(text)
        if not isinstance(value, dict) or "members" not in value:
            raise self.fail(Status.BAD_MANIFEST, "the manifest is not an object with a member table")
        table = self.table(value.pop("members"), count, HEADER_BYTES + len(text))
        view = memoryview(self.data)
        for name, m in table.items():
            if hashlib.sha256(view[m.offset : m.offset + m.nbytes]).hexdigest() != m.sha256:
                raise self.fail(Status.CORRUPT, f"member {name!r}: its SHA-256 differs from the manifest's; the file is damaged")
        manifest = Manifest.from_json(value)
        if manifest.members() != set(table):
            raise self.fail(Status.INCONSISTENT, f"manifest and members differ: {sorted(manifest.members() ^ set(table))}")
        for name, signature in manifest.components.items():
            for t in (*signature.inputs, *signature.outputs):
                if math.prod(n for n in t.shape if isinstance(n, int)) > MAX_ELEMENTS:
                    raise self.fail(Status.INCONSISTENT, f"component {name!r}: {t} has more than {MAX_ELEMENTS} elements per sample")
        programs: dict[str, Program] = {}
        bundle = Bundle(manifest, programs, table, self.data, self.origin)
        programs.update(self.programs(bundle))
        self.golden(bundle)
        return bundle

    def programs(self, bundle: Bundle) -> dict[str, Program]:
        """The verified programs, each fitting the components and conditions of the manifest."""
        manifest, programs = bundle.manifest, {}
        for entry in manifest.programs:
            program = program_from_json(canonical.decode(bundle.member(entry.member)))
            for component in program.nfe:
                if component not in manifest.components:
                    raise self.fail(Status.INCONSISTENT, f"program {entry.name!r} evaluates {component!r}, which the bundle does not hold")
            _check_evaluations(program, manifest, f"{self.origin}: program {entry.name!r}")
            conditions = {c.name for c in manifest.conditions}
            missing = [i.name for i in program.inputs if i.kind == "condition" and i.name not in conditions]
            draws = [i.kind for i in program.inputs].count("noise")
            if missing or draws > 1 or (draws == 0 and not program.states) or "sample" not in program.outputs:
                expected = "expected one noise input (none is needed with states), an output `sample` and known conditions"
                raise self.fail(Status.INCONSISTENT, f"program {entry.name!r}: {expected}")
            _check_shapes(program, manifest, self.origin)
            programs[entry.name] = program
        return programs

    def golden(self, bundle: Bundle) -> None:
        """Golden vectors have the size of one float32 sample."""
        expected = 4 * math.prod(bundle.manifest.sample.shape)
        for golden in (g for variant in bundle.manifest.variants for g in variant.golden):
            found = bundle.table[golden.member].nbytes
            if found != expected:
                raise self.fail(Status.INCONSISTENT, f"golden vector {golden.member!r} has {found} bytes, expected {expected}")


def _check_evaluations(program: Program, manifest: Manifest, where: str) -> None:
    for instruction in program.instructions:
        if isinstance(instruction, Eval):
            signature = manifest.components[instruction.component]
            inputs, outputs = {t.name for t in signature.inputs}, {t.name for t in signature.outputs}
            if set(instruction.inputs) != inputs or not set(instruction.outputs) <= outputs:
                raise BundleError(f"{where} calls {instruction.component!r} with other tensors than its signature's", Status.INCONSISTENT)


def _check_shapes(program: Program, manifest: Manifest, origin: str) -> None:
    """Every register fits its readers in dtype and shape, none is too large, and the sample has the manifest's shape."""
    inputs = {name: shape for name, (_, shape) in manifest.inputs(program).items()}
    try:
        check_types(program, {c.name: c.dtype for c in manifest.conditions}, manifest.components)
        sample = infer_shapes(program, inputs, manifest.tails())["sample"]
    except ProgramError as e:
        raise BundleError(f"{origin}: {e}", Status.INCONSISTENT) from e
    if sample != manifest.sample.shape:
        message = f"program {program.name!r} makes a sample of shape {list(sample)}, the manifest says {list(manifest.sample.shape)}"
        raise BundleError(f"{origin}: {message}", Status.INCONSISTENT)


def parse_bundle(data: bytes, origin: str = "bundle") -> Bundle:
    """The bundle in `data`. Raises BundleError with the status of the first check that fails; programs' faults are BAD_PROGRAM."""
    try:
        return _Reader(data, origin).read()
    except ProgramError as e:
        raise BundleError(f"{origin}: {e}", Status.BAD_PROGRAM) from e


def open_bundle(path: Path | str) -> Bundle:
    """Read and check the bundle at `path`. Reads the file once into memory; it must be a regular file."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise BundleError(f"{path}: not a regular file", Status.CANNOT_OPEN)
            head = f.read(HEADER_BYTES)
            data = head + f.read() if head[: len(MAGIC)] == MAGIC else head
    except OSError as e:
        raise BundleError(f"{path}: cannot be opened: {e.strerror}", Status.CANNOT_OPEN) from e
    return parse_bundle(data, str(path))
