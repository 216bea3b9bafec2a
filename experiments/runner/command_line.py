# SPDX-License-Identifier: Apache-2.0
"""Flags of the runner, and one plain line for every way to get them wrong. Imports no JAX."""

import difflib
import functools
import itertools
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runner import answers, folder, listing, names, settings
from experiments.runner.errors import UserError

MODES = ("train", "eval", "check", "report", "export", "list")
EXPORTED = ".safetensors"
MISTAKES = (
    flags.Error,
    UserError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
)
"""What parsing a wrong command line raises."""


class NamedConfigParser(flags.ArgumentParser):
    """Loads a config by the bare name of its system, or by the path of a file."""

    def __init__(self, files: Any) -> None:
        self.files = files

    def parse(self, argument: str) -> ConfigDict:
        path = names.config_file(argument)
        file, _, variant = path.partition(":")
        own = names.load_own(Path(file))
        if own is None:
            return self.files.parse(path)
        config = own.get_config(variant or "base")
        if config.get("system") != own.__name__.rpartition(".")[2]:
            raise UserError(
                f"--config={argument}: config.system={config.get('system')!r} must be the name of "
                f"the file, {Path(file).stem!r}"
            )
        return config

    def flag_type(self) -> str:
        return self.files.flag_type()


def define_flags(values: flags.FlagValues) -> None:
    """All flags of the runner."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "SYSTEM, SYSTEM:VARIANT or a config file; override leaves by --config.group.key=value.",
        lock_config=True,
        flag_values=values,
    )
    values["config"].parser = NamedConfigParser(values["config"].parser)
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    switch = functools.partial(flags.DEFINE_bool, flag_values=values)
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("workdir", None, "Run folder; default runs/<system>-<variant>-s<seed>.")
    text("mode", "train", "train, eval, check, report, export, list, or the name of an action.")
    switch("list", False, "Print all systems, their variants, actions and costs.")
    text("query", None, "For an action: TEXT, @FILE (text is read, else a path), or all.")
    number("top", None, "For an action: how many answers to each question.")
    text("out", None, "For an answer: FILE.csv, .parquet or .jsonl; other files or a folder.")
    switch("overwrite", False, "Replace another run in --workdir.")
    switch("profile", False, "Trace steps 10 to 15 into WORKDIR/profile.")
    switch("require_gpu", False, "Fail unless JAX runs on a GPU.")
    switch("no_malloc_tuning", False, "Leave the C library's allocator as it is (CPU, Linux).")
    switch("distributed", False, "Start jax.distributed first; see README, multi-host.")
    text("coordinator", None, "host:port of process 0.")
    number("num_processes", None, "Processes in all.", lower_bound=1)
    number("process_id", None, "Index of this process.", lower_bound=0)


def check_flags(values: flags.FlagValues, words: list[str]) -> None:
    """Refuses stray words and flags that do not belong together."""
    mode = values.mode
    config = values.config
    if words and mode != "report":
        raise UserError(f"unexpected word {words[0]!r}: options start with --, see --help")
    if mode == "train" and config is None:
        raise UserError("--mode=train needs --config=<system>[:variant]" + names.did_you_mean(""))
    if mode not in ("train", "report", "list"):
        if values.workdir is None:
            raise UserError(f"--mode={mode} needs --workdir=DIR, the folder of a run")
        if config is not None and names.source_sha256(config.system) is None:
            raise UserError(f"--mode={mode} takes its config from --workdir; leave --config out")
    if mode == "report" and not words and values.workdir is None:
        raise UserError("--mode=report needs one run folder or more: --mode=report DIR [DIR ...]")
    for flag in ("query", "top", "out"):
        if values[flag].value is not None and mode in MODES and (flag, mode) != ("out", "export"):
            raise UserError(f"--{flag} belongs to an action, not to --mode={mode}")
    together = (values.coordinator, values.num_processes, values.process_id)
    if not values.distributed and any(v is not None for v in together):
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")


def check_folder(values: flags.FlagValues) -> None:
    """Refuses, before JAX is imported, a mode that --workdir cannot serve.

    Raises:
        UserError: no run folder, a damaged file of it, no checkpoints, an unknown mode, or a place
            for the answer that does not do.
    """
    mode = values.mode
    workdir = Path(values.workdir)
    stored = folder.read_json(workdir / "config.json")
    settings.check_source(stored, workdir)
    settings.groups(settings.from_json(stored))
    system = stored["system"]
    about = getattr(names.config_module(system), "ABOUT", None)
    actions = about.actions if about else {}
    if mode not in MODES and about is not None and mode not in actions:
        known = [*MODES, *actions]
        raise UserError(f"--mode={mode}: {system} knows {', '.join(known)}")
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}")
    if mode == "check":
        folder.read_results(workdir)
    if mode == "export" and (values.out is None or not values.out.endswith(EXPORTED)):
        given = "" if values.out is None else f", not {values.out}"
        raise UserError(f"--mode=export needs --out=FILE{EXPORTED}{given}")
    if values.out is not None:
        answers.check_out(Path(values.out))


def parse(argv: list[str]) -> list[str]:
    """Flags of the command line; a mistake is one line, not a traceback. --help ends here."""
    asks = [word for word in argv[1:] if word.lstrip("-") in ("help", "h", "helpfull", "helpshort")]
    try:
        words = flags.FLAGS([word for word in argv if word not in asks])
        if asks:
            print(help_of(flags.FLAGS))
            sys.exit(0)
        return words
    except MISTAKES as error:
        reason = reason_of(error, argv, flags.FLAGS)
        print(f"error: {reason}\nsee python experiments/run.py --help", file=sys.stderr)
        sys.exit(2)


def reason_of(error: Exception, argv: list[str], values: flags.FlagValues) -> str:
    """What is wrong with a command line that could not be parsed, in one line."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return str(error) + meant_key(error.flagname)
    if isinstance(error, LookupError | AttributeError) and not isinstance(error, flags.Error):
        return unknown_key(argv, values) or str(error)
    return str(error)


def help_of(values: flags.FlagValues) -> str:
    """What --help prints: all flags, or with --config one system.

    Raises:
        UserError: a value of the config out of range.
    """
    if values.config is None:
        return listing.help_text(values)
    settings.groups(values.config)
    return listing.system_help(values.config)


def meant_key(flag: str) -> str:
    """Proposes --config.KEY for an unknown flag that is a key of every config; else ""."""
    group = flag.partition(".")[0]
    known = flag in settings.TOP or ("." in flag and group not in ("config", ""))
    return f"; did you mean --config.{flag}?" if known else ""


def config_words(argv: list[str]) -> list[str]:
    """Values of --config=VALUE and --config VALUE."""
    given = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    pairs = itertools.pairwise(argv)
    return given + [value for word, value in pairs if word == "--config"]


def unknown_key(argv: list[str], values: flags.FlagValues) -> str:
    """Says which --config.group.key of the command line does not exist, and what does; "" if all
    exist or no config can be loaded."""
    files = config_words(argv)
    if not files:
        return ""
    config = values["config"].parser.parse(files[0])
    for word in argv:
        if not word.startswith("--config."):
            continue
        node = config
        path = word.split("=")[0].removeprefix("--config.").split(".")
        for depth, key in enumerate(path):
            if not isinstance(node, ConfigDict) or key not in node:
                known = sorted(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                name = ".".join(["config", *path[: depth + 1]])
                return f"{name} does not exist{hint} There are: {', '.join(known) or 'no keys'}"
            node = node[key]
    return ""
