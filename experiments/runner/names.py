# SPDX-License-Identifier: Apache-2.0
"""Finds a system by its bare name: `tiger` is configs/rec/tiger.py and systems/rec/tiger.py.

Imports no JAX.
"""

import difflib
import functools
import importlib
from pathlib import Path
from types import ModuleType

from experiments.runner.errors import UserError

EXPERIMENTS = Path(__file__).resolve().parent.parent


@functools.cache
def systems() -> dict[str, str]:
    """{bare name: dotted path below configs/ and systems/}, by path."""
    configs = EXPERIMENTS / "configs"
    paths = [path.relative_to(configs) for path in configs.rglob("*.py")]
    return {
        path.stem: ".".join(path.with_suffix("").parts)
        for path in sorted(paths)
        if path.stem != "__init__"
    }


def did_you_mean(name: str) -> str:
    """Proposes systems with a similar name, then lists all."""
    similar = difflib.get_close_matches(name, systems(), 3)
    hint = f"; did you mean {' or '.join(map(repr, similar))}?" if similar else "."
    return f"{hint} There are: {', '.join(sorted(systems()))}"


def config_file(config: str) -> str:
    """Path of the config file that --config=SYSTEM[:VARIANT] means, with the variant; a path to a
    file (it holds a slash or ends in .py) passes unchanged.

    Raises:
        UserError: no system has that name, or no file that path.
    """
    name, colon, variant = config.partition(":")
    if "/" in name or name.endswith(".py"):
        if not Path(name).is_file():
            raise UserError(f"--config={config}: no such file{did_you_mean(Path(name).stem)}")
        return config
    if name not in systems():
        raise UserError(f"--config={config}: no system is named {name!r}{did_you_mean(name)}")
    file = Path(config_module(name).__file__ or "")
    return f"{file}{colon}{variant}"


def config_module(system: str) -> ModuleType:
    """Imports the config file of a system, home of `get_config`, `VARIANTS` and `GROUPS`.

    Raises:
        UserError: no system of this checkout has that name.
    """
    return _import("configs", system)


def system_module(system: str) -> ModuleType:
    """Imports the wiring of a system, home of `make` and perhaps `prepare`.

    Raises:
        UserError: no system of this checkout has that name.
    """
    return _import("systems", system)


def _import(folder: str, system: str) -> ModuleType:
    if system not in systems():
        raise UserError(f"config.system={system!r} is no system here{did_you_mean(system)}")
    return importlib.import_module(f"experiments.{folder}.{systems()[system]}")
