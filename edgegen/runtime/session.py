"""Session: an open bundle on this device.

    session = edgegen.load("digits.edgegen")
    sample = session.generate(seed=1, label=3)      # float32[1, 1, 28, 28]

A session may be used from several threads at once; `report` is the calling thread's own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, Variant, open_bundle
from edgegen.errors import RuntimeFault, Status, nearest
from edgegen.program.interpreter import OnStep
from edgegen.program.noise import check_seed
from edgegen.quality import Distance, distance
from edgegen.runtime.fused import FusedPrograms
from edgegen.runtime.native import Native
from edgegen.runtime.stepwise import Stepwise
from edgegen.spec import ConditionSpec, default_conditions
from edgegen.targets.opening import ENGINES

__all__ = ["Report", "Session", "Stream", "load", "open_session"]

logger = logging.getLogger(__name__)

_RUNTIMES = ("python", "native")

Tensor = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one `generate`: evaluations and seconds per component, and seconds in all."""

    program: str
    variant: str
    nfe: Mapping[str, int]
    seconds: Mapping[str, float]
    total_seconds: float

    @property
    def overhead(self) -> float:
        """The share of the time that was spent outside the networks, 0 to 1."""
        return 1.0 - sum(self.seconds.values()) / self.total_seconds


class Stream:
    """One stream of a program with states: each step continues where the last one ended. Made by `Session.stream`; one thread at a time."""

    def __init__(self, session: Session, program: str, batch: int, opened: Any) -> None:
        self._session, self._program, self._batch, self._opened = session, program, batch, opened

    def step(self, **conditions: npt.ArrayLike) -> Tensor:
        """The next sample, float32[batch, *sample shape]. Conditions and errors as of `generate`; after an error the stream is as before."""
        return self._session._step(self._opened, self._program, conditions, self._batch)

    def reset(self) -> None:
        """Begin again."""
        self._opened.reset()

    def close(self) -> None:
        """Release what the stream holds."""
        self._opened.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Session:
    """A bundle whose components are open in an engine; a context manager. Made by `load`."""

    def __init__(self, bundle: Bundle, variant: Variant, *, threads: int = 0, fused: bool | None = None, runtime: str = "python") -> None:
        if runtime not in _RUNTIMES:
            raise RuntimeFault(f"runtime {runtime!r}: {nearest(runtime, _RUNTIMES)}", Status.UNKNOWN_NAME)
        if fused and runtime != "python":
            message = "only the Python runtime makes fused programs; leave out fused=True, and runtime='native' runs those that the bundle holds"
            raise RuntimeFault(message, Status.BAD_ARGUMENT)
        self.bundle = bundle
        self.variant = variant
        specs = {c.name: c for c in bundle.manifest.conditions}
        self._needed = {name: {i.name: specs[i.name] for i in program.inputs if i.kind == "condition"} for name, program in bundle.programs.items()}
        self._thread = threading.local()
        self._stepwise = fused is False
        threads = threads or variant.threads
        self._runner: Stepwise | Native | None
        self._fused: FusedPrograms | None = None
        if runtime == "native":
            self._runner = Native(bundle, variant, threads, stepwise=fused is False)
            return
        self._runner = Stepwise(bundle, variant, threads)
        if fused is not False:
            self._fused = FusedPrograms(bundle, variant, threads, made=fused is True)
        default = bundle.manifest.programs[0].name
        if self._fused is not None and (default, 1) in {(f.program, f.batch) for f in variant.fused}:
            self._fused.open(default, 1)
        else:
            self._runner.open()

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs; the first is the default."""
        return tuple(p.name for p in self.bundle.manifest.programs)

    @property
    def report(self) -> Report:
        """Figures of the calling thread's last `generate`. Raises RuntimeFault if it made none."""
        report = getattr(self._thread, "report", None)
        if report is None:
            raise RuntimeFault("no report yet: this thread has not called generate", Status.BAD_STATE)
        return report  # type: ignore[no-any-return]

    def runs_fused(self, steps: int | None = None, batch: int = 1, *, program: str | None = None) -> bool:
        """Whether `generate` runs this program as one network, where it is not asked for progress."""
        name = self._pick(steps, program)
        held = any((f.program, f.batch) == (name, batch) for f in self.variant.fused)
        return self._stepwise is False and (held or (self._fused is not None and self._fused.made))

    def generate(
        self, seed: int = 0, steps: int | None = None, batch: int = 1, noise: npt.ArrayLike | None = None, on_step: OnStep | None = None,
        *, program: str | None = None, **conditions: npt.ArrayLike,
    ) -> Tensor:  # fmt: skip
        """Samples, float32[batch, *sample shape].

        Args:
            seed: 0 .. 2^64 - 1. Equal seeds give equal noise in every runtime; sample k does not depend on `batch`.
            steps: picks the program with so many steps; None takes the default program. `program` picks it by name instead.
            batch: number of samples, >= 1.
            noise: float[batch, *sample shape] standard normals to start from instead of the seed's; the seed still feeds later draws.
            on_step: called as on_step(steps done, steps in all, sample so far); returning False cancels.
            conditions: by name, one value for all samples or one per sample; those with a default may be left out.

        Raises RuntimeFault: unknown or missing condition, a value out of range or of the wrong shape, steps that the bundle does not
        have, NaN from a network; Cancelled. After an error the session is as before.
        """
        runner, name = self._open(), self._pick(steps, program)
        count = _batch(batch)
        if self.bundle.programs[name].states:
            raise RuntimeFault(f"program {name!r} has states, so it runs as a stream: session.stream({name!r}).step(...)", Status.BAD_STATE)
        began = time.perf_counter()
        given = self._conditions(name, conditions, count)
        start = self._noise(noise, count)
        check_seed(seed)
        if self._fused is not None and on_step is None and self._fused.has(name, count):
            sample, seconds = self._fused.run(name, given, start, count, seed)
        else:
            sample, seconds = runner.run(name, given, start, count, seed, on_step)
        self._report(name, seconds, time.perf_counter() - began)
        return sample

    def stream(self, program: str | None = None, *, seed: int = 0, batch: int = 1) -> Stream:
        """A stream of a program with states: `step` takes its conditions and gives the next sample; streams do not touch each other.

        program: None takes the first that has states. seed: of its noise, which depends on the step too. Raises RuntimeFault if the
        bundle or the program has no states.
        """
        runner = self._open()
        streaming = [name for name, p in self.bundle.programs.items() if p.states]
        if program is None and streaming:
            program = streaming[0]
        name = self._pick(None, program)
        if name not in streaming:
            known = f"; {', '.join(streaming)} can" if streaming else ""
            raise RuntimeFault(f"program {name!r} has no states, so it cannot run as a stream{known}", Status.BAD_STATE)
        return Stream(self, name, _batch(batch), runner.open_stream(name, batch, check_seed(seed)))

    def _step(self, opened: Any, name: str, conditions: Mapping[str, npt.ArrayLike], batch: int) -> Tensor:
        self._open()
        began = time.perf_counter()
        sample, seconds = opened.step(self._conditions(name, conditions, batch))
        self._report(name, seconds, time.perf_counter() - began)
        return np.asarray(sample)

    def _open(self) -> Stepwise | Native:
        if self._runner is None:
            raise RuntimeFault("this session is closed", Status.BAD_STATE)
        return self._runner

    def _report(self, program: str, seconds: Mapping[str, float], total: float) -> None:
        self._thread.report = Report(program, self.variant.name, dict(self.bundle.programs[program].nfe), dict(seconds), total)

    def _pick(self, steps: int | None, program: str | None) -> str:
        entries = self.bundle.manifest.programs
        if program is not None:
            if program not in self.bundle.programs:
                raise RuntimeFault(f"no program {program!r} in this bundle: {nearest(program, self.bundle.programs)}", Status.UNKNOWN_NAME)
            return program
        if steps is None:
            return entries[0].name
        for entry in entries:
            if entry.steps == steps:
                return entry.name
        known = ", ".join(f"{e.steps} ({e.name})" for e in entries)
        raise RuntimeFault(f"no program of {steps!r} steps in this bundle; it has {known}. Add it to the recipe and build again", Status.OUT_OF_RANGE)

    def _noise(self, noise: npt.ArrayLike | None, batch: int) -> Tensor | None:
        shape = (batch, *self.bundle.manifest.sample.shape)
        if noise is None:
            return None
        given = np.asarray(noise)
        if given.dtype.kind != "f" or given.shape != shape:
            raise RuntimeFault(f"noise: expected float32{list(shape)}, found {given.dtype.name}{list(given.shape)}", Status.BAD_SHAPE)
        if not np.isfinite(given).all():
            raise RuntimeFault("noise: holds NaN or infinity", Status.NONFINITE)
        return given.astype(np.float32)

    def _conditions(self, program: str, given: Mapping[str, npt.ArrayLike], batch: int) -> dict[str, Tensor]:
        specs = self._needed[program]
        for name in given:
            if name not in specs:
                raise RuntimeFault(f"no condition {name!r}: {nearest(name, specs)}", Status.UNKNOWN_NAME)
        return {name: _condition(spec, given.get(name), batch) for name, spec in specs.items()}

    def default_conditions(self, program: str | None = None) -> dict[str, Tensor]:
        """The conditions that golden vectors and timings use, one value per condition of a program (None: the default program)."""
        return {name: value[0] for name, value in default_conditions(self._needed[self._pick(None, program)].values()).items()}

    def self_test(self) -> list[tuple[str, str, Distance, float]]:
        """Run the golden vectors of this variant: (program, member, distance, tolerance on the RMSE) for each."""
        results = []
        sample = self.bundle.manifest.sample
        for golden in self.variant.golden:
            conditions: dict[str, Any] = self.default_conditions(golden.program)
            expected = np.frombuffer(self.bundle.member(golden.member), "<f4").reshape(1, *sample.shape)
            found = self.generate(seed=0, program=golden.program, **conditions)
            results.append((golden.program, golden.member, distance(expected, found, sample.high - sample.low), golden.tolerance))
        return results

    def close(self) -> None:
        """Release the engine's sessions; generating afterwards is an error."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        if self._fused is not None:
            self._fused.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _batch(batch: int) -> int:
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or not 1 <= batch <= 65_536:
        raise RuntimeFault(f"batch: expected a whole number in 1 .. 65536, found {batch!r}", Status.OUT_OF_RANGE)
    return int(batch)


def _condition(spec: ConditionSpec, value: npt.ArrayLike | None, batch: int) -> Tensor:
    """A condition as dtype[batch, *shape], from one value for all or one per sample."""
    wanted = (batch, *spec.shape)
    if isinstance(value, np.ndarray) and value.dtype == spec.dtype and value.size and value.shape in (wanted, spec.shape) and _inside(spec, value):
        if value.shape != wanted:
            value = value[np.newaxis].repeat(batch, 0)
        return np.ascontiguousarray(value)
    expected = f"{spec.dtype}{list(wanted)} or {spec.dtype}{list(spec.shape)}"
    if value is None:
        if spec.default is None:
            raise RuntimeFault(f"condition {spec.name!r} is needed: {expected}{_range(spec)}", Status.UNKNOWN_NAME)
        value = np.full(spec.shape, spec.default)
    given = np.asarray(value)
    if given.dtype.kind not in "iufb":
        raise RuntimeFault(f"condition {spec.name!r}: expected {expected}, found {value!r}", Status.BAD_DTYPE)
    if given.shape not in (wanted, spec.shape):
        raise RuntimeFault(f"condition {spec.name!r}: expected {expected}, found shape {list(given.shape)}", Status.BAD_SHAPE)
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise RuntimeFault(f"condition {spec.name!r}: holds NaN or infinity", Status.NONFINITE)
    cast = given.astype(spec.dtype)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, given):
        raise RuntimeFault(f"condition {spec.name!r}: expected {spec.dtype}, found {given.dtype.name} values that are not whole", Status.BAD_DTYPE)
    allowed = (cast >= (-np.inf if spec.minimum is None else spec.minimum)) & (cast <= (np.inf if spec.maximum is None else spec.maximum))
    if not allowed.all() and not (spec.null is not None and np.all(allowed | (cast == spec.null))):
        raise RuntimeFault(f"condition {spec.name!r}: {cast[~allowed].flat[0]} is out of range{_range(spec)}", Status.OUT_OF_RANGE)
    return np.ascontiguousarray(np.broadcast_to(cast, wanted))


def _inside(spec: ConditionSpec, value: Tensor) -> bool:
    """Whether every element is in the condition's range; False for NaN and infinity, and wherever the answer is not plain."""
    low, high = value.min(), value.max()
    least, most = (-math.inf if spec.minimum is None else spec.minimum), (math.inf if spec.maximum is None else spec.maximum)
    return bool(least <= low and high <= most) and (value.dtype.kind != "f" or (low > -math.inf and high < math.inf))


