# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one orbax manager per run folder, items state, config and artifacts.

    checkpoints/<step>/state      arrays, sharded, written by every process
    checkpoints/<step>/config     JSON
    checkpoints/<step>/artifacts  arrays; JSON values travel as UTF-8 bytes under the key "json"

The checksum of every leaf is kept in the metadata of the step and compared by whoever reads it:
array files alone would hand out flipped bits without a word. Everything uses the stable
`CheckpointManager` API with StandardSave and JsonSave. `read` needs none of our classes and no
matching topology; it is what reviewers use.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.runner import digest
from experiments.runner.errors import UserError
from experiments.runner.sharding import leaf_paths

Tree = Any
FOLDER = "checkpoints"
Best = Callable[[Sequence[int]], int | None]
# What orbax and TensorStore raise on files that are missing, torn or overwritten.
DAMAGE = (ValueError, KeyError, OSError, AttributeError, TypeError, RuntimeError)


class Keep:
    """Which checkpoints stay (a preservation policy of orbax, whose own policy for the best one
    forgets the metrics of an earlier process)."""

    def __init__(self, last: int, milestones: Sequence[int], best: Best | None) -> None:
        self._last, self._milestones, self._best = last, frozenset(milestones), best

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


def _json_digest(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _verify(step_dir: Path, item: str, found: Mapping[str, int]) -> None:
    """Compares checksums with those of the time of the save."""
    path = step_dir / "_CHECKPOINT_METADATA"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["custom_metadata"]["digest"][item]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {step_dir} is damaged: {path.name}: {error!r}") from error
    wrong = [name for name in sorted({*saved, *found}) if saved.get(name) != found.get(name)]
    if wrong:
        raise UserError(
            f"checkpoint {step_dir} is damaged: {item} is not what was saved, see "
            + ", ".join(wrong[:8])
            + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )


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
    have, want = leaf_paths(stored), leaf_paths(wanted)
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
    try:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = manager.restore(step, args=args)["state"]
    except DAMAGE as error:
        raise UserError(f"checkpoint {directory} is damaged: {error}") from error
    _verify(directory.parent, "state", digest.of_arrays(leaf_paths(state)))
    return state


def read_tree(directory: Path) -> Tree:
    """Nested dict of NumPy arrays from `<step>/state` or `<step>/artifacts`, verified."""
    template = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else 0,
        _stored_tree(directory),
    )
    try:
        tree = ocp.StandardCheckpointer().restore(directory.resolve(), template)
    except DAMAGE as error:
        raise UserError(f"checkpoint {directory} is damaged: {error}") from error
    _verify(directory.parent, directory.name, digest.of_arrays(leaf_paths(tree)))
    return tree


def steps(workdir: Path) -> list[int]:
    """Steps saved in a run folder, ascending."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def read_json(workdir: Path, step: int) -> dict[str, Any]:
    """Config stored beside a state."""
    path = Path(workdir) / FOLDER / str(step) / "config" / "metadata"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint config {path} is missing or damaged: {error}") from error
    _verify(path.parent.parent, "config", {"json": _json_digest(config)})
    return config


def read_artifacts(workdir: Path, step: int) -> dict[str, Any]:
    """Artifacts stored beside a state."""
    return unpack_artifacts(read_tree(Path(workdir) / FOLDER / str(step) / "artifacts"))


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
