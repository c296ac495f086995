"""The fixed numbers of the format: header fields, alignment, limits. runtimes/FORMAT.md, section 1."""

from __future__ import annotations

import re
import struct

__all__ = [
    "ALIGNMENT",
    "FORMAT",
    "HEADER",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_MANIFEST",
    "MAX_MEMBERS",
    "MEMBER_NAME",
    "VERSION",
    "aligned",
]

MAGIC = b"\x89EGN\r\n\x1a\n"
VERSION = (1, 0)
FORMAT = "1.0"
HEADER = struct.Struct("<8sHHHHIIQ32s")
"""magic, major, minor, flags, manifest offset, manifest bytes, members, total bytes, SHA-256 of the manifest."""
HEADER_BYTES = 64
ALIGNMENT = 64
MAX_MANIFEST = 1 << 20
MAX_MEMBERS = 4096
MEMBER_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")


def aligned(offset: int) -> int:
    """The next multiple of 64 at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
