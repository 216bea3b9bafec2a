# SPDX-License-Identifier: Apache-2.0
"""Where numbers of a run go: metrics.jsonl always, console always, TensorBoard and wandb on demand.

One line of metrics.jsonl is one strict JSON object

    {"step": 1200, "split": "train", "loss": 1.23, "per_seed": {"loss": [1.2, 1.26]}, "time": {...}}

Two runs of one command write the same bytes apart from `time`: every `write` is a line, whatever
the clock says. A metric with one value per seed is stored as
its mean with the values under `per_seed`. JSON has no NaN or infinity: they are written as the
strings "NaN", "Infinity" and "-Infinity", and `read_metrics` turns them back into floats.
"""

import importlib
import json
import math
import os
import sys
import time as clock
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from experiments.runner.errors import UserError

FILE = "metrics.jsonl"
RESERVED = ("step", "split", "per_seed", "time")
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
CONSOLE_KEYS = 6  # metrics shown per console line; the file holds all of them
BAR_KEYS = 2  # and beside the bar
BAR_WIDTH = 100  # columns, whatever is shown beside it
TIMED_STEPS = 2  # before that a rate says nothing


# --------------------------------------------------------------------------------------- the file


def plain(value: Any) -> int | float | list[int | float]:
    """A metric as Python numbers: a scalar, or the list of per-seed values of an array [seeds].

    float32 is shortened to the digits that identify it, so the text is short and exact.
    """
    array = np.asarray(value)
    if array.ndim > 1 or array.size == 0 or array.dtype.kind in "OSUcMm":
        raise ValueError(
            f"a metric is a number or an array [num_seeds], not {array.dtype}{list(array.shape)}"
        )
    if array.dtype.kind in "bui":
        numbers: list[int | float] = [int(x) for x in array.ravel()]
    elif array.dtype == np.float32:
        numbers = [float(str(x)) for x in array.ravel()]
    else:  # float64 exactly; float16 and bfloat16 through float64
        numbers = [float(x) for x in array.ravel()]
    return numbers[0] if array.ndim == 0 else numbers


def mean(values: list[int | float]) -> float:
    """Mean over seeds in float64; a non-finite seed makes the mean non-finite, without warning."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.mean(np.asarray(values, np.float64)))


def encode(step: int, split: str, metrics: Mapping[str, Any], time: Mapping[str, Any]) -> str:
    """One line of metrics.jsonl, newline included."""
    record: dict[str, Any] = {"step": int(step), "split": split}
    per_seed = {}
    for name, value in metrics.items():
        if name in RESERVED:
            raise ValueError(f"metric name {name!r} is reserved in {FILE}: {', '.join(RESERVED)}")
        number = plain(value)
        if isinstance(number, list):
            per_seed[name] = [_finite(x) for x in number]
            number = mean(number)
        record[name] = _finite(number)
    if per_seed:
        record["per_seed"] = per_seed
    if time:
        record["time"] = {k: _finite(round(float(v), 4)) for k, v in time.items()}
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(x: int | float) -> int | float | str:
    if math.isfinite(x):
        return x
    return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def _decode(value: Any) -> Any:
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, list):
        return [_decode(x) for x in value]
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in value.items()}
    return value


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields (raw line, record) of every whole line. A torn last line (a killed run) is left out.

    Raises:
        UserError: a line before the last is no record, or repeats the (step, split) of another; the
            file and line are named.
    """
    broken = ""  # what is wrong with the line before: fatal unless that was the last one
    seen: set[tuple[int, str]] = set()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if broken:
                raise UserError(broken)
            record = _record(raw)
            if record is None:
                broken = f"{path}, line {number} is damaged: no metrics record"
                continue
            entry = (record["step"], record["split"])
            if entry in seen:
                raise UserError(
                    f"{path}, line {number}: a second record of step {entry[0]}, split {entry[1]}; "
                    "two processes wrote this run, start it again in another folder"
                )
            seen.add(entry)
            yield raw, record


