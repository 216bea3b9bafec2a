# SPDX-License-Identifier: Apache-2.0
"""Finds a system by its bare name: `tiger` is configs/rec/tiger.py and systems/rec/tiger.py.

A file of the user's own that offers `make` beside `get_config` is a system too, named after the
file and given by its path on every command line. Imports no JAX.
"""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from experiments.runner.errors import UserError

EXPERIMENTS = Path(__file__).resolve().parent.parent
_OWN: dict[str, str] = {}
"""{name of a system of the user's own: SHA-256 of its file}, as loaded by this process."""


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


def install(name: str, module: ModuleType) -> None:
    """Makes a module that holds both config and wiring the system `name` of this process."""
    systems()[name] = name
    for folder in ("configs", "systems"):
        sys.modules[f"experiments.{folder}.{name}"] = module


def forget(name: str) -> None:
    """Undoes `install`."""
    systems().pop(name, None)
    _OWN.pop(name, None)
    for folder in ("configs", "systems"):
        sys.modules.pop(f"experiments.{folder}.{name}", None)


def source_sha256(system: str) -> str | None:
    """SHA-256 of the user's own file that a system was loaded from; None for one of this checkout
    and for an unknown one."""
    return _OWN.get(system)


def load_own(path: Path) -> ModuleType | None:
    """Loads a config file that is a whole system; None where the file offers no `make`.

    Raises:
        UserError: the file is no Python, its name is no name or taken, or `get_config`, `GROUPS` or
            `VARIANTS` is missing.
    """
    content = path.read_bytes()
    try:
        tree = ast.parse(content, str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--config={path} is no Python file: {error}") from error
    if not any(isinstance(node, ast.FunctionDef) and node.name == "make" for node in tree.body):
        return None
    name = path.stem
    if name in systems() and name not in _OWN:
        known = config_module(name)
        if known.__file__ and path.resolve() == Path(known.__file__).resolve():
            return None
        raise UserError(f"--config={path}: there is a system named {name!r}; rename the file")
    if not name.isidentifier():
        raise UserError(f"--config={path}: name the file with letters, digits and _, as a module")
    spec = importlib.util.spec_from_file_location(f"experiments.configs.{name}", path)
    assert spec is not None and spec.loader is not None  # it ends in .py and exists
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it is executed
    spec.loader.exec_module(module)
    missing = [part for part in ("get_config", "GROUPS", "VARIANTS") if not hasattr(module, part)]
    if missing:
        raise UserError(f"--config={path} offers make, but no {', '.join(missing)}")
    install(name, module)
    _OWN[name] = hashlib.sha256(content).hexdigest()
    return module


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
