"""Canonical JSON: one byte string per value, so that hashes and equality mean the same thing in every runtime.

Objects with sorted ASCII keys, arrays, strings without control characters and 64-bit integers; no floats (they travel as
hex strings), no true, false or null, no white space. runtimes/FORMAT.md, section 2.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from edgegen.errors import BundleError, Status

__all__ = ["decode", "encode", "from_hex", "to_hex"]

MAX_DEPTH = 8
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HEX_FLOAT = re.compile(r"-?0x(?:0\.0p\+0|1\.[0-9a-f]{13}p[+-](?:0|[1-9][0-9]{0,3})|0\.(?!0{13})[0-9a-f]{13}p-1022)")


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"JSON is nested deeper than {MAX_DEPTH} levels", Status.LIMIT)
    match value:
        case str():
            if _CONTROL.search(value):
                raise BundleError(f"JSON string {value[:40]!r} has a control character", Status.BAD_MANIFEST)
        case bool() | float() | None:
            raise BundleError(f"JSON value {value!r}: only objects, arrays, strings and integers are allowed", Status.BAD_MANIFEST)
        case int():
            if not -(2**63) <= value < 2**63:
                raise BundleError(f"JSON integer {value} does not fit 64 bits", Status.BAD_MANIFEST)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or not _KEY.fullmatch(key):
                    raise BundleError(f"JSON key {key!r} is not [A-Za-z0-9_.-], 1 to 64 characters", Status.BAD_MANIFEST)
                _check(item, depth + 1)
        case list() | tuple():
            for item in value:
                _check(item, depth + 1)
        case _:
            raise BundleError(f"JSON value of type {type(value).__name__} is not allowed", Status.BAD_MANIFEST)


def encode(value: Any) -> bytes:
    """The canonical UTF-8 bytes of `value`. Raises BundleError if it holds anything that the format does not allow."""
    _check(value, 0)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _no_float(text: str) -> Any:
    raise BundleError(f"JSON number {text!r}: floats are written as hex strings", Status.BAD_MANIFEST)


def _integer(text: str) -> int:
    if len(text) > 20:
        raise BundleError("JSON integer with more than 20 characters", Status.BAD_MANIFEST)
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict; of a key that stands twice (which is not canonical) the dropped values are checked here."""
    value = dict(pairs)
    if len(value) != len(pairs):
        for _, item in pairs:
            _check(item, 0)
    return value


def _depth(data: bytes) -> int:
    """The deepest nesting, counted outside strings without recursion."""
    depth = deepest = 0
    for token in re.findall(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', data, re.DOTALL):
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def decode(data: bytes) -> Any:
    """The value that `data` holds. Raises BundleError: not JSON (BAD_MANIFEST), too deep (LIMIT), or not canonical (NOT_CANONICAL)."""
    if _depth(data) > MAX_DEPTH:
        raise BundleError(f"JSON is nested deeper than {MAX_DEPTH} levels", Status.LIMIT)
    try:
        value = json.loads(data.decode("utf-8"), parse_float=_no_float, parse_constant=_no_float, parse_int=_integer, object_pairs_hook=_object)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise BundleError(f"not JSON: {e}", Status.BAD_MANIFEST) from e
    if encode(value) != data:
        raise BundleError("JSON is not in canonical form (sorted keys, no white space, no duplicate keys, minimal escapes)", Status.NOT_CANONICAL)
    return value


def to_hex(value: float) -> str:
    """A float64 as an exact hex string, such as 0x1.8000000000000p+1."""
    return float(value).hex()


def from_hex(text: str) -> float:
    """The finite float64 that `text` writes. Raises BundleError (BAD_MANIFEST) unless it is exactly what `to_hex` writes."""
    if isinstance(text, str) and _HEX_FLOAT.fullmatch(text):
        with contextlib.suppress(OverflowError):
            value = float.fromhex(text)
            if value.hex() == text:
                return value
    raise BundleError(f"{text!r} is not a float64 in its hexadecimal form, such as 0x1.8000000000000p+1 (FORMAT.md, section 2)", Status.BAD_MANIFEST)
