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

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The rooms of this checkout come before anything of the same name that is installed.
sys.path[0:0] = [str(ROOT)]

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from experiments.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, FILE.py or FILE.py:variant; override leaves by --config.group.key=value.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run folder; default runs/<system>-<variant>-s<seed>."
)
_MODE = flags.DEFINE_string("mode", "train", "train, eval, check, report, or an action's name.")
_QUERY = flags.DEFINE_string("query", None, "Text for an action, or @FILE.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace another run in --workdir.")
_PROFILE = flags.DEFINE_bool("profile", False, "Trace steps 10 to 15 into WORKDIR/profile.")
_REQUIRE_GPU = flags.DEFINE_bool("require_gpu", False, "Fail unless JAX runs on a GPU.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Start jax.distributed first.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process.", lower_bound=0)


def start_jax() -> None:
    """Compile cache, processes, and a plain word where a GPU is there but not used."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "banyan-stack" / "xla"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if _DISTRIBUTED.value:
        jax.distributed.initialize(
            coordinator_address=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
        )
    if jax.default_backend() != "gpu":
        if _REQUIRE_GPU.value:
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


def check_flags(words: list[str]) -> None:
    """Refuses stray words and flags that do not belong together."""
    mode = _MODE.value
    if words and mode != "report":
        raise UserError(f"unexpected word {words[0]!r}: options start with --, see --help")
    if mode == "train" and _CONFIG.value is None:
        raise UserError("--mode=train needs --config=experiments/configs/<system>.py[:variant]")
    if mode not in ("train", "report"):
        if _WORKDIR.value is None:
            raise UserError(f"--mode={mode} needs --workdir=DIR, the folder of a run")
        if _CONFIG.value is not None:
            raise UserError(f"--mode={mode} takes its config from --workdir; leave --config out")
    if mode == "report" and not words and _WORKDIR.value is None:
        raise UserError("--mode=report needs one run folder or more: --mode=report DIR [DIR ...]")
    if mode in ("train", "eval", "check", "report") and _QUERY.value is not None:
        raise UserError(f"--query belongs to an action, not to --mode={mode}")
    together = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not _DISTRIBUTED.value and any(v is not None for v in together):
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")


def train() -> None:
    """Validates before JAX is imported, then hands over to the loop."""
    from experiments import settings

    config = _CONFIG.value
    settings.groups(config)
    name = f"{config.system}-{config.variant}-s{config.seed}"
    workdir = Path(_WORKDIR.value or ROOT / "runs" / name)
    start_jax()
    from experiments import loop

    loop.train(config, workdir, overwrite=_OVERWRITE.value, profile=_PROFILE.value)


def inspect(mode: str, workdir: Path) -> int:
    """Modes that read a run folder."""
    start_jax()
    from experiments import loop

    if mode == "eval":
        for key, value in sorted(loop.evaluate_last(workdir).items()):
            print(f"{key} = {value}")
        return 0
    if mode == "check":
        lines = loop.check(workdir)
        print("\n".join(lines) if lines else f"{workdir}: every metric of results.json holds")
        return 1 if lines else 0
    query = _QUERY.value or ""
    if query.startswith("@"):
        path = Path(query[1:])
        if not path.is_file():
            raise UserError(f"--query={query}: no such file")
        query = path.read_text()
    print(loop.act(workdir, mode, query))
    return 0


def main(argv: list[str]) -> int:
    """Exit code: 0 fine, 1 a metric differs (check), 2 misuse."""
    logging.set_verbosity(logging.ERROR)  # orbax and JAX remark on things users cannot change
    try:
        check_flags(argv[1:])
        if _MODE.value == "report":
            from experiments import report

            folders = [Path(w) for w in argv[1:]] or [Path(_WORKDIR.value)]
            print(report.write_comparison(folders, Path(_WORKDIR.value or ".")))
            return 0
        if _MODE.value == "train":
            train()
            return 0
        return inspect(_MODE.value, Path(_WORKDIR.value))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    app.run(main)
