"""Writes docs/c_api.md from the comments of edgegen.h: `python runtimes/c/document.py`. With --check: exits 1 if the page is not up to date."""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE / "include" / "edgegen.h"
PAGE = HERE.parents[1] / "docs" / "c_api.md"
WIDTH = 150

TITLE = """\
# The C API

Made from the comments of [edgegen.h](../runtimes/c/include/edgegen.h) by `runtimes/c/document.py`; change those, and run it.
"""

MANUAL = """\
## Compiling and linking

`make native` builds `build/native/libedgegen.so` and `edgegen-run`; `cmake --install build/native --prefix DIR` installs them with their headers.
A program needs `edgegen.h` (C++: also `edgegen.hpp`) and `libedgegen.so`; when it runs, `libedgegen.so.1` and ONNX Runtime's library.

```
gcc -std=c99 -Iruntimes/c/include runtimes/c/examples/generate.c -o generate -Lbuild/native -ledgegen -Wl,-rpath,"$PWD/build/native"
```

```cmake
add_library(edgegen SHARED IMPORTED)
set_target_properties(edgegen PROPERTIES IMPORTED_LOCATION "${EDGEGEN_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${EDGEGEN_INCLUDE}")
target_link_libraries(generate_c PRIVATE edgegen)
```

[generate.c](../runtimes/c/examples/generate.c) and [generate.cpp](../runtimes/c/examples/generate.cpp) are whole programs to start from.
`edgegen.hpp` is the same interface for C++17, with exceptions, vectors and callables; its first lines say what differs.

## Where libonnxruntime is looked for

A path in `eg_session_options.onnxruntime` (`edgegen-run --onnxruntime PATH`), where it is given, is the only place. Otherwise the first of these that
is found is taken, and if its version is below 1.20 the search does not go on: that is `EG_BACKEND_TOO_OLD`.

1. `libonnxruntime.so.1`, then `libonnxruntime.so`, where the system's loader looks (`LD_LIBRARY_PATH`, `/etc/ld.so.conf`); on macOS
   `libonnxruntime.dylib`.
2. A file whose name begins with `libonnxruntime.so` (macOS: `libonnxruntime.`) in the folder of libedgegen.
3. The same in the `onnxruntime` package (`pip install onnxruntime`) of a Python: that of `$VIRTUAL_ENV`, those whose `python3` is on `PATH`, and
   `~/.local`.

It is loaded when the first session is opened, and stays loaded. A session with a component function of the caller's needs none.

## Threads and memory

1. A model is immutable: share it between any number of threads. The strings that it gives live until it is closed.
2. A session is for one thread at a time; a second call meanwhile returns `EG_BUSY`. Sessions of equal options share engine and weights.
3. `eg_cancel` is for any thread, and stops the call that is going on, not one to come. A session must not be destroyed while it is cancelled.
4. Buffers are the caller's. What the library keeps after a call: the bytes of `EG_OPEN_BORROWED`, and callbacks with the pointer passed on to them.
5. A session allocates when a program first runs at a batch (`eg_session_memory` says how much), and nothing afterwards.

## edgegen-run

The same library from a shell; `edgegen-run --help` lists the options.

```
edgegen-run digits.edgegen --seed 1 --set label=3 -o three.pgm
edgegen-run verify digits.edgegen
edgegen-run bench digits.edgegen --iters 20
edgegen-run inspect digits.edgegen
```

| exit code | meaning | for example |
|---|---|---|
| 0 | done | `edgegen-run inspect digits.edgegen` |
| 1 | an error: a file, NaN, a golden vector that differs | `edgegen-run verify notes.txt`, which is no bundle |
| 2 | a wrong option, name or value | `edgegen-run digits.edgegen --set label=3.5` |
| 4 | this device cannot run it: no ONNX Runtime, one too old, or no variant for it | `edgegen-run bench digits.edgegen --onnxruntime nowhere.so` |
| 130 | interrupted (Ctrl-C) | |
"""

ITEM = re.compile(
    r"""/\*\ (?P<comment>.*?)\*/
      | \#define\ (?P<constant>\w+)\ [^\n]*
      | typedef\ struct\ \w+\ \{(?P<members>.*?)\}\ (?P<struct>\w+);
      | enum\ \{(?P<values>.*?)\};
      | typedef\ (?:[\w ]+)\(\*(?P<callback>\w+)\)\([^;]*\);
      | typedef\ [\w ]+\b(?P<type>\w+);
      | EG_API\ [^;(]*\b(?P<function>\w+)\([^;]*\);
      | \s+""",
    re.VERBOSE | re.DOTALL,
)
MEMBER = re.compile(r"(?P<declaration>[^;]+);(?: +/\* (?P<meaning>.*?) \*/)?")
VALUE = re.compile(r"(?P<name>\w+) = (?P<number>\d+),?(?: +/\* (?P<meaning>.*?) \*/)?")


@dataclass
class Entry:
    """What one comment of the header describes: names, their C without members, and a table of members or values."""

    text: str = ""
    names: list[str] = field(default_factory=list)
    c: list[str] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)


def entries_of(header: str) -> list[Entry | str]:
    """The header's entries in its order, and the texts of its section comments between them."""
    body = header[header.index("#endif\n", header.index('extern "C" {')) + len("#endif\n") : header.rindex("#ifdef __cplusplus")]
    found: list[Entry | str] = []
    for paragraph in re.split(r"\n\n+", body):
        found += read_paragraph(paragraph)
    return found


