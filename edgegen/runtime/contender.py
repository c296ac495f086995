"""One variant of a bundle as a contender of `edgegen.timing`:

python -m edgegen.runtime.contender FILE VARIANT PROGRAM THREADS BATCH [python|native] [fused|stepwise]
"""

from __future__ import annotations

import sys
from typing import Any

import edgegen
from edgegen.timing import serve


def main() -> None:
    """Open the variant named on the command line and answer timing requests."""
    path, variant, program, threads, batch, *rest = sys.argv[1:]
    runtime, form = (*rest, *["python", "fused"][len(rest) :])
    with edgegen.load(path, variant=variant, threads=int(threads), runtime=runtime, fused=False if form == "stepwise" else None) as session:
        conditions: dict[str, Any] = session.default_conditions(program)
        serve(lambda: session.generate(seed=1, batch=int(batch), program=program, **conditions))


if __name__ == "__main__":
    main()
