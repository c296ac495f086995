"""One denoising step of three U-Nets in int8 beside float and beside other engines: batch 1, 2 threads.

    python -m benchmarks.quantization_speed --json quantization_speed.json

`digits` as it is trained, and two of its architecture with random weights: 64/128/128 channels for 3 x 32 x 32 and 128/256/256 for 3 x 64 x 64. All
engines get the network that torch exports; int8 is calibrated on the same random inputs everywhere, since speed does not depend on them. Contenders
run in turns, each in a process of its own; one that does not run here (say, without a C++ compiler) is named and left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from benchmarks.common import ROOT, WORK, bar, finish
from edgegen.calibration import with_outputs
from edgegen.onnx_export import export_module
from edgegen.quantize import Ranges
from edgegen.spec import Signature, TensorSpec
from edgegen.targets.onnxruntime.lowering import finish as finish_network
from edgegen.targets.onnxruntime.lowering import lower
from edgegen.targets.onnxruntime.qdq import plan, quantize, watched
from edgegen.timing import alternate, serve

FOLDER = WORK / "quantization_speed"
WIDTHS = {"unet64": (64, 128, 128), "unet128": (128, 256, 256)}
IMAGES = {"digits": (1, 28, 28), "unet64": (3, 32, 32), "unet128": (3, 64, 64)}
KEEP = ("conv_in*", "conv_out*")
RUNS = {"digits": 8, "unet64": 6, "unet128": 2}
OPENVINO = ("openvino float", "openvino bf16", "openvino int8", "openvino nncf")
CONTENDERS = ("float", "float lowered", "int8 plain", "int8", *OPENVINO, "torch", "torch compiled", "torch dynamic")
IDLE, REST = 0.005, 0.1
"""Seconds between two calls that mean a new turn, and of the rest before it."""
BOUNDS = {"unet64": 0.55, "unet128": 0.45}


def module_of(net: str):
    """The network as a torch module."""
    import torch
    from torch import nn

    sys.path.insert(0, str(ROOT / "export" / "digits"))
    from model import DigitsUNet, ResidualBlock, load

    if net == "digits":
        return load(ROOT / "export" / "digits" / "weights.safetensors").eval()
    torch.manual_seed(0)
    c0, c1, c2 = WIDTHS[net]
    image, embedding = IMAGES[net][0], 256

    def blocks(*channels: int) -> nn.ModuleList:
        return nn.ModuleList(ResidualBlock(c_in, c_out, embedding) for c_in, c_out in pairwise(channels))

    unet = DigitsUNet()
    unet.time1, unet.time2, unet.label = nn.Linear(64, embedding), nn.Linear(embedding, embedding), nn.Embedding(11, embedding)
    unet.conv_in, unet.conv_out, unet.norm_out = nn.Conv2d(image, c0, 3, padding=1), nn.Conv2d(c0, image, 3, padding=1), nn.GroupNorm(8, c0)
    unet.down0, unet.down1 = (nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((c0, c1), (c1, c2)))
    unet.up1, unet.up0 = nn.Conv2d(c2, c1, 1), nn.Conv2d(c1, c0, 1)
    unet.encode0, unet.encode1, unet.middle = blocks(c0, c0, c0), blocks(c1, c1, c1), blocks(c2, c2, c2)
    unet.decode1, unet.decode0 = blocks(2 * c1, c1, c1), blocks(2 * c0, c0, c0)
    for module in unet.modules():
        if isinstance(module, ResidualBlock):  # a new block is the identity
            nn.init.normal_(module.conv2.weight, std=0.3 / (9 * module.conv2.in_channels) ** 0.5)
    return unet.eval()


def inputs(net: str, seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *IMAGES[net])).astype(np.float32)
    return {"x": x, "t": rng.uniform(0, 999, batch).astype(np.float32), "label": rng.integers(0, 10, batch)}


def exported(net: str) -> onnx.ModelProto:
    image = TensorSpec("x", "float32", ("batch", *IMAGES[net]))
    others = (TensorSpec("t", "float32", ("batch",)), TensorSpec("label", "int64", ("batch",)))
    signature = Signature((image, *others), (TensorSpec("prediction", "float32", image.shape),))
    return export_module(module_of(net), signature, inputs(net, 0, 2))


def in_int8(net: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """QDQ around the convolutions but the first and the last, ranges from random inputs."""
    import onnxruntime

    placements = plan(model, ["Conv"], KEEP)
    tensors = watched(model, placements)
    session = onnxruntime.InferenceSession(with_outputs(model, tensors), providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0.0)
    for seed in range(4):
        for name, value in zip(tensors, session.run(list(tensors), inputs(net, seed)), strict=True):
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
    return quantize(model, placements, Ranges({name: ((0.0, low[name], high[name]),) for name in tensors}))


def in_nncf(net: str, path: Path):
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape({name: list(value.shape) for name, value in inputs(net, 0).items()})
    return nncf.quantize(model, nncf.Dataset([inputs(net, seed) for seed in range(4)]), subset_size=4)


def prepare(net: str) -> None:
    """Write the networks that the contenders open."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = exported(net)
    lowered = lower(model)
    made = {"float": model, "float lowered": lowered, "int8 plain": in_int8(net, model), "int8": finish_network(in_int8(net, lowered))}
    for name, network in made.items():
        onnx.save(network, FOLDER / f"{net} {name}.onnx")
    try:
        import openvino

        openvino.save_model(in_nncf(net, FOLDER / f"{net} float.onnx"), FOLDER / f"{net} nncf.xml", compress_to_fp16=False)
    except ImportError as e:
        print(f"  {e}: pip install openvino nncf", file=sys.stderr)