def _range(spec: ConditionSpec) -> str:
    if spec.minimum is None and spec.maximum is None:
        return ""
    low, high = ("-inf" if spec.minimum is None else f"{spec.minimum:g}"), ("inf" if spec.maximum is None else f"{spec.maximum:g}")
    return f", from {low} to {high}"


def load(path: str | Path, *, variant: str | None = None, threads: int = 0, fused: bool | None = None, runtime: str = "python") -> Session:
    """Open a bundle on this device.

    variant: a name from the bundle; None takes the first that this device can run, the best when it was measured. threads: of the engine, 0 for what
    was measured to be fastest, or one per core. fused: None runs a program as one network where the variant holds it for the batch; True also
    makes those that it does not hold, at their first use (`edgegen.program.fuse`); False runs step by step. A call with on_step runs step by
    step. runtime: "python", or "native" for libedgegen (docs/c_api.md).
    Raises BundleError (the file), or RuntimeFault (BACKEND_MISSING, NO_VARIANT, BACKEND_FAILED: this device).
    """
    return open_session(open_bundle(path), variant=variant, threads=threads, fused=fused, runtime=runtime)


def open_session(bundle: Bundle, *, variant: str | None = None, threads: int = 0, fused: bool | None = None, runtime: str = "python") -> Session:
    """A session over a bundle that is already read; see `load`."""
    variants = {v.name: v for v in bundle.manifest.variants}
    if variant is not None:
        if variant not in variants:
            raise RuntimeFault(f"no variant {variant!r} in this bundle: {nearest(variant, variants)}", Status.NO_VARIANT)
        return Session(bundle, variants[variant], threads=threads, fused=fused, runtime=runtime)
    missing: list[str] = []
    for v in variants.values():
        if v.engine not in (ENGINES if runtime == "python" else ENGINES[:1]):
            missing.append(f"{v.name}: is for {v.engine}, which this runtime cannot run")
            continue
        try:
            session = Session(bundle, v, threads=threads, fused=fused, runtime=runtime)
            reason = _differs(session) if v.engine != "onnxruntime" else ""
        except RuntimeFault as e:
            absent = e.code == Status.PROVIDER_MISSING or (v.engine != "onnxruntime" and e.code == Status.BACKEND_MISSING)
            if not absent or len(variants) == 1:
                raise
            reason = str(e)
        if reason:
            missing.append(f"{v.name}: {reason}")
            continue
        for line in missing:
            logger.warning("variant %s; taking %s", line, v.name)
        return session
    raise RuntimeFault(f"no variant of this bundle runs here: {'; '.join(missing)}", Status.NO_VARIANT)


def _differs(session: Session) -> str:
    """Why an engine that was built on this device is not to be used: its golden vectors differ. Empty if they do not."""
    for program, _, found, tolerance in session.self_test():
        if not found.rmse <= tolerance:
            session.close()
            return f"{program} differs from its golden vector by {found.rmse:.2e} here, {tolerance:.0e} is allowed"
    return ""
