# SPDX-License-Identifier: Apache-2.0
"""Config: the groups every system has, validation, JSON round trip and hash. Imports no JAX.

A config file offers `get_config(arg="base") -> ConfigDict` and `GROUPS`, a literal dict from group
name to the frozen dataclass that group is splatted into. An unknown key is thus a TypeError, a
value out of range a ValueError, both before JAX or TFDS is imported.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import names
from experiments.runner.errors import UserError

# Keys of the top level, and what they hold.
TOP = {
    "system": str,
    "variant": str,
    "seed": int,
    "num_seeds": int,
    "mesh": tuple,
    "fsdp": bool,
    "init_from": str,
}
MAX_SEED = 2**32  # what every sampler and jax.random.key take
# Keys that do not change what is computed at a given step.
NOT_HASHED = ("data.root", "mesh", "fsdp", "log", "train.steps")
# Keys that came after runs were kept, and the value that means what those runs did: not hashed.
ADDED = {
    "data.columns": "",
    "model.fusion_width": 0,
    "model.digit_dropout": 0.0,
    "model.smoothing": 0.0,
    "model.dropout_sites": "all",
    "sid.source_widths": [],
}
# A value that computes what another one did is hashed as that one: such runs go on.
HASHED_AS = {("model.scan", "auto"): True, ("sid.sources", "text"): []}
# (group, key, value of a run that was kept): what the key would hold today.
UPGRADED = {("sid", "sources", ()): "text"}
# Leaves, by their last name, that hold the path of something a run starts from. Its content counts,
# see runner/content.py, not where it lies.
PATHS = ("init_from", "run", "teacher", "first", "second", "runs", "weights")
CONTENT = "content"  # {flat key of such a leaf: digest}, beside the config in config.json


def at_least(group: str, low: int | float, **values: int | float) -> None:
    """Raises ValueError naming the first value below `low`."""
    for key, value in values.items():
        if not value >= low:
            raise ValueError(f"config.{group}.{key}={value!r} must be at least {low}")


def check_select(select: tuple[str, str]) -> None:
    """Raises ValueError unless it is (metric, "max" or "min")."""
    if len(select) != 2 or select[1] not in ("max", "min"):
        raise ValueError(
            f'config.eval.select={select!r} must be (metric, "max") or (metric, "min")'
        )


def one_seed(config: ConfigDict) -> None:
    """Raises ValueError for several seeds side by side, where a system trains one."""
    if config.num_seeds != 1:
        raise ValueError(
            f"config.num_seeds={config.num_seeds}: {config.system} trains one seed per run; start "
            "one with each --config.seed=... and compare them: --mode=report DIR DIR"
        )


@dataclass(frozen=True)
class Train:
    """steps: updates in all; save_every: steps between checkpoints."""

    steps: int
    save_every: int

    def __post_init__(self) -> None:
        at_least("train", 0, steps=self.steps)
        at_least("train", 1, save_every=self.save_every)


@dataclass(frozen=True)
class Eval:
    """every: steps between evaluations on split "valid"; select: (metric, "max"|"min") picks the
    checkpoint that is tested, ("", "max") takes the last; tolerance: absolute, for --mode=check."""

    every: int
    select: tuple[str, str]
    tolerance: float

    def __post_init__(self) -> None:
        at_least("eval", 1, every=self.every)
        at_least("eval", 0, tolerance=self.tolerance)
        check_select(self.select)


@dataclass(frozen=True)
class Log:
    """every: steps between train lines; every_s: seconds between console lines; tensorboard: write
    event files too; wandb: project name, "" for none."""

    every: int
    every_s: float
    tensorboard: bool
    wandb: str

    def __post_init__(self) -> None:
        at_least("log", 1, every=self.every)
        at_least("log", 0, every_s=self.every_s)


@dataclass(frozen=True)
class Data:
    """root: folder of raw files; "" means $BANYAN_DATA."""

    root: str


FRAME = {"train": Train, "eval": Eval, "log": Log, "data": Data}


def base_config(system: str, variant: str) -> ConfigDict:
    """Top level and frame groups with their defaults; a config file fills in the rest."""
    return ConfigDict(
        {
            "system": system,
            "variant": variant,
            "seed": 0,
            "num_seeds": 1,
            "mesh": (-1, 1),  # devices on axes (data, model); -1: all that are left
            "fsdp": False,  # also split leaves above 4 MiB that no rule names over data
            "init_from": "",
            "data": {"root": ""},
            "train": {"steps": 0, "save_every": 1000},
            "eval": {"every": 1000, "select": ("", "max"), "tolerance": 1e-6},
            "log": {"every": 1, "every_s": 10.0, "tensorboard": False, "wandb": ""},
        }
    )


def parse_arg(arg: str, variants: Sequence[str]) -> str:
    """Checks the part after the colon of --config=file.py:variant."""
    if arg not in variants:
        raise UserError(f"unknown variant {arg!r}: choose one of {', '.join(variants)}")
    return arg


def groups(config: ConfigDict) -> dict[str, Any]:
    """{group name: its frozen dataclass}, checked.

    Raises:
        UserError: a missing or unknown group or key, a value out of range or of a wrong type.
    """
    if "system" not in config:
        raise UserError("config.system is missing: it names a module of experiments/systems")
    _check_types(config, {"system": str})  # before the system is looked up by its name
    top = top_keys(config.system)
    _check_types(config, top)
    _check_ranges(config)
    classes = {**FRAME, **names.config_module(config.system).GROUPS}
    allowed = {*top, *classes}
    if set(config) != allowed:
        odd = sorted(set(config) ^ allowed)
        raise UserError(f"config keys {odd} are unknown or missing; expected {sorted(allowed)}")
    out = {}
    for name, cls in classes.items():
        try:
            out[name] = cls(**config.to_dict()[name])
        except TypeError as error:
            raise UserError(f"config.{name}: {error}") from error
        except ValueError as error:
            text = str(error)
            named = text if f"config.{name}" in text else f"config.{name}: {text}"
            raise UserError(named) from error
    return out


def top_keys(system: str) -> dict[str, type]:
    """{key of the top level: its type} of a system; folders of runs that it stands on, which its
    config module names in STANDS_ON, come last."""
    stands_on = getattr(names.config_module(system), "STANDS_ON", ())
    unknown = set(stands_on) - set(PATHS)
    if unknown:
        raise UserError(f"STANDS_ON of {system} names {sorted(unknown)}: it may name {PATHS}")
    return {**TOP, **dict.fromkeys(stands_on, str)}


def _check_types(config: ConfigDict, top: Mapping[str, type]) -> None:
    """Raises UserError for a key of the top level of a wrong type."""
    for key, kind in top.items():
        value = config.get(key, kind())  # a missing key is named with all the others
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"config.{key}={value!r} must be {kind.__name__}")


def _check_ranges(config: ConfigDict) -> None:
    """Raises UserError for a key of the top level that is out of range."""
    if config.get("num_seeds", 1) < 1:
        raise UserError(f"config.num_seeds={config.num_seeds} must be at least 1")
    if not 0 <= config.get("seed", 0) < MAX_SEED:
        raise UserError(f"config.seed={config.seed} must be at least 0 and below 2^32")
    mesh = tuple(config.get("mesh", (1, 1)))
    if len(mesh) != 2 or not all(isinstance(n, int) for n in mesh):
        raise UserError(f"config.mesh={mesh} must be two whole numbers, (data, model)")


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain dict; tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Inverse of `to_json`: lists become tuples again; digests of content are left out, and keys
    of runs kept from earlier are read as they are written today."""

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    restored = restore({k: v for k, v in values.items() if k != CONTENT})
    for (group, key, before), now in UPGRADED.items():
        if restored.get(group, {}).get(key) == before:
            restored[group][key] = now
    return ConfigDict(restored).lock()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"group.key": value}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def config_hash(values: Mapping[str, Any]) -> str:
    """12 hex digits over all keys that change what is computed, and the content of paths."""
    content = values.get(CONTENT, {})
    hashed = {}
    for key, value in flatten({k: v for k, v in values.items() if k != CONTENT}).items():
        if any(key == skip or key.startswith(skip + ".") for skip in NOT_HASHED):
            continue
        if key in ADDED and value == ADDED[key]:
            continue
        if key == "init_from" and key not in content:
            continue  # empty, or of a run that kept no digests: it never counted there
        as_before = HASHED_AS.get((key, value), value) if isinstance(value, str) else value
        hashed[key] = content.get(key, as_before)
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def check_source(values: Mapping[str, Any], workdir: Any) -> None:
    """Refuses to open a run of a system in a file of the user's own without that very file.

    Raises:
        UserError: the file was not given, or has changed.
    """
    recorded = values.get(CONTENT, {}).get("system")
    system = values.get("system")
    given = names.source_sha256(str(system))
    if recorded and given is None:
        raise UserError(
            f"{workdir} was made by {system}.py, a system of your own; code is never run from a "
            f"run folder: add --config=PATH/{system}.py"
        )
    if recorded and given != recorded:
        raise UserError(
            f"{workdir} was made by another {system}.py (SHA-256 {recorded[:12]}..., this one "
            f"{str(given)[:12]}...): give the file as it was"
        )


def paths(values: Mapping[str, Any]) -> dict[str, str]:
    """{flat key: path} of everything a config starts from."""
    leaves = flatten({k: v for k, v in values.items() if k != CONTENT})
    return {k: v for k, v in leaves.items() if k.split(".")[-1] in PATHS and v}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key that differs."""
    a = flatten(old)
    b = flatten(new)
    return [
        f"config.{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}"
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
    ]
