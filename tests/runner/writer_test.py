# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: strict JSON, the same bytes every time, right after a resume; trackers."""

import json
import math
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runner import writer
from experiments.runner.errors import UserError

LOG = {"every_s": 1e9, "tensorboard": False, "wandb": ""}


def fill(workdir: Path, start: int, stop: int, resumed: int = -1, log: Any = LOG) -> None:
    with writer.open_writer(workdir, log, stop, resumed) as out:
        for step in range(start, stop + 1):
            values = np.float32([1 / (step + 1), 0.1])
            out.write(step, "train", {"loss": np.float32(0.1) * step, "ret": values}, 0.5 * step)
            if step % 2 == 0:
                out.write(step, "valid", {"valid/acc": 1 / 3}, {"wall": step, "eval": 1.0})


def strict(line: str) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_lines_hold_means_per_seed_values_and_time(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    lines = [strict(line) for line in (tmp_path / writer.FILE).read_text().splitlines()]
    assert lines[0] == {
        "step": 1, "split": "train", "loss": 0.1, "ret": pytest.approx(0.3),
        "per_seed": {"ret": [0.5, 0.1]}, "time": {"wall_s": 0.5},
    }  # fmt: skip
    assert [(r["step"], r["split"]) for r in lines] == [(1, "train"), (2, "train"), (2, "valid")]
    assert lines[2] == {
        "step": 2, "split": "valid", "valid/acc": 1 / 3, "time": {"wall": 2.0, "eval": 1.0}
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_stay_strict_json_and_come_back(tmp_path: Path, value: float) -> None:
    with writer.open_writer(tmp_path, LOG, 1) as out:
        out.write(1, "train", {"loss": value, "seeds": np.array([1.0, value])})
    strict((tmp_path / writer.FILE).read_text())
    (record,) = writer.read_metrics(tmp_path / writer.FILE)
    for back in (record["loss"], record["seeds"], record["per_seed"]["seeds"][1]):
        assert back == value or (math.isnan(back) and math.isnan(value))


def test_float32_is_short_and_exact_and_float64_is_exact() -> None:
    for x in np.random.default_rng(0).normal(size=50):
        assert writer.plain(x) == x
        single = np.float32(x)
        assert np.float32(writer.plain(single)) == single
        assert len(repr(writer.plain(single))) <= 15


def test_bad_metrics_are_refused(tmp_path: Path) -> None:
    with writer.open_writer(tmp_path, LOG, 1) as out:
        for metrics in ({"time": 1.0}, {"x": np.zeros((2, 2))}, {"x": "text"}, {"x": np.zeros(0)}):
            with pytest.raises(ValueError, match="metric"):
                out.write(1, "train", metrics)
    assert (tmp_path / writer.FILE).read_text() == ""


def without_time(path: Path) -> list[str]:
    lines = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        record.pop("time", None)
        lines.append(json.dumps(record))
    return lines


def test_resume_gives_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fill(whole, 1, 8)
    fill(broken, 1, 7)
    with (broken / writer.FILE).open("a") as file:
        file.write('{"step": 8, "split": "tr')  # killed in the middle of a line
    # Restored at 4: the valid line of step 4 is there and is written again by the caller.
    with writer.open_writer(broken, LOG, 8, 4) as out:
        out.write(4, "valid", {"valid/acc": 1 / 3}, 1.0)
    fill(broken, 5, 8, resumed=4)
    assert without_time(broken / writer.FILE) == without_time(whole / writer.FILE)
    assert sorted(p.name for p in broken.iterdir()) == [writer.FILE]


def test_truncation_drops_beyond_and_says_what_is_at_the_step(tmp_path: Path) -> None:
    fill(tmp_path, 1, 6)
    path = tmp_path / writer.FILE
    assert writer.truncate_after(path, 4) == {"train", "valid"}
    assert max(r["step"] for r in writer.read_metrics(path)) == 4
    before = path.stat().st_ino
    assert writer.truncate_after(path, 9) == set()
    assert path.stat().st_ino == before, "nothing to drop, nothing rewritten"
    assert writer.truncate_after(path, -1) == set()
    assert path.read_text() == ""
    assert writer.truncate_after(tmp_path / "none", 3) == set()


def test_a_last_line_that_lacks_only_its_end_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, 1, 3)
    path = tmp_path / writer.FILE
    path.write_bytes(path.read_bytes()[:-1])  # kept, the next line would be glued to it
    assert writer.truncate_after(path, 3) == set()
    assert [r["step"] for r in writer.read_metrics(path)] == [1, 2, 2]
    assert path.read_bytes().endswith(b"\n")


def test_damage_inside_the_file_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    fill(tmp_path, 1, 3)
    path = tmp_path / writer.FILE
    lines = path.read_text().splitlines(keepends=True)
    damaged = lines[0] + lines[1][:9] + "\n" + lines[2]
    path.write_text(damaged)
    for action in (writer.read_metrics, lambda p: writer.truncate_after(p, 1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
            action(path)
    assert path.read_text() == damaged
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_main_process_writes(tmp_path: Path, capsys: Any) -> None:
    with writer.open_writer(tmp_path / "w", LOG, 3, main=False) as out:
        out.write(1, "train", {"loss": 1.0})
        out.text("hello")
        out.flush()
    assert not (tmp_path / "w").exists()
    assert capsys.readouterr().err == ""


def test_console_lines_follow_the_clock_and_the_file_does_not(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100))
    monkeypatch.setattr(writer.clock, "monotonic", lambda: float(next(now)))
    with writer.open_writer(tmp_path, {**LOG, "every_s": 4.0}, 100) as out:
        for step in range(1, 11):
            out.write(step, "train", {"loss": 0.5})
        out.write(10, "valid", {"valid/acc": 0.25})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 1/100  train  loss 0.5",
        "step 5/100  train  loss 0.5  1 steps/s  ETA 1m35s",
        "step 9/100  train  loss 0.5  1 steps/s  ETA 1m31s",
        "step 10/100  valid  acc 0.25",
    ]
    assert len(writer.read_metrics(tmp_path / writer.FILE)) == 11


def test_a_bar_on_a_terminal(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with writer.open_writer(tmp_path, {**LOG, "every_s": 0.0}, 4) as out:
        out.write(2, "train", {"loss": 0.5})
        out.text("above the bar")
        out.write(4, "train", {"loss": 0.25})
    err = capsys.readouterr().err
    assert "4/4" in err and "loss=0.25" in err and "above the bar\n" in err


def test_durations() -> None:
    assert [writer.short(s) for s in (0.4, 42, 187, 7500, math.inf)] == [
        "0s", "42s", "3m07s", "2h05m", "?",
    ]  # fmt: skip


def events(folder: Path) -> list[Any]:
    """Scalars of an event file, by its public record format: length, crc, bytes, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += length + 16
    return found


def test_tensorboard_file_is_readable(tmp_path: Path) -> None:
    log = {**LOG, "tensorboard": True}
    with writer.open_writer(tmp_path, log, 2) as out:
        out.write(1, "train", {"loss": 0.5, "bad": math.nan})
        out.write(2, "valid", {"valid/acc": np.array([0.25, 0.75])})
    assert events(tmp_path / "tb") == [(1, "train/loss", 0.5), (2, "valid/acc", 0.5)]


def test_a_failing_tracker_warns_once_and_training_goes_on(tmp_path: Path, capsys: Any) -> None:
    calls = []

    def log(step: int, scalars: dict[str, float]) -> None:
        calls.append(step)
        raise OSError("no space left")

    nothing = lambda: None
    with writer.open_writer(tmp_path, LOG, 3) as out:
        out._trackers.append(writer.Tracker("Board", log, nothing, nothing, (OSError,)))
        for step in (1, 2, 3):
            out.write(step, "train", {"loss": 1.0})
    assert calls == [1]
    assert capsys.readouterr().err.count("warning: Board stopped (OSError: no space left)") == 1
    assert len(writer.read_metrics(tmp_path / writer.FILE)) == 3


def test_a_fault_of_ours_in_a_tracker_is_not_hidden(tmp_path: Path) -> None:
    def log(step: int, scalars: dict[str, float]) -> None:
        raise KeyError("a bug")

    nothing = lambda: None
    with writer.open_writer(tmp_path, LOG, 3) as out:
        out._trackers.append(writer.Tracker("Board", log, nothing, nothing, (OSError,)))
        with pytest.raises(KeyError):
            out.write(1, "train", {"loss": 1.0})


@pytest.mark.parametrize(("flag", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'{flag}.*pip install -e "\.\[{flag}\]"'):
        writer.open_writer(tmp_path, {**LOG, flag: "name"}, 1)


def test_wandb_without_a_key_stays_offline_and_its_failure_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Error(Exception):
        pass

    seen: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        seen.update(options)
        raise Error("no\n route")

    fake: Any = types.ModuleType("wandb")
    fake.init, fake.errors = init, types.SimpleNamespace(Error=Error)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with writer.open_writer(tmp_path, {**LOG, "wandb": "project"}, 1) as out:
        out.write(1, "train", {"loss": 1.0})
    assert seen["mode"] == "offline" and seen["project"] == "project"
    assert capsys.readouterr().err.count("warning: wandb stopped (Error: no route)") == 1