def _record(raw: bytes) -> dict[str, Any] | None:
    """The record of one line, None for a torn line or anything else."""
    if not raw.endswith(b"\n"):
        return None
    try:
        record = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("split"), str):
        return None
    step = record.get("step")
    clock_of_run = record.get("time", {"wall": 0.0})
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return None
    if not isinstance(clock_of_run, dict):
        return None
    return record


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl in file order, non-finite strings back as floats.

    A torn last line is ignored, so the file of a run in progress can be read.
    """
    return [
        {k: v if k == "split" else _decode(v) for k, v in record.items()}
        for _, record in _lines(Path(path))
    ]


def truncate_after(path: str | Path, step: int) -> set[str]:
    """Drop the lines beyond `step` and a torn last line; atomic (temporary file, then rename).

    Returns: the splits that already have a line at `step` itself.
    """
    path = Path(path)
    kept_splits: set[str] = set()
    if not path.exists():
        return kept_splits
    kept_bytes = 0
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            for raw, record in _lines(path):
                if record["step"] <= step:
                    kept_bytes += out.write(raw)
                    if record["step"] == step:
                        kept_splits.add(record["split"])
            out.flush()
            os.fsync(out.fileno())
        if kept_bytes != path.stat().st_size:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return kept_splits


# ---------------------------------------------------------------------------------- the trackers


class Tracker(NamedTuple):
    """An optional second home of the metrics. `errors` are the failures it may have quietly."""

    name: str
    log: Callable[[int, dict[str, float]], None]
    flush: Callable[[], None]
    close: Callable[[], None]
    errors: tuple[type[BaseException], ...]


def tag(split: str, name: str) -> str:
    """Full metric key: `train/loss`; evaluation metrics already carry their split."""
    return name if name.startswith(f"{split}/") else f"{split}/{name}"


def _tensorboard(workdir: Path, start_step: int) -> Tracker:
    module = _need("tensorboardX", "log.tensorboard=True", "tensorboard")
    purge = start_step + 1 if start_step >= 0 else None
    board = module.SummaryWriter(logdir=str(workdir / "tb"), purge_step=purge)

    def log(step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):  # tensorboardX prints a line for every other value
                board.add_scalar(name, value, step)

    return Tracker("TensorBoard", log, board.flush, board.close, (OSError,))


def _wandb(workdir: Path, project: str) -> list[Tracker]:
    """The tracker, or none with a warning where the service cannot be reached."""
    module = _need("wandb", f"log.wandb={project!r}", "wandb")
    errors = (OSError, module.errors.Error)
    # Without a key wandb would stop and ask for one. It writes to the disk instead, and nothing
    # leaves the machine unless WANDB_API_KEY or WANDB_MODE=online says so.
    offline = "offline" if "WANDB_API_KEY" not in os.environ else "online"
    mode = os.environ.get("WANDB_MODE", offline)
    try:
        run = module.init(project=project, name=workdir.name, dir=str(workdir), mode=mode)
    except errors as error:
        print(f"warning: {_dropped('wandb', error)}", file=sys.stderr, flush=True)
        return []
    log = lambda step, scalars: run.log(scalars, step=step)
    return [Tracker("wandb", log, lambda: None, run.finish, errors)]


def _dropped(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()) or "no reason given"
    return (
        f"{name} stopped ({type(error).__name__}: {reason}); "
        f"training goes on, {FILE} has every number"
    )


def _need(module: str, flag: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f'config.{flag} needs {module}, which is not installed: pip install -e ".[{extra}]"'
        ) from error


def check_trackers(config_log: Mapping[str, Any]) -> None:
    """Raises UserError, before anything is written, if a tracker asked for is not installed."""
    if config_log.get("tensorboard"):
        _need("tensorboardX", "log.tensorboard=True", "tensorboard")
    if config_log.get("wandb"):
        _need("wandb", f"log.wandb={config_log['wandb']!r}", "wandb")


# ------------------------------------------------------------------------------------ the writer


def short(seconds: float | int) -> str:
    """A duration for humans: 42s, 3m07s, 2h05m."""
    if not math.isfinite(seconds):
        return "?"
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"


class Writer:
    """Open with `open_writer`; a context manager. On every process but the main one: silence."""

    def __init__(self, file: TextIO | None, done: tuple[int, set[str]], trackers: list[Tracker],
                 every_s: float | int, span: tuple[int, int],
                 first: tuple[str, ...] = ()) -> None:  # fmt: skip
        self._first = first
        self._file = file
        self._done = done
        self._trackers = trackers
        self._every_s = every_s
        self._start, self._total = span
        self._bar: tqdm | None = None
        self._printed = -math.inf  # monotonic time of the last train line on the console
        self._mark: tuple[int, float] | None = None  # (step, time) from which speed is measured

    def write(
        self, step: int, split: str, metrics: Mapping[str, Any],
        time: Mapping[str, Any] | float | int | None = None,
    ) -> None:  # fmt: skip
        """Record metrics of one step and split.

        Args:
            metrics: name -> number, or array [num_seeds] of numbers.
            time: seconds, by name; a single number is stored as `wall_s`.
        """
        if self._file is None or (step == self._done[0] and split in self._done[1]):
            return  # not the main process, or restored with the file and already there
        if not isinstance(time, Mapping):
            time = {} if time is None else {"wall_s": time}
        self._file.write(encode(step, split, metrics, time))
        if self._trackers:
            named = {tag(split, name): _scalar(value) for name, value in metrics.items()}
            for tracker in list(self._trackers):
                self._try(tracker, lambda t=tracker: t.log(step, named))
        self._console(step, split, metrics)

    def text(self, line: str) -> None:
        """Print a line on stderr, above the progress bar where there is one."""
        if self._file is None:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        for tracker in list(self._trackers):
            self._try(tracker, tracker.flush)

    def close(self) -> None:
        """Flush and close. A second call does nothing."""
        if self._file is None:
            return
        try:
            self.flush()
            for tracker in list(self._trackers):
                self._try(tracker, tracker.close)
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            self._file.close()
            self._file = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _try(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """A tracker that fails is dropped with one warning: training is worth more than a plot."""
        try:
            action()
        except tracker.errors as error:
            self._trackers.remove(tracker)
            self.text(f"warning: {_dropped(tracker.name, error)}")

    def _console(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        now = clock.monotonic()
        train = split == "train"
        if train and self._mark is None:
            self._mark = (step, now)  # after the first step, so that compilation is not counted
        if train and sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=self._total, initial=self._start, unit="step",
                                 ncols=BAR_WIDTH, file=sys.stderr)  # fmt: skip
            self._bar.update(step - self._bar.n)
        if train and now - self._printed < self._every_s and step != self._total:
            return
        shown = {
            k.removeprefix(f"{split}/"): f"{_scalar(v):.4g}"
            for k, v in list(metrics.items())[:CONSOLE_KEYS]
        }
        if train and self._bar is not None:
            first = [name for name in self._first if name in shown] or list(shown)
            self._bar.set_postfix({name: shown[name] for name in first[:BAR_KEYS]})
        else:
            pieces = [f"step {step}/{self._total}", split, *(f"{k} {v}" for k, v in shown.items())]
            self.text("  ".join(pieces + (self._speed(step, now) if train else [])))
        if train:
            self._printed = now

    def _speed(self, step: int, now: float) -> list[str]:
        first, then = self._mark or (step, now)
        if step - first < TIMED_STEPS or now <= then:
            return []
        rate = (step - first) / (now - then)
        self._mark = (step, now)  # the next line tells the speed since this one
        return [f"{rate:.3g} steps/s", f"ETA {short((self._total - step) / rate)}"]


def _scalar(value: Any) -> float:
    number = plain(value)
    return mean(number) if isinstance(number, list) else float(number)


def open_writer(
    workdir: str | Path,
    config_log: Mapping[str, Any],
    total_steps: int,
    start_step: int = -1,
    main: bool = True,
    first: tuple[str, ...] = (),
) -> Writer:
    """Open the metrics of a run folder for appending.

    Args:
        config_log: `every_s` seconds between console lines, `tensorboard` bool, `wandb` project
            name or "".
        total_steps: for the bar and the ETA.
        start_step: the restored step; lines beyond it are dropped, and a split that already has a
            line at it is not written twice. -1 on a fresh start: every old line is dropped.
        main: False on all processes but one; those write nothing.
        first: training metrics shown beside the bar, in this order; the others have no place.

    Raises:
        UserError: a tracker was asked for and is not installed, with the command that installs it;
            or a damaged metrics.jsonl.
    """
    every_s = float(config_log["every_s"])
    span = (max(start_step, 0), total_steps)
    if not main:
        return Writer(None, (start_step, set()), [], every_s, span)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    done = truncate_after(workdir / FILE, start_step)
    trackers = []
    if config_log.get("tensorboard"):
        trackers.append(_tensorboard(workdir, start_step))
    if config_log.get("wandb"):
        trackers += _wandb(workdir, str(config_log["wandb"]))
    file = (workdir / FILE).open("a", buffering=1, encoding="utf-8", newline="\n")
    return Writer(file, (start_step, done), trackers, every_s, span, first)
