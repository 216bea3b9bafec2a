# SPDX-License-Identifier: Apache-2.0
"""Grids of runs: every combination of values and seeds, its command and its folder.

Imports no JAX.
"""

import hashlib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.runner import command_line, folder, settings
from experiments.runner.errors import UserError

MAX_NAME = 120  # characters of a folder's name, before the seed
OPENING = "([{"
CLOSING = ")]}"


class Member(NamedTuple):
    """One run of a grid."""

    name: str
    """Of its folder: "lr=0.1_width=8_s0"."""
    words: tuple[str, ...]
    """Its own part of the command line: --config, overrides and seed."""
    values: dict[str, Any]
    """Its config as plain JSON values."""


def split_values(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes: "1,(2,3),'a,b'" has three values."""
    parts = [""]
    depth = 0
    quote = ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in OPENING:
            depth += 1
        elif char in CLOSING:
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def parse_seeds(text: str) -> list[int]:
    """Seeds of "0-4" or "0,3,7-9".

    Raises:
        UserError: no such list, a range that is empty, or a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            raise UserError(f"--seeds={text}: {part!r} is no seed and no range such as 0-4")
        first = int(found[1])
        last = int(found[2] or first)
        if last < first:
            raise UserError(f"--seeds={text}: the range {part!r} is empty")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: a seed is there twice")
    return seeds


def members(config: str, overrides: Sequence[str], seeds: Sequence[int]) -> list[Member]:
    """The product of all values and seeds, seeds innermost; each is checked as run.py would.

    Args:
        config: SYSTEM, SYSTEM:VARIANT or a file.
        overrides: "--config.group.key=value,value", each a text.

    Raises:
        UserError: a key twice or without a value, a value twice, or a config that run.py refuses.
    """
    axes = dict(_axis(word) for word in overrides)
    if len(axes) < len(overrides):
        raise UserError("a --config key is there twice: give its values once, with commas")
    if "seed" in axes:
        raise UserError("--config.seed: give seeds as --seeds=0-4")
    short_names = _short_names(axes)
    out = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        varied = [f"{short_names[k]}={v}" for k, v in chosen.items() if len(axes[k]) > 1]
        for seed in seeds:
            words = [f"--config={config}", *(f"--config.{k}={v}" for k, v in chosen.items())]
            words.append(f"--config.seed={seed}")
            name = _safe("_".join(varied)) + ("_" if varied else "") + f"s{seed}"
            out.append(Member(name, tuple(words), load(words)))
    _check_distinct(out)
    return out


def _axis(word: str) -> tuple[str, list[str]]:
    key, equals, text = word.removeprefix("--config.").partition("=")
    values = [value.strip() for value in split_values(text)]
    if not equals or "" in values:
        raise UserError(f"{word}: give --config.{key}=VALUE or VALUE,VALUE (tuples in parentheses)")
    if len(set(values)) < len(values):
        raise UserError(f"{word}: a value is there twice")
    return key, values


def _short_names(axes: Mapping[str, Any]) -> dict[str, str]:
    """{key: its last part, or the whole key where another one ends alike}."""
    last = [key.rpartition(".")[2] for key in axes]
    return {key: key if last.count(end) > 1 else end for key, end in zip(axes, last, strict=True)}


def _safe(text: str) -> str:
    """A folder's name: other characters become "-", and a long text ends in a digest of it."""
    name = re.sub(r"[^\w.=+-]+", "-", text).strip("-")
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _check_distinct(found: Sequence[Member]) -> None:
    """Raises UserError where two members have the same folder or the same config."""
    named: dict[str, Member] = {}
    hashed: dict[str, Member] = {}
    for member in found:
        for by, key in ((named, member.name), (hashed, repr(sorted(_flat(member).items())))):
            if key in by:
                raise UserError(
                    f"two members are the same run: {' '.join(by[key].words)} and "
                    f"{' '.join(member.words)}"
                )
            by[key] = member


def _flat(member: Member) -> dict[str, Any]:
    return {key: str(value) for key, value in settings.flatten(member.values).items()}


@contextmanager
def _arguments(words: Sequence[str]) -> Iterator[None]:
    """sys.argv for the time of a block: ml_collections reads overrides there."""
    before = sys.argv
    sys.argv = list(words)
    try:
        yield
    finally:
        sys.argv = before


def load(words: Sequence[str]) -> dict[str, Any]:
    """The config of a command line, checked, as plain JSON values.

    Raises:
        UserError: what run.py would refuse.
    """
    values = flags.FlagValues()
    command_line.define_flags(values)
    argv = ["run.py", *words]
    with _arguments(argv):
        try:
            values(argv)
        except command_line.MISTAKES as error:
            reason = command_line.reason_of(error, argv, values)
            raise UserError(f"{' '.join(words)}: {reason}") from error
    settings.groups(values.config)
    return settings.to_json(values.config)


def is_finished(workdir: Path, member: Member) -> bool:
    """Whether the folder holds this very run, finished.

    Raises:
        UserError: a damaged file.
    """
    if not (workdir / "results.json").exists():
        return False
    stored = folder.read_json(workdir / "config.json")
    stored.pop(settings.CONTENT, None)
    same = settings.config_hash(stored) == settings.config_hash(member.values)
    steps = member.values["train"]["steps"]
    return same and folder.read_results(workdir)["step"] == steps
