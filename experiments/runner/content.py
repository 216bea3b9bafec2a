# SPDX-License-Identifier: Apache-2.0
"""Digests of what a run starts from: other runs and files that its config names by path.

They are kept in config.json and in every checkpoint, and hashed in place of the paths: a donor may
be moved, but not exchanged. Of a system in a file of the user's own its SHA-256 is kept, under the
key "system".
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.runner import checkpoint, data, names, serving, settings
from experiments.runner.errors import UserError


def digests(values: Mapping[str, Any], stored: Mapping[str, str] = {}) -> dict[str, str]:
    """{flat key: digest} of every path in a config; several, separated by commas, are one.

    Args:
        stored: what the run folder has on record: taken where a path leads nowhere any more.

    Raises:
        UserError: a path leads nowhere and nothing is on record.
    """
    digest_of: dict[str, str] = {}
    for key, path in settings.paths(values).items():
        parts = [Path(part.strip()) for part in path.split(",")]
        if key in stored and not all(part.exists() for part in parts):
            digest_of[key] = stored[key]
        else:
            try:
                digest_of[key] = _short("".join(_digest(part) for part in parts).encode())
            except UserError as error:
                raise UserError(f"config.{key}={path}: {error}") from error
    source = names.source_sha256(values.get("system", ""))
    return digest_of | ({"system": source} if source else {})


def _digest(path: Path) -> str:
    """Of a run its tested checkpoint, by the checksums saved with it; of a file its bytes."""
    if path.is_file():
        return data.digest(path, zipped=False)
    if (path / checkpoint.FOLDER).is_dir() or not path.is_dir():
        step, _ = serving.step_to_serve(path)
        return _short(json.dumps(checkpoint.checksums(path, step), sort_keys=True).encode())
    files = sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise UserError(f"{path} is empty: neither a run nor a folder of weights")
    listing = [[p.relative_to(path).as_posix(), data.digest(p, zipped=False)] for p in files]
    return _short(json.dumps(listing).encode())


def _short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
