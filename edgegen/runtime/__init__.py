"""The Python runtime: a bundle in, samples out. It knows instructions, not solvers."""

from edgegen.runtime.session import Report, Session, Stream, load

__all__ = ["Report", "Session", "Stream", "load"]
