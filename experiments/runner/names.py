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
    """{bare name: dotted path below experiments.configs and experiments.systems}, by path."""
    configs = EXPERIMENTS / "configs"
    paths = [path.relative_to(configs) for path in configs.rglob("*.py")]
    return {
        path.stem: ".".join(path.with_suffix("").parts)
        for path in sorted(paths)
        if path.stem != "__init__"
    }


def did_you_mean(name: str) -> str:
    """ "; did you mean 'tiger'?" where a system has a similar name, then all names."""
    similar = difflib.get_close_matches(name, systems(), 3)
    hint = f"; did you mean {' or '.join(map(repr, similar))}?" if similar else "."
    return f"{hint} There are: {', '.join(sorted(systems()))}"


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
