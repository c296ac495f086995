"""One variant of a bundle as a contender of `edgegen.timing`:

python -m edgegen.runtime.contender FILE VARIANT PROGRAM THREADS BATCH [python|native]
"""

from __future__ import annotations

import sys
from typing import Any

import edgegen
from edgegen.timing import serve


def main() -> None:
    """Open the variant named on the command line and answer timing requests."""
    path, variant, program, threads, batch, *runtime = sys.argv[1:]
    with edgegen.load(path, variant=variant, threads=int(threads), runtime=(runtime or ["python"])[0]) as session:
        conditions: dict[str, Any] = session.default_conditions(program)
        serve(lambda: session.generate(seed=1, batch=int(batch), program=program, **conditions))


if __name__ == "__main__":
    main()
