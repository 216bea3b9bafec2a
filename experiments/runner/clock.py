# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of a run go, and the signals that end it early."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

PROFILE_STEPS = (10, 15)
KINDS = ("data", "step", "eval", "checkpoint", "compile")


@contextmanager
def stop_signal() -> Iterator[list[int]]:
    """A list of the SIGTERMs and SIGINTs received; whoever works looks at it between two steps."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        old = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    except ValueError:  # not the main thread (a notebook server): signals stay with their owner
        old = {}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Timer:
    """Seconds by kind and steps timed; all go on from where an interrupted run left off.

    Args:
        before: the last `line` of that run; {} for a fresh one.
    """

    def __init__(self, before: Mapping[str, float]) -> None:
        self.began = time.perf_counter()
        self.before = before.get("wall", 0.0)
        self.spent: dict[str, float] = {kind: before.get(kind, 0.0) for kind in KINDS}
        self.timed_steps = int(before.get("steps", 0))

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[kind] += time.perf_counter() - began

    def wall(self) -> float:
        return self.before + time.perf_counter() - self.began

    def line(self) -> dict[str, float]:
        """What a record of the log says of time."""
        return {"wall": self.wall(), **self.spent, "steps": self.timed_steps}

    def rate(self) -> float | None:
        """Steps per second spent on steps and on waiting for data; None where none was timed."""
        seconds = self.spent["step"] + self.spent["data"]
        return self.timed_steps / seconds if self.timed_steps and seconds else None


class Trace:
    """A profiler trace of steps 10 to 15 of this process, or of the last one where it has fewer."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.first = min(PROFILE_STEPS[0], steps)
        self.last = min(PROFILE_STEPS[1], steps)

    def before(self, step: int) -> None:
        """Begins before step number `step` of this process, counted from 1."""
        if step == self.first:
            jax.profiler.start_trace(str(self.folder))

    def after(self, step: int, state: Any) -> None:
        """Ends after it, once the device has computed `state`."""
        if step == self.last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
