# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one orbax manager per run folder, items state, config and artifacts.

    checkpoints/<step>/state      arrays, sharded, written by every process
    checkpoints/<step>/config     JSON
    checkpoints/<step>/artifacts  arrays; JSON values travel as UTF-8 bytes under the key "json"
    artifacts/<digest>            artifacts above SHARED_BYTES, once for all steps, which name it

The checksum of every leaf is kept in the metadata of the step and compared by whoever reads it:
array files alone would hand out flipped bits without a word. Everything uses the stable
`CheckpointManager` API with StandardSave and JsonSave. `read` needs none of our classes and no
matching topology; it is what reviewers use.
"""

import hashlib
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.runner import digest, hosts, settings
from experiments.runner.errors import UserError
from experiments.runner.sharding import leaf_paths

Tree = Any
FOLDER = "checkpoints"
SHARED_FOLDER = "artifacts"
SHARED_BYTES = 8 << 20
SHARED = "__shared__"  # the only key of artifacts that lie in SHARED_FOLDER
Best = Callable[[Sequence[int]], int | None]
# What orbax and TensorStore raise on files that are missing, torn or overwritten.
DAMAGE = (ValueError, KeyError, OSError, AttributeError, TypeError, RuntimeError)


class Keep:
    """Which checkpoints stay (a preservation policy of orbax, whose own policy for the best one
    forgets the metrics of an earlier process)."""

    def __init__(self, last: int, milestones: Sequence[int], best: Best | None) -> None:
        self._last = last
        self._milestones = frozenset(milestones)
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint."""
        del context
        steps = [info.step for info in checkpoints]
        kept = {*sorted(steps)[-self._last :], *self._milestones}
        if self._best is not None:
            kept.add(self._best(steps))
        return [step in kept for step in steps]


def open_manager(
    workdir: Path,
    *,
    milestones: Sequence[int] = (),
    best: Best | None = None,
    keep_last: int = 2,
    read_only: bool = False,
) -> ocp.CheckpointManager:
    """Manager of `workdir/checkpoints`: keeps the last ones, all milestones and the best.

    Args:
        milestones: steps never deleted.
        best: says which of some steps is the best one, or None if that is unknown.
    """
    # What its threads log of a failed save, hundreds of lines, is raised by `_failing` as one.
    logging.getLogger("absl").addFilter(_not_of_orbax)
    options = ocp.CheckpointManagerOptions(
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        preservation_policy=Keep(keep_last, milestones, best),
    )
    handlers = {
        "state": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "artifacts": ocp.StandardCheckpointHandler(),
    }
    path = (workdir / FOLDER).resolve()
    if read_only and not path.is_dir():
        raise UserError(f"no checkpoints in {workdir}: {path} does not exist")
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Tree,
    config: Mapping[str, Any],
    artifacts: Mapping[str, Any],
) -> None:
    """Starts an asynchronous save; an earlier one that failed raises UserError here."""
    packed = pack_artifacts(artifacts)
    sums = {
        "state": digest.of_arrays(leaf_paths(state)),
        "config": {"json": _json_digest(config)},
        "artifacts": digest.of_arrays(packed),
    }
    with _failing(manager):
        manager.check_for_errors()
        if sum(array.nbytes for array in packed.values()) > SHARED_BYTES:
            packed = _share(Path(str(manager.directory)).parent, packed, sums["artifacts"])
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave(dict(config)),
                artifacts=ocp.args.StandardSave(packed),
            ),
            custom_metadata={"digest": sums},
            force=True,
        )