def read_paragraph(paragraph: str) -> list[Entry | str]:
    """The entries of lines without a blank one between them: a comment begins an entry, what has none joins the one before it."""
    found: list[Entry | str] = []
    at = 0
    while at < len(paragraph):
        item = ITEM.match(paragraph, at)
        if item is None:
            raise SystemExit(f"edgegen.h: expected a comment, #define, typedef, enum or function, found: {paragraph[at : at + 80]!r}")
        at = item.end()
        if item["comment"] and item["comment"].startswith("----"):
            found.append(without_stars(item["comment"].replace("----", "")))
        elif item["comment"]:
            found.append(Entry(without_stars(item["comment"])))
        elif not item[0].isspace():
            if not found or isinstance(found[-1], str):
                found.append(Entry())
            add(found[-1], item)
    return found


def without_stars(comment: str) -> str:
    """A comment's lines without what makes them one."""
    return "\n".join(re.sub(r"^ \* ?", "", line).rstrip() for line in comment.strip().splitlines())


def add(entry: Entry, item: re.Match[str]) -> None:
    """Put a declaration into its entry."""
    name = item["constant"] or item["struct"] or item["callback"] or item["type"] or item["function"]
    if item["constant"] and name.endswith("_INIT"):
        entry.table = [(c, f"set by `{name}`" if c == "`uint32_t struct_size`" else meaning) for c, meaning in entry.table]
        return
    if item["values"]:
        entry.table = [("name", "number", "meaning"), *(row_of_value(v) for v in lines_of(VALUE, item["values"]))]
        return
    entry.names.append(name)
    if item["struct"]:
        entry.table = [("field", "meaning"), *((f"`{m['declaration']}`", marked(m["meaning"] or "")) for m in lines_of(MEMBER, item["members"]))]
    else:
        entry.c.append(one_line(item[0].removeprefix("EG_API ")))


def lines_of(pattern: re.Pattern[str], block: str) -> list[re.Match[str]]:
    """The lines of a struct or an enum, each of which must fit."""
    found = [(line, pattern.fullmatch(line)) for line in map(str.strip, block.strip().splitlines())]
    bad = [line for line, match in found if match is None]
    if bad:
        raise SystemExit(f"edgegen.h: expected one member or value in a line, found: {bad[0]!r}")
    return [match for _, match in found if match is not None]


def row_of_value(value: re.Match[str]) -> tuple[str, ...]:
    """A line of an enum as a row; what has no comment says it with its name."""
    words = value["name"].removeprefix("EG_").replace("_", " ").lower()
    return f"`{value['name']}`", value["number"], marked(value["meaning"] or words)


def one_line(declaration: str) -> str:
    """A declaration in one line, or in several with an indent where it is too long."""
    return textwrap.fill(" ".join(declaration.split()), WIDTH, subsequent_indent="    ", break_long_words=False)


def marked(text: str, parameters: str = "(?!)") -> str:
    """Prose with names of C, and `parameters:` (a pattern) where a sentence begins, as code."""
    names = r"EG_\w*\.\.\.\w*|(?<![\w/])[A-Za-z]+(?:_[A-Za-z0-9]+)+(?:\.[a-z]+)?\b|\b\w+->\w+"
    return re.sub(rf"`[^`]*`|{names}|(?:^|(?<=[.;] )|(?<=\())(?:{parameters})(?=: )", lambda m: m[0] if m[0].startswith("`") else f"`{m[0]}`", text)


def prose(text: str, parameters: str = "(?!)") -> str:
    """A comment's paragraphs as Markdown: indented ones are C, of others lines are filled."""
    parts = []
    for paragraph in re.split(r"\n\n+|\n(?=Returns |Memory: )", text.strip("\n")):
        if paragraph.startswith("    "):
            parts.append(f"```c\n{textwrap.dedent(paragraph)}\n```")
        else:
            parts.append(filled(marked(" ".join(paragraph.split()), parameters)))
    return "\n\n".join(parts)


def filled(text: str) -> str:
    """Lines of at most WIDTH, of which none begins with what Markdown takes for a list or a heading."""
    glued = re.sub(r" (?=(?:[-+*#>=]|\d+[.)])( |$))", "\0", text)
    return textwrap.fill(glued, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def entry_page(entry: Entry) -> str:
    """An entry as Markdown."""
    main = [n for n in entry.names if not n.startswith("EG_")] or entry.names
    parameters = "|".join(re.findall(r"(\w+)(?=[,)])", " ".join(entry.c))) or "(?!)"
    parts = ["### " + ", ".join(main)]
    if entry.c:
        parts.append("```c\n" + "\n".join(entry.c) + "\n```")
    if entry.text:
        parts.append(prose(entry.text, parameters))
    if entry.table:
        parts.append(table(entry.table))
    return "\n\n".join(parts)


def section_page(text: str) -> str:
    """A section comment as Markdown: its first sentence is the heading."""
    title, _, rest = " ".join(text.split()).partition(". ")
    return f"## {title}" + (f"\n\n{filled(marked(rest))}" if rest else "")


def page(header: str) -> str:
    """docs/c_api.md for a header."""
    introduction = without_stars(header[len("/* ") : header.index("*/")])
    parts = [TITLE.strip(), prose(introduction), MANUAL.strip(), "## Versions, statuses, files"]
    parts += [section_page(e) if isinstance(e, str) else entry_page(e) for e in entries_of(header)]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"document.py: expected nothing or --check, found {' '.join(arguments)}\n")
        return 2
    made = page(HEADER.read_text(encoding="utf-8"))
    if not arguments:
        PAGE.write_text(made, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made:
        sys.stderr.write(f"{PAGE} is not what {HEADER} says: run python {Path(__file__)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
