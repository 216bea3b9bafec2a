# SPDX-License-Identifier: Apache-2.0
"""Flags of the runner, and one plain line for every way to get them wrong. Imports no JAX."""

import difflib
import functools
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runner import names
from experiments.runner.errors import UserError


class NamedConfigParser(flags.ArgumentParser):
    """Loads a config by the bare name of its system, or by the path of a file."""

    def __init__(self, files: Any) -> None:
        self.files = files

    def parse(self, argument: str) -> ConfigDict:
        return self.files.parse(names.config_file(argument))

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
    text("mode", "train", "train, eval, check, report, or the name of an action.")
    text("query", None, "Text for an action, or @FILE.")
    switch("overwrite", False, "Replace another run in --workdir.")
    switch("profile", False, "Trace steps 10 to 15 into WORKDIR/profile.")
    switch("require_gpu", False, "Fail unless JAX runs on a GPU.")
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
    if mode not in ("train", "report"):
        if values.workdir is None:
            raise UserError(f"--mode={mode} needs --workdir=DIR, the folder of a run")
        if config is not None:
            raise UserError(f"--mode={mode} takes its config from --workdir; leave --config out")
    if mode == "report" and not words and values.workdir is None:
        raise UserError("--mode=report needs one run folder or more: --mode=report DIR [DIR ...]")
    if mode in ("train", "eval", "check", "report") and values.query is not None:
        raise UserError(f"--query belongs to an action, not to --mode={mode}")
    together = (values.coordinator, values.num_processes, values.process_id)
    if not values.distributed and any(v is not None for v in together):
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")


def parse(argv: list[str]) -> list[str]:
    """Flags of the command line; a mistake is one line, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except (
        flags.Error,
        UserError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        reason = str(error)
        if isinstance(error, LookupError | AttributeError) and not isinstance(error, flags.Error):
            reason = unknown_key(argv) or reason
        print(f"error: {reason}\nsee python experiments/run.py --help", file=sys.stderr)
        sys.exit(2)


def unknown_key(argv: list[str]) -> str:
    """Says which --config.group.key of the command line does not exist, and what does; "" if all
    exist or no config can be loaded."""
    files = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    if not files:
        return ""
    config = flags.FLAGS["config"].parser.parse(files[0])
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
