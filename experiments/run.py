# SPDX-License-Identifier: Apache-2.0
"""One door to every system of the stack.

train (or resume: the same command again)
    python experiments/run.py --config=experiments/configs/banyan.py:tiny
change any number of the config
    python experiments/run.py --config=experiments/configs/banyan.py --config.seed=1
evaluate a run's last checkpoint; check every claimed number again; compare runs
    python experiments/run.py --mode=eval --workdir=DIR
    python experiments/run.py --mode=check --workdir=DIR
    python experiments/run.py --mode=report DIR [DIR ...]
ask a trained system something, where it offers an action
    python experiments/run.py --mode=<action> --workdir=DIR --query=TEXT   (or --query=@FILE)
"""

import difflib
import functools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The rooms of this checkout come before anything of the same name that is installed.
sys.path[0:0] = [str(ROOT)]

from absl import app, flags, logging  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from experiments.errors import UserError  # noqa: E402



def define_flags(values: flags.FlagValues) -> None:
    """All flags of the runner."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "FILE.py or FILE.py:variant; override leaves by --config.group.key=value.",
        lock_config=True,
        flag_values=values,
    )
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


def start_jax(values: flags.FlagValues) -> None:
    """Compile cache, processes, and a plain word where a GPU is there but not used."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "banyan-stack" / "xla"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if values.distributed:
        jax.distributed.initialize(
            coordinator_address=values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
        )
    if jax.default_backend() != "gpu":
        if values.require_gpu:
            raise UserError(
                f"--require_gpu: JAX runs on {jax.default_backend()}; install the extra: "
                'pip install -e ".[cuda]" and check that the driver sees the card'
            )
        if Path("/proc/driver/nvidia/version").exists():
            print(
                f"warning: an NVIDIA driver is present but JAX runs on {jax.default_backend()}: "
                'pip install -e ".[cuda]" for the GPU',
                file=sys.stderr,
            )


def check_flags(values: flags.FlagValues, words: list[str]) -> None:
    """Refuses stray words and flags that do not belong together."""
    mode = values.mode
    try:
        config = values.config
    except OSError as error:  # raised on first use of a file that could not be loaded
        raise UserError(f"--config: {error}") from error
    if words and mode != "report":
        raise UserError(f"unexpected word {words[0]!r}: options start with --, see --help")
    if mode == "train" and config is None:
        raise UserError("--mode=train needs --config=experiments/configs/<system>.py[:variant]")
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


def train(values: flags.FlagValues) -> None:
    """Validates before JAX is imported, then hands over to the loop."""
    from experiments import settings

    config = values.config
    settings.groups(config)
    name = f"{config.system}-{config.variant}-s{config.seed}"
    workdir = Path(values.workdir or ROOT / "runs" / name)
    start_jax(values)
    from experiments import loop

    loop.train(config, workdir, overwrite=values.overwrite, profile=values.profile)


def inspect(values: flags.FlagValues) -> int:
    """Modes that read a run folder."""
    mode, workdir = values.mode, Path(values.workdir)
    start_jax(values)
    from experiments import loop

    if mode == "eval":
        for key, value in sorted(loop.evaluate_last(workdir).items()):
            print(f"{key} = {value}")
        return 0
    if mode == "check":
        lines = loop.check(workdir)
        print("\n".join(lines) if lines else f"{workdir}: every metric of results.json holds")
        return 1 if lines else 0
    query = values.query or ""
    if query.startswith("@"):
        path = Path(query[1:])
        if not path.is_file():
            raise UserError(f"--query={query}: no such file")
        query = path.read_text()
    print(loop.act(workdir, mode, query))
    return 0


def dispatch(values: flags.FlagValues, words: list[str]) -> int:
    """Exit code: 0 fine, 1 a metric differs (check), 2 misuse."""
    logging.set_verbosity(logging.ERROR)  # orbax and JAX remark on things users cannot change
    try:
        check_flags(values, words)
        if values.mode == "report":
            from experiments import report

            folders = [Path(w) for w in words] or [Path(values.workdir)]
            print(report.write_comparison(folders, Path(values.workdir or ".")))
            return 0
        if values.mode == "train":
            train(values)
            return 0
        return inspect(values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse(argv: list[str]) -> list[str]:
    """Flags of the command line; a mistake is one line, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = unknown_key(flags.FLAGS["config"].value, argv) or str(error)
        print(f"error: {reason}\nsee python experiments/run.py --help", file=sys.stderr)
        sys.exit(2)


def unknown_key(config: ConfigDict | None, argv: list[str]) -> str:
    """Says which --config.group.key of the command line does not exist, and what does; "" if all
    exist."""
    for word in argv:
        if config is None or not word.startswith("--config."):
            continue
        node, path = config, word.split("=")[0].removeprefix("--config.").split(".")
        for depth, key in enumerate(path):
            if not isinstance(node, ConfigDict) or key not in node:
                known = sorted(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                name = ".".join(["config", *path[: depth + 1]])
                return f"{name} does not exist{hint} There are: {', '.join(known) or 'no keys'}"
            node = node[key]
    return ""


def main(argv: list[str]) -> int:
    return dispatch(flags.FLAGS, argv[1:])


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main, flags_parser=parse)
