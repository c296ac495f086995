"""The one-file format, *.edgegen: written atomically, read with every byte checked (runtimes/FORMAT.md)."""

from edgegen.bundle.manifest import FusedEntry, Golden, Manifest, ProgramEntry, Provider, Variant
from edgegen.bundle.reader import Bundle, open_bundle, parse_bundle
from edgegen.bundle.writer import bundle_bytes, write_bundle

__all__ = [
    "Bundle",
    "FusedEntry",
    "Golden",
    "Manifest",
    "ProgramEntry",
    "Provider",
    "Variant",
    "bundle_bytes",
    "open_bundle",
    "parse_bundle",
    "write_bundle",
]
