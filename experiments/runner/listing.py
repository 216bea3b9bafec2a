# SPDX-License-Identifier: Apache-2.0
"""What --list and --help print: systems by library, flags, and one system in detail.

Imports no JAX.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.runner import names, settings
from experiments.runner.about import About

WIDTH = 100
PROBES: dict[type, tuple[Any, ...]] = {str: ("?",), int: (-(10**6), 10**6), float: (-1e6, 1e6)}
USAGE = """\
Trains, resumes, evaluates, checks and asks every system of the stack.

    python experiments/run.py --list                                what there is
    python experiments/run.py --config=SYSTEM[:VARIANT] --help      one system, its keys and ranges
    python experiments/run.py --config=SYSTEM[:VARIANT] [--workdir=DIR] [--config.GROUP.KEY=VALUE]
    python experiments/run.py --mode=MODE --workdir=DIR
"""
MODES = {
    "train": "train; the same command again resumes",
    "eval": "evaluate the last checkpoint of --workdir",
    "check": "evaluate again every number results.json of --workdir claims",
    "report": "compare runs: --mode=report DIR [DIR ...]",
    "export": "parameters of --workdir as --out=FILE.safetensors",
    "list": "the same as --list",
}
FLAGS = (
    ("run", ("config", "workdir", "mode", "list", "help", "overwrite", "profile")),
    ("questions to a trained system", ("query", "top", "out")),
    (
        "devices and hosts",
        (
            "require_gpu",
            "no_malloc_tuning",
            "distributed",
            "coordinator",
            "num_processes",
            "process_id",
        ),
    ),
)


def list_text() -> str:
    """All systems by library: what each is, variants, actions, and what the smaller ones cost."""
    libraries: dict[str, list[str]] = {}
    for system, path in names.systems().items():
        libraries.setdefault(path.rpartition(".")[0] or "own", []).append(system)
    lines = []
    for library, systems in sorted(libraries.items()):
        lines.append(library)
        for system in systems:
            module = names.config_module(system)
            lines.append(f"  {system}  {first_sentence(module)}")
            lines[-1] = textwrap.fill(lines[-1], WIDTH, subsequent_indent=" " * 6)
            lines.append(f"      variants  {variants_text(module.VARIANTS)}")
            lines += [f"      {line}" for line in _about_lines(module)]
        lines.append("")
    lines.append("python experiments/run.py --config=SYSTEM[:VARIANT] --help   shows one of them")
    return "\n".join(lines)


def first_sentence(module: ModuleType) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((module.__doc__ or "").split())
    return re.split(r"(?<! al)\. ", text, maxsplit=1)[0].rstrip(".") + "."  # "et al." goes on


def variants_text(variants: Iterable[str]) -> str:
    """ ":base :tiny ..."; long lists are cut."""
    shown = [f":{variant}" for variant in variants]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return " ".join(shown[:8]) + more


def _about_lines(module: ModuleType) -> list[str]:
    about: About | None = getattr(module, "ABOUT", None)
    if about is None:
        return []
    cost = "; ".join(f":{variant} {text}" for variant, text in about.cost.items())
    lines = [f"cost      {cost}"]
    lines += [f"--mode={name}  {text}" for name, text in about.actions.items()]
    return lines


def help_text(values: flags.FlagValues) -> str:
    """Every flag with a line, and the modes."""
    lines = [USAGE, "modes"]
    lines += [f"  {name:<10} {text}" for name, text in MODES.items()]
    lines.append("  <action>   ask a trained system, where it offers one:")
    for system in names.systems():
        about = getattr(names.config_module(system), "ABOUT", None)
        for name, text in (about.actions if about else {}).items():
            lines.append(f"             {system} --mode={name}: {text}")
    for title, group in FLAGS:
        lines += ["", title]
        for name in group:
            text = "This text." if name == "help" else values[name].help
            lines.append(textwrap.fill(f"  --{name:<15} {text}", WIDTH, subsequent_indent=" " * 20))
    return "\n".join(lines)


def system_help(config: ConfigDict) -> str:
    """One system: its docstring, variants, actions, and every key with default and range."""
    module = names.config_module(config.system)
    lines = [f"{config.system}:{config.variant}", "", inspect.getdoc(module) or "", ""]
    lines.append(f"variants  {' '.join(f':{variant}' for variant in module.VARIANTS)}")
    lines += _about_lines(module)
    lines += ["", f"keys of {config.system}:{config.variant}, their values, and what is allowed"]
    for key in settings.top_keys(config.system):
        if key not in ("system", "variant"):
            lines.append(f"  --config.{key}={config[key]!r}")
    for name, cls in {**settings.FRAME, **module.GROUPS}.items():
        lines += ["", f"{name}: {_description(cls)}"]
        values = config[name].to_dict()
        for field in dataclasses.fields(cls):
            if field.name not in values:
                continue
            line = f"  --config.{name}.{field.name}={values[field.name]!r}"
            rule = "; ".join(rules(cls, values, field.name))
            lines.append(f"{line:<48}  {rule}".rstrip())
    return "\n".join(lines)


def _description(cls: type) -> str:
    """A group's own docstring, or nothing where dataclass made one up."""
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else textwrap.indent(text, "    ").strip()


def rules(cls: type, values: Mapping[str, Any], key: str) -> list[str]:
    """What a key must be, in the words of the error that a value far out of range gets."""
    kind = type(values[key])
    found = []
    for probe in PROBES.get(kind, ()):
        try:
            cls(**{**values, key: probe})
        except ValueError as error:
            _, named, rule = str(error).rpartition(f"{key}={probe!r}")
            if named and rule.strip(" :"):
                found.append(" ".join(rule.strip(" :").split()))
        except (TypeError, LookupError, ArithmeticError):
            continue  # a rule about other keys, which the probe made meaningless
    return list(dict.fromkeys(found))
