"""Many builds for the price of one interpreter: `python -m tests.targets.tensorrt.builds FOLDER...` forks for each folder and runs the real
builder there, without the check in front. A fork that crashes is what is looked for; its status is written to status.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgegen.errors import BuildError
from edgegen.targets.tensorrt import BuildOptions, build, builder


def build_all(cases, folder):
    """{name: (model, capabilities)} -> {name: Engine or BuildError}, each in a folder of its own."""
    places = {}
    for i, (name, (model, capabilities)) in enumerate(cases.items()):
        places[name] = folder / str(i), BuildOptions(capabilities=tuple(capabilities))
        places[name][0].mkdir()
        build._request(model.SerializeToString(), places[name][1], places[name][0])
    subprocess.run(
        [sys.executable, "-m", __name__, *(str(p) for p, _ in places.values())], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    results = {}
    for name, (place, options) in places.items():
        (place / "stderr.txt").touch()
        try:
            status = int((place / "status.txt").read_text())
            results[name] = build._engine(place, options, status, False, build._messages(place))
        except BuildError as e:
            results[name] = e
    return results


def main(folders):
    builder.load("tensorrt-rtx")
    for folder in folders:
        child = os.fork()
        if child == 0:
            os._exit(builder.main([folder]))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(folder, "status.txt").write_text(str(status))


if __name__ == "__main__":
    main(sys.argv[1:])
