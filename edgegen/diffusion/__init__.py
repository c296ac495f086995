"""Forward processes, what networks predict, and the times that a solver visits. All host arithmetic is float64."""

from edgegen.diffusion.grids import GRIDS, check_grid, make_grid
from edgegen.diffusion.predictions import PREDICTIONS, convert, data_coefficients, input_scale, noise_coefficients
from edgegen.diffusion.processes import PROCESSES, Process, make_process

__all__ = [
    "GRIDS",
    "PREDICTIONS",
    "PROCESSES",
    "Process",
    "check_grid",
    "convert",
    "data_coefficients",
    "input_scale",
    "make_grid",
    "make_process",
    "noise_coefficients",
]
