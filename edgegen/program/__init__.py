"""The program: the device language, its verifier, its JSON form and the reference interpreter."""

from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Input,
    Instruction,
    Lincomb,
    Muladd,
    Noise,
    Program,
    Reduce,
    Reg,
    Scalar,
    Select,
    Slice,
    Slincomb,
    Step,
    Threshold,
)
from edgegen.program.interpreter import Executable, Network, compile_program, initial_state, interpret
from edgegen.program.json_form import program_from_json, program_to_json
from edgegen.program.noise import normals, philox4x32
from edgegen.program.verify import verify

__all__ = [
    "Clamp",
    "Concat",
    "Eval",
    "Executable",
    "Imm",
    "Input",
    "Instruction",
    "Lincomb",
    "Muladd",
    "Network",
    "Noise",
    "Program",
    "Reduce",
    "Reg",
    "Scalar",
    "Select",
    "Slice",
    "Slincomb",
    "Step",
    "Threshold",
    "compile_program",
    "initial_state",
    "interpret",
    "normals",
    "philox4x32",
    "program_from_json",
    "program_to_json",
    "verify",
]