def _share(
    workdir: Path, packed: Mapping[str, np.ndarray], checksums: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Writes large artifacts beside the checkpoints, unless they are there; returns what a
    checkpoint holds in their place."""
    text = json.dumps(checksums, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()[:16]
    directory = (workdir / SHARED_FOLDER / name).resolve()
    if not hosts.agree(directory.is_dir()):  # it appears by one rename, so it is whole
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(directory, dict(packed))
        checkpointer.wait_until_finished()
    return pack_artifacts({SHARED: name})


def check_saves(manager: ocp.CheckpointManager) -> None:
    """Raises UserError if a save that runs in the background has failed; waits for nothing."""
    with _failing(manager):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Returns when every save is on the disk; raises UserError if one failed."""
    with _failing(manager):
        manager.wait_until_finished()
        manager.check_for_errors()


@contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Closes the manager at the end; a save that failed meanwhile raises UserError."""
    try:
        yield
    finally:
        with _failing(manager):
            manager.close()


@contextmanager
def _failing(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"checkpoint in {manager.directory} was not saved: {error}") from error


@contextmanager
def _restoring(directory: Path) -> Iterator[None]:
    """Names the folder of whatever goes wrong while its files are read."""
    try:
        yield
    except Exception as error:  # TensorStore raises it bare
        raise UserError(f"checkpoint {directory} is damaged: {error}") from error


def _json_digest(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _verify(step_dir: Path, item: str, found: Mapping[str, int], below: str = "") -> None:
    """Compares checksums of an item, or of its leaves below a path, with those of the save."""
    saved = _saved_checksums(step_dir).get(item, {})
    paths = [path for path in sorted({*saved, *found}) if path.startswith(below)]
    wrong = [path for path in paths if saved.get(path) != found.get(path)]
    if wrong:
        raise UserError(
            f"checkpoint {step_dir} is damaged: {item} is not what was saved, see "
            + ", ".join(wrong[:8])
            + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )


def checksums(workdir: Path, step: int) -> dict[str, Any]:
    """{item: {leaf path: checksum}} as saved with a checkpoint; no array is read."""
    return _saved_checksums(Path(workdir) / FOLDER / str(step))


def _saved_checksums(step_dir: Path) -> dict[str, Any]:
    path = step_dir / "_CHECKPOINT_METADATA"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["custom_metadata"]["digest"]
        if not all(isinstance(saved[item], dict) for item in ("state", "config", "artifacts")):
            raise ValueError("no checksums")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint {step_dir} is damaged: {path.name}: {error!r}") from error
    return saved


def pack_artifacts(artifacts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested dict of arrays and JSON values -> flat dict of arrays, JSON as bytes under "json"."""
    arrays: dict[str, np.ndarray] = {}

    def split(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, Mapping):
            return {str(k): split(v, (*path, str(k))) for k, v in node.items()}
        if isinstance(node, np.ndarray | jax.Array) and node.size == 0:  # orbax refuses these
            return {"__empty__": list(node.shape), "dtype": str(node.dtype)}
        if isinstance(node, np.ndarray | jax.Array):
            arrays["/".join(path)] = np.asarray(node)
            return {"__array__": "/".join(path)}
        return node

    document = json.dumps(split(artifacts, ()), sort_keys=True).encode()
    return {"json": np.frombuffer(document, np.uint8).copy(), **arrays}


def unpack_artifacts(packed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inverse of `pack_artifacts` (tuples come back as lists)."""

    def join(node: Any) -> Any:
        if isinstance(node, dict):
            if set(node) == {"__array__"}:
                return np.asarray(packed[node["__array__"]])
            if set(node) == {"__empty__", "dtype"}:
                return np.zeros(node["__empty__"], node["dtype"])
            return {k: join(v) for k, v in node.items()}
        return node

    return join(json.loads(bytes(np.asarray(packed["json"]))))


def _stored_tree(directory: Path) -> Tree:
    """Metadata tree (leaves with shape and dtype) of a StandardSave folder."""
    try:
        metadata: Any = ocp.StandardCheckpointer().metadata(directory.resolve())
        return metadata.item_metadata.tree
    except DAMAGE as error:
        raise UserError(f"checkpoint {directory} is damaged or incomplete: {error}") from error


def _raw(leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype as stored: typed keys are stored as their uint32 words."""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    leaf = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return tuple(leaf.shape), str(leaf.dtype)


def differences(stored: Tree, wanted: Tree) -> list[str]:
    """One line per missing, unknown or differing leaf of `stored` against `wanted`."""
    have = leaf_paths(stored)
    want = leaf_paths(wanted)
    lines = [f"missing in the checkpoint: {p}" for p in sorted(want.keys() - have.keys())]
    lines += [f"not in this run: {p}" for p in sorted(have.keys() - want.keys())]
    for path in sorted(want.keys() & have.keys()):
        for kind, old, new in zip(
            ("shape", "dtype"), _raw(have[path]), _raw(want[path]), strict=True
        ):
            if old != new:
                lines.append(f"{kind} of {path}: checkpoint {old}, this run {new}")
    return lines


def restore(manager: ocp.CheckpointManager, step: int, abstract: Tree) -> Tree:
    """State of `step` with the shapes, dtypes and shardings of `abstract`, on any device count.

    Raises:
        UserError: the trees differ (every differing leaf is listed) or a file is damaged.
    """
    directory = Path(str(manager.directory)) / str(step) / "state"
    lines = differences(_stored_tree(directory), abstract)
    if lines:
        raise UserError(f"checkpoint {directory} does not fit this run:\n  " + "\n  ".join(lines))
    with _restoring(directory):
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = manager.restore(step, args=args)["state"]
    _verify(directory.parent, "state", digest.of_arrays(leaf_paths(state)))
    return state


def read_tree(directory: Path) -> Tree:
    """Nested dict of NumPy arrays from `<step>/state`, verified."""
    tree = _arrays(directory)
    _verify(directory.parent, directory.name, digest.of_arrays(leaf_paths(tree)))
    return tree


def _arrays(directory: Path) -> Tree:
    """Nested dict of the NumPy arrays in a folder that StandardSave wrote."""
    template = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else 0,
        _stored_tree(directory),
    )
    with _restoring(directory):
        return ocp.StandardCheckpointer().restore(directory.resolve(), template)


def read_params(workdir: Path, step: int) -> Tree:
    """Parameters of a state as NumPy arrays, verified; the rest of it is not read."""
    directory = Path(workdir) / FOLDER / str(step) / "state"
    stored = _stored_tree(directory)
    if "params" not in stored:
        raise UserError(f"checkpoint {directory} holds no params")
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = {"params": stored["params"]}
    with _restoring(directory):
        tree = ocp.PyTreeCheckpointer().restore(
            directory.resolve(),
            args=ocp.args.PyTreeRestore(
                item=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted),
                restore_args=jax.tree.map(lambda leaf: as_numpy, wanted),
                partial_restore=True,
            ),
        )
    _verify(directory.parent, "state", digest.of_arrays(leaf_paths(tree)), "params/")
    return tree["params"]


