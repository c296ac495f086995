"""Search: which solver, steps and grid (subnets come beside it). Works on a bundle's own model."""

from edgegen.search.sampling import Candidate, Subject, compare, load_quality, search

__all__ = ["Candidate", "Subject", "compare", "load_quality", "search"]
