"""One variant of a bundle as a contender of `edgegen.timing`: python -m edgegen.runtime.contender FILE VARIANT PROGRAM THREADS BATCH"""

from __future__ import annotations

import sys

import edgegen
from edgegen.spec import default_conditions
from edgegen.timing import serve


def main() -> None:
    """Open the variant named on the command line and answer timing requests."""
    path, variant, program, threads, batch = sys.argv[1:]
    with edgegen.load(path, variant=variant, threads=int(threads)) as session:
        conditions = {name: value[0] for name, value in default_conditions(session.bundle.manifest.conditions).items()}
        serve(lambda: session.generate(seed=1, batch=int(batch), program=program, **conditions))


if __name__ == "__main__":
    main()
