"""Write a bundle: header, manifest, members at multiples of 64, zeros between. The same inputs give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from edgegen import canonical
from edgegen.bundle.layout import HEADER, HEADER_BYTES, MAGIC, MAX_MANIFEST, MAX_MEMBERS, MEMBER_NAME, VERSION, aligned
from edgegen.bundle.manifest import Manifest
from edgegen.errors import BundleError, Status
from edgegen.workspace import write_atomically

__all__ = ["bundle_bytes", "write_bundle"]


def _manifest_bytes(manifest: Manifest, members: Mapping[str, bytes]) -> bytes:
    """The manifest with its member table. Offsets depend on the manifest's own length, so they are settled by repetition."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    guess = 0
    while True:
        table, offset = [], aligned(HEADER_BYTES + guess)
        for name in sorted(members):
            table.append({"name": name, "offset": offset, "nbytes": len(members[name]), "sha256": hashes[name]})
            offset = aligned(offset + len(members[name]))
        data = canonical.encode({**manifest.to_json(), "members": table})
        if aligned(HEADER_BYTES + len(data)) == aligned(HEADER_BYTES + guess):
            return data
        guess = max(guess, len(data))


def bundle_bytes(manifest: Manifest, members: Mapping[str, bytes]) -> bytes:
    """The whole file. Raises BundleError: a bad member name, too many or empty members, or a manifest above 1 MiB."""
    for name, data in members.items():
        if not MEMBER_NAME.fullmatch(name):
            raise BundleError(f"member name {name!r} is not [a-z0-9_][a-z0-9_.-]*, at most 64 characters", Status.BAD_TABLE)
        if not data:
            raise BundleError(f"member {name!r} is empty", Status.BAD_TABLE)
    if manifest.members() != set(members):
        raise BundleError(f"manifest and members differ: {sorted(manifest.members() ^ set(members))}", Status.INCONSISTENT)
    text = _manifest_bytes(manifest, members)
    if len(text) > MAX_MANIFEST or len(members) > MAX_MEMBERS:
        raise BundleError(f"manifest of {len(text)} bytes with {len(members)} members: at most {MAX_MANIFEST} and {MAX_MEMBERS}", Status.LIMIT)
    body = bytearray(text)
    for name in sorted(members):
        body += bytes(aligned(HEADER_BYTES + len(body)) - HEADER_BYTES - len(body))
        body += members[name]
    total = HEADER_BYTES + len(body)
    header = HEADER.pack(MAGIC, *VERSION, 0, HEADER_BYTES, len(text), len(members), total, hashlib.sha256(text).digest())
    return header + bytes(body)


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> None:
    """Write the bundle atomically: `path` holds what it held before, or the whole new bundle. Errors: see `write_atomically`."""
    write_atomically(path, bundle_bytes(manifest, members))