def steps(workdir: Path) -> list[int]:
    """Steps saved in a run folder, ascending; an empty folder of a step is left out."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in _step_paths(folder) if not _is_empty(path))


def _step_paths(folder: Path) -> list[Path]:
    """What is named by a number, in the order of the names."""
    return sorted(p for p in folder.iterdir() if p.name.isascii() and p.name.isdigit())


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def warn_of_empty_steps(workdir: Path) -> None:
    """Says which folders of steps are empty: an interrupted copy, or a file system that lost
    them."""
    folder = Path(workdir) / FOLDER
    for path in _step_paths(folder) if folder.is_dir() else ():
        if _is_empty(path):
            print(f"warning: {path} is empty: skipped", file=sys.stderr)


def read_json(workdir: Path, step: int) -> dict[str, Any]:
    """Config stored beside a state."""
    path = Path(workdir) / FOLDER / str(step) / "config" / "metadata"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint config {path} is missing or damaged: {error}") from error
    _verify(path.parent.parent, "config", {"json": _json_digest(config)})
    return config


def check_owner(workdir: Path, step: int, values: Mapping[str, Any]) -> None:
    """Checks that a checkpoint was saved by the run whose config is `values`.

    Raises:
        UserError: its own config is another one's (the keys are listed), missing or damaged.
    """
    own = read_json(workdir, step)
    if settings.config_hash(own) != settings.config_hash(values):
        raise UserError(
            f"checkpoint {workdir / FOLDER / str(step)} belongs to another run; its config against "
            "config.json:\n  " + "\n  ".join(settings.difference(own, values))
        )


def read_artifacts(workdir: Path, step: int) -> dict[str, Any]:
    """Artifacts stored beside a state, or once for all steps."""
    step_dir = Path(workdir) / FOLDER / str(step)
    packed = _arrays(step_dir / "artifacts")
    artifacts = _unpacked(step_dir, packed)
    if set(artifacts) == {SHARED}:
        packed = _arrays(Path(workdir) / SHARED_FOLDER / str(artifacts[SHARED]))
        artifacts = _unpacked(step_dir, packed)
    _verify(step_dir, "artifacts", digest.of_arrays(leaf_paths(packed)))
    return artifacts


def _unpacked(step_dir: Path, packed: Tree) -> dict[str, Any]:
    try:
        return unpack_artifacts(packed)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {step_dir} is damaged: artifacts: {error!r}") from error


def read(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """{"step", "state", "config", "artifacts"} of a run folder as NumPy arrays and JSON.

    Works on any machine and device count, needs no class of the system that wrote it. Typed keys
    appear as uint32 words, tuples as lists.

    Args:
        step: which checkpoint; the last one by default.
    """
    available = steps(Path(workdir))
    if not available:
        raise UserError(f"no checkpoints in {workdir}")
    step = available[-1] if step is None else step
    if step not in available:
        raise UserError(f"no checkpoint of step {step} in {workdir}; there are {available}")
    state = read_tree(Path(workdir) / FOLDER / str(step) / "state")
    return {
        "step": step,
        "state": state,
        "config": read_json(Path(workdir), step),
        "artifacts": read_artifacts(Path(workdir), step),
    }
