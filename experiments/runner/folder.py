# SPDX-License-Identifier: Apache-2.0
"""The run folder: who may write it, what it holds besides checkpoints, and results.json."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.runner import memory, settings
from experiments.runner.errors import UserError
from experiments.runner.lock import LOCK

FILES = (
    "config.json",
    "env.json",
    "command.txt",
    "metrics.jsonl",
    "results.json",
    "report.md",
    "report.html",
)
NUMBER = (int, float)
VECTOR_FLAGS = ("sse4", "avx", "fma", "amx", "asimd", "sve", "bf16")
FOLDERS = ("checkpoints", "artifacts", "profile", "report_files", "tb", "wandb")
VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
ROOT = Path(__file__).resolve().parents[2]


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: a temporary file beside it, then a rename."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError naming the file if it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no run folder: {path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: a JSON object was expected")
    return value


def read_results(workdir: Path) -> dict[str, Any]:
    """results.json of a finished run."""
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{workdir} has no results.json: the run is not finished")
    results = read_json(path)
    for key, kind in (("metrics", NUMBER), ("tolerance", NUMBER), ("checkpoint_of", int)):
        values = results.get(key)
        if not isinstance(values, dict):
            raise UserError(f"{path} is damaged: {key!r} is missing")
        for name, value in values.items():
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{path} is damaged: {key}[{name!r}] = {value!r} is no number")
    for key in ("step", "tested"):
        step = results.get(key, 0 if key == "tested" else None)  # older files lack "tested"
        if not isinstance(step, int) or isinstance(step, bool):
            raise UserError(f"{path} is damaged: {key!r} is {step!r}, not a step")
    return results


def content_on_record(workdir: Path) -> dict[str, str] | None:
    """Digests of what the run in this folder started from; {} for a fresh folder, None for a run
    that started from something and kept no digests."""
    if not (workdir / "config.json").exists():
        return {}
    values = read_json(workdir / "config.json")
    stored = values.get(settings.CONTENT, {})
    if not isinstance(stored, dict):
        raise UserError(f"{workdir / 'config.json'} is damaged: {settings.CONTENT!r} is no object")
    return stored if stored or not settings.paths(values) else None


def claim(workdir: Path, values: Mapping[str, Any], overwrite: bool) -> bool:
    """Says whether the folder holds a run of this very config (resume) or none (fresh).

    Raises:
        UserError: it holds another run or other files, and `overwrite` is not set. Nothing is
            written or removed here.
    """
    if not workdir.exists():
        return False
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if overwrite or not any(path.name != LOCK for path in workdir.iterdir()):
        return False
    if not (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir} is not empty and no run folder; give another folder, or "
            "--overwrite to use it (only files of a run are replaced)"
        )
    old = read_json(workdir / "config.json")
    if settings.config_hash(old) != settings.config_hash(values):
        lines = settings.difference(old, values)
        raise UserError(
            f"--workdir={workdir} holds a run of another config:\n  "
            + "\n  ".join(lines)
            + "\ngive another --workdir, or --overwrite to replace it"
        )
    return True


def start(workdir: Path, values: Mapping[str, Any], fresh: bool) -> None:
    """Creates the folder, clears an overwritten run, writes config, environment and command."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in FILES:
                (workdir / name).unlink(missing_ok=True)
            for name in FOLDERS:
                if (workdir / name).is_dir():
                    shutil.rmtree(workdir / name)
        write_json(workdir / "config.json", dict(values))
        write_json(workdir / "env.json", environment())
        write_text(workdir / "command.txt", command())
        (workdir / "metrics.jsonl").touch()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def check_writable(workdir: Path) -> None:
    """Raises UserError if the folder, or the nearest parent that exists, cannot be written."""
    place = workdir.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir} cannot be written: no permission in {place}")


def commit() -> str:
    """Commit of this checkout, "+dirty" appended if files differ, "unknown" without git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    # Results are what runs leave, not what they are made from.
    changed = git("status", "--porcelain", "--", ".", ":!experiments/results")
    return (head + ("+dirty" if changed else "")) if head else "unknown"


def command() -> str:
    """The command line, ready to be repeated from the root of the checkout."""
    words = [os.path.relpath(sys.argv[0], ROOT) if Path(sys.argv[0]).exists() else sys.argv[0]]
    return " ".join(["python", *words, *sys.argv[1:]]) + f"\ncommit {commit()}\n"


def environment() -> dict[str, Any]:
    """Versions, devices and process layout of this run."""
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "backend": jax.default_backend(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "malloc": memory.settings_in_force(),
        "commit": commit(),
    }


def cpu_model() -> str:
    """What the processor calls itself, "unknown" where the system does not say."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_flags() -> str:
    """The vector extensions a compiler chooses by: they decide the last bits of a result."""
    flags = _cpuinfo("flags").split() or _cpuinfo("Features").split()
    return " ".join(sorted(flag for flag in flags if flag.startswith(VECTOR_FLAGS)))


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def device_name(env: Mapping[str, Any]) -> str:
    """ "4 x cpu" and the like."""
    kinds = sorted(set(env["devices"]))
    return ", ".join(f"{env['devices'].count(k)} x {k}" for k in kinds)