def onnxruntime_step(net: str, path: Path, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = inputs(net, 0)
    return lambda: session.run(None, feeds)


def openvino_step(net: str, path: Path, threads: int, precision: str) -> Callable[[], object]:
    import openvino

    core, feeds = openvino.Core(), inputs(net, 0)
    model = core.read_model(path)
    model.reshape({name: list(value.shape) for name, value in feeds.items()})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True)


def torch_step(net: str, how: str, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    module, feeds = module_of(net), {name: torch.from_numpy(value) for name, value in inputs(net, 0).items()}
    if how == "compiled":
        module = torch.compile(module)
    elif how == "dynamic":
        module = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)

    def run() -> object:
        with torch.inference_mode():
            return module(**feeds)

    return run


def rested(step: Callable[[], object]) -> Callable[[], object]:
    """`step`, which rests before the first call of a turn (whose time is thrown away).

    The threads of a contender in ONNX Runtime spin on for some 20 ms, on a core that the next contender needs.
    """
    ended = 0.0

    def run() -> object:
        nonlocal ended
        if time.perf_counter() - ended > IDLE:
            time.sleep(REST)
        result = step()
        ended = time.perf_counter()
        return result

    return run


def contend(net: str, name: str, threads: int) -> Callable[[], object]:
    engine, _, how = name.partition(" ")
    if engine == "torch":
        return torch_step(net, how, threads)
    if engine == "openvino":
        path = FOLDER / (f"{net} nncf.xml" if how == "nncf" else f"{net} {'int8' if how == 'int8' else 'float'}.onnx")
        return openvino_step(net, path, threads, "bf16" if how == "bf16" else "f32")
    return onnxruntime_step(net, FOLDER / f"{net} {name}.onnx", threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--nets", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--contend", nargs=2, metavar=("NET", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contend:
        step = contend(*args.contend, args.threads)
        step() if args.once else serve(rested(step))
        return

    figures: dict[str, float] = {}
    bars = []
    for net in args.nets:
        prepare(net)
        seconds = measure(net, args.contenders, args.threads, args.rounds)
        medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
        report(net, seconds, medians)
        figures |= {f"{net}:best_ms:{name}": min(values) * 1e3 for name, values in seconds.items()}
        figures |= {f"{net}:ms:{name}": value for name, value in medians.items()}
        figures |= {f"{net}:ratio:{name}": medians["int8"] / value for name, value in medians.items()}
        peers = [medians[name] for name in OPENVINO if name in medians]
        if net in BOUNDS:
            bars.append(bar(f"{net}: int8 over ONNX Runtime float", medians["int8"] / medians["float"], "<=", BOUNDS[net]))
        if peers:
            bars.append(bar(f"{net}: int8 over the best of OpenVINO", medians["int8"] / min(peers), "<=", 1.1))
    finish(args.json, figures, bars)


def measure(net: str, names: list[str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of steps by contender; those that do not run here are left out."""
    commands = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.quantization_speed", "--threads", str(threads), "--contend", net, name]
        tried = subprocess.run([*command, "--once"], capture_output=True, text=True)
        if tried.returncode:
            print(f"  {name} does not run here: {(tried.stderr.strip() or 'no message').splitlines()[-1]}", file=sys.stderr)
        else:
            commands[name] = command
    return alternate(commands, rounds=rounds, runs=RUNS[net])


def report(net: str, seconds: dict[str, list[float]], medians: dict[str, float]) -> None:
    print(f"{net}, one step, batch 1\n{'contender':<18}{'median ms':>10}{'best ms':>10}{'int8 / theirs':>15}{'of the best':>13}")
    best = {name: min(values) * 1e3 for name, values in seconds.items()}
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:<18}{median:>10.2f}{best[name]:>10.2f}{medians['int8'] / median:>15.2f}{best['int8'] / best[name]:>13.2f}")


if __name__ == "__main__":
    main()
