"""edgegen beside its peers: the same digits network, the same steps, the same guidance, 2 threads, batch 1.

    python -m benchmarks.peers --json peers.json

Each contender runs in a process of its own and is timed in turn; the figures are ratios of medians, their time over edgegen's.
OpenVINO is driven by edgegen's own interpreter, which costs it less than diffusers' scheduler would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, WORK, bar, built, finish
from edgegen.bundle import Bundle, open_bundle
from edgegen.targets.onnxruntime import network_of
from edgegen.timing import alternate, serve

STEPS, GUIDANCE, LABEL, NULL = 10, 2.0, 3, 10


def diffusers_loop(network: Callable[[object, object, object], object]) -> Callable[[], object]:
    """What a user of diffusers writes: scheduler, guidance as one batch of two, torch tensors."""
    import torch
    from diffusers.schedulers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint")
    labels = torch.tensor([LABEL, NULL])

    def run() -> object:
        with torch.inference_mode():
            scheduler.set_timesteps(STEPS)
            x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
            for t in scheduler.timesteps:
                both = torch.cat([x, x])
                conditional, unconditional = network(both, torch.full((2,), float(t)), labels).chunk(2)
                x = scheduler.step(unconditional + GUIDANCE * (conditional - unconditional), t, x).prev_sample
            return x

    return run


def torch_network(threads: int) -> Callable[..., object]:
    import torch

    sys.path.insert(0, str(ROOT / "export" / "digits"))
    from model import load

    torch.set_num_threads(threads)
    return load(ROOT / "export" / "digits" / "weights.safetensors").eval()


def onnxruntime_network(model: bytes, threads: int) -> Callable[..., object]:
    import onnxruntime
    import torch

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def network(x, t, label):
        return torch.from_numpy(session.run(None, {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()})[0])

    return network


def openvino_loop(model: bytes, bundle: Bundle, threads: int) -> Callable[[], object]:
    import openvino

    from edgegen.program import compile_program, normals

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    executable = compile_program(bundle.programs[bundle.manifest.programs[0].name])

    def network(x, t, label):
        return {"prediction": request.infer({"x": x, "t": t.repeat(len(x)), "label": label}, share_inputs=True)[0]}

    return lambda: executable.run({"denoiser": network}, {"x_T": normals(0, 0, (1, 1, 28, 28)), "label": np.array([LABEL])})


def contend(name: str, bundle: Bundle, threads: int) -> None:
    """Be the contender `name` for `edgegen.timing`."""

    def network(variant: str) -> bytes:
        return network_of(bundle, next(v for v in bundle.manifest.variants if v.name == variant), "denoiser").SerializeToString()

    loops = {
        "diffusers+torch": lambda: diffusers_loop(torch_network(threads)),
        "diffusers+onnxruntime": lambda: diffusers_loop(onnxruntime_network(network("float32"), threads)),
        "openvino-float": lambda: openvino_loop(network("float32"), bundle, threads),
        "openvino-int8": lambda: openvino_loop(network("int8"), bundle, threads),
    }
    serve(loops[name]())


PEERS = ("diffusers+torch", "diffusers+onnxruntime", "openvino-float", "openvino-int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--contender", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    everything = WORK / "digits-all.edgegen"
    if args.contender:
        contend(args.contender, open_bundle(everything), args.threads)
        return

    measured = built("digits", measured=True)
    everything = built("digits", measured=False)
    best = open_bundle(measured).manifest.variants[0].name
    program = open_bundle(everything).manifest.programs[0].name
    commands = {
        f"edgegen {variant}": [sys.executable, "-m", "edgegen.runtime.contender", str(everything), variant, program, str(args.threads), "1"]
        for variant in (v.name for v in open_bundle(everything).manifest.variants)
    }
    commands |= {name: [sys.executable, "-m", "benchmarks.peers", "--contender", name, "--threads", str(args.threads)] for name in PEERS}
    seconds = alternate(commands, rounds=args.rounds, runs=args.runs, on_round=lambda i: print(f"  round {i}/{args.rounds}", file=sys.stderr))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians[f"edgegen {best}"]
    print(f"digits, {program}, guidance {GUIDANCE}, batch 1, {args.threads} threads; edgegen's best variant is {best}")
    print(f"{'contender':<24}{'median ms':>10}{'best ms':>10}{'their time / edgegen':>24}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:<24}{median * 1e3:>10.2f}{min(seconds[name]) * 1e3:>10.2f}{median / ours:>24.2f}")
    figures = {f"ratio:{name}": medians[name] / ours for name in PEERS}
    figures |= {f"ms:{name}": median * 1e3 for name, median in medians.items()}
    figures |= outside(everything, best, args.threads)
    bars = [
        bar("edgegen takes <= 0.5x of diffusers + torch", ours / medians["diffusers+torch"], "<=", 0.5),
        bar("edgegen takes <= 0.85x of diffusers + ONNX Runtime float", ours / medians["diffusers+onnxruntime"], "<=", 0.85),
        bar("time outside the networks, digits, batch 1", figures["outside"], "<=", 0.03),
    ]
    finish(args.json, figures, bars)


def outside(bundle: Path, variant: str, threads: int) -> dict[str, float]:
    """The median share of a generation's time that is spent outside the networks: five processes of `edgegen bench`."""
    command = [sys.executable, "-m", "edgegen.cli", "bench", str(bundle), "--variant", variant, "--threads", str(threads), "--iters", "100", "--json"]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)[0] for _ in range(5)]
    return {"outside": statistics.median(r["outside"] for r in runs)}


if __name__ == "__main__":
    main()
