# SPDX-License-Identifier: Apache-2.0
"""Raw files and what is made of them: locate, verify, download, prepare, pack, cache.

Raw files lie under `config.data.root` (`--root` of experiments/data.py), else $BANYAN_DATA, else
the download folder in the user's cache, and are never written to by anything but `download`.
Prepared and packed data lie in the cache (`cache_dir`). Libraries declare their files as plain
data, in a module named by `LIBRARIES`; the first folder of a path is the name of its dataset, or
more folders than one where ABOUT says so:

    FILES = {"boxoban/hard_000.txt.gz": (sha256, url), "amazon2014/beauty/x.gz": ...}
    ABOUT = {"boxoban": ("what it is", "terms of use"), "amazon2014/beauty": ...}     optional

The SHA-256 is that of the unzipped content; "" stands for a hash or an address nobody knows. A
file that is not declared but lies in the same folder works too, and so does a whole folder; the
hashes are recorded.
"""

import contextlib
import difflib
import fcntl
import gzip
import hashlib
import importlib
import json
import os
import shutil
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from experiments.runner import transfer
from experiments.runner.transfer import DataError

# Modules that export FILES; a new library is one more name.
LIBRARIES = ("banyan.data", "attention.data", "rec.data", "graph.data")
CHUNK = 1 << 20  # bytes
MOST_INFLATED = 1 << 26  # bytes a gzip file may always inflate to
MOST_RATIO = 200  # times the size of a larger one; deflate reaches 1030

Dataset = Mapping[str, Any]
"""about: str, terms: str, files: {path under the root: (sha256 of the unzipped content, url)}."""
Datasets = Mapping[str, Dataset]


class Check(NamedTuple):
    """What is known of one file. `sha256` is "" where there is nothing to hash."""

    path: str
    state: str  # ok | mismatch | missing | unknown
    sha256: str
    detail: str


# ------------------------------------------------------------------------------------------ where


def cache_dir() -> Path:
    """Folder of everything that can be made again: $XDG_CACHE_HOME (~/.cache)/banyan-stack."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "banyan-stack"


def root(config_root: str | Path = "") -> Path:
    """Folder of the raw files: the config's, else $BANYAN_DATA, else the download folder."""
    chosen = str(config_root) or os.environ.get("BANYAN_DATA", "")
    return Path(chosen).expanduser() if chosen else cache_dir() / "downloads"


def declared(datasets: Datasets | None = None) -> Datasets:
    """The datasets all libraries declare (or those given instead)."""
    if datasets is not None:
        return datasets
    found: dict[str, Dataset] = {}
    for name in LIBRARIES:
        module = importlib.import_module(name)
        for dataset_name, entry in grouped(module).items():
            if dataset_name in found:
                raise DataError(f"dataset {dataset_name!r} is declared twice (again in {name})")
            found[dataset_name] = entry
    return found


def grouped(module: Any) -> dict[str, Dataset]:
    """FILES of a module as datasets, with what ABOUT says of them: one per deepest folder ABOUT
    names, else per first folder.

    A dataset ABOUT does not name is described by the first line of the module.
    """
    found: dict[str, Dataset] = {}
    known = getattr(module, "ABOUT", {})
    first_line = (module.__doc__ or module.__name__).strip().splitlines()[0]
    for path, entry in module.FILES.items():
        parts = PurePosixPath(inside(path)).parts
        folders = ["/".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
        name = next((folder for folder in folders if folder in known), parts[0])
        about, terms = known.get(name, (first_line, "see the source"))
        found.setdefault(name, {"about": about, "terms": terms, "files": {}})["files"][path] = entry
    return found


def dataset(
    name: str, datasets: Datasets | None = None, config_root: str | Path | None = None
) -> Dataset:
    """One declared dataset; an unknown name lists the known ones.

    With `config_root` a folder under the root that nobody declared is one too, without files that
    are known.
    """
    known = declared(datasets)
    if name not in known:
        if config_root is not None and (root(config_root) / inside(name)).is_dir():
            return {"about": "a folder of yours", "terms": "yours", "files": {}}
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listing = ", ".join(sorted(known)) or "none"
        raise DataError(f"unknown dataset {name!r}{hint} (known: {listing})")
    return known[name]


def folder(name: str, datasets: Datasets | None = None) -> str:
    """The folder under the root that holds all files of a dataset ("" is the root itself); of one
    that nobody declared, its name."""
    known = declared(datasets)
    if name not in known:
        return name
    return os.path.commonpath([os.path.dirname(p) for p in known[name]["files"]])


def locate(
    name_or_path: str, config_root: str | Path = "", datasets: Datasets | None = None
) -> Path:
    """The folder of a dataset with all its files there, or one file (or an undeclared folder) by
    its path under the root.

    Raises:
        DataError: something is missing; names it and the command that fetches it.
    """
    base = root(config_root)
    known = declared(datasets)
    if name_or_path in known:
        wanted = list(known[name_or_path]["files"])
    else:
        wanted = [inside(name_or_path)]
    for path in wanted:
        if not (base / path).is_file() and not (path == name_or_path and (base / path).is_dir()):
            raise DataError(_missing(path, base, known, config_root))
    return base / (folder(name_or_path, known) if name_or_path in known else name_or_path)


def inside(path: str) -> str:
    """The path itself, where it names something under the data folder.

    Raises:
        DataError: it is empty or absolute, or has a "..", a backslash or a NUL in it.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise DataError(
            f"{path!r}: a data file is named by its path under the data folder, without '..', "
            "backslash or NUL"
        )
    return path


def _missing(path: str, base: Path, known: Datasets, config_root: str | Path) -> str:
    lines = [f"missing data file {base / path}"]
    option = f" --root={config_root}" if str(config_root) else ""
    owner = [name for name, entry in known.items() if path in entry["files"]]
    if owner:
        lines += [f"  fetch it:   python experiments/data.py download {owner[0]}{option}"]
    else:
        lines += ["  datasets:   python experiments/data.py list"]
    lines += ["  or point $BANYAN_DATA (or --config.data.root) at the folder that holds it"]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- hashes


def digest(path: str | Path, zipped: bool | None = None) -> str:
    """SHA-256 (hex) of the content of a file, streamed; unzipped if `zipped` or named .gz.

    Raises:
        DataError: a truncated or corrupted gzip file, or one that inflates out of all proportion,
            named.
    """
    path = Path(path)
    sha = hashlib.sha256()
    total = 0
    if zipped is None:
        zipped = path.suffix == ".gz"
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as unzipped:
            file: Any = unzipped if zipped else packed
            while chunk := file.read(CHUNK):
                sha.update(chunk)
                total += len(chunk)
                if total > max(MOST_INFLATED, MOST_RATIO * packed.tell()):  # never a plain file
                    raise DataError(
                        f"{path} inflates to more than {MOST_RATIO} times its size, which no data "
                        "file does: delete it and fetch it again"
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or corrupted gzip file ({error})") from error
    return sha.hexdigest()


def check(path: str, expected: str, base: Path) -> Check:
    """Compare one file with its declared hash."""
    file = base / path
    if not file.is_file():
        return Check(path, "missing", "", "not there")
    try:
        actual = digest(file)
    except DataError as error:
        return Check(path, "mismatch", "", str(error))
    if not expected:
        return Check(path, "unknown", actual, "no hash is declared")
    if actual != expected:
        return Check(path, "mismatch", actual, f"expected {expected}, found {actual}")
    return Check(path, "ok", actual, "")


def verify(
    name: str, config_root: str | Path = "", datasets: Datasets | None = None
) -> list[Check]:
    """State and SHA-256 of every file of a dataset: ok, mismatch, missing or unknown.

    Files in the dataset's folder that nobody declared are hashed too and reported as unknown.
    """
    files = dataset(name, datasets, config_root)["files"]
    base = root(config_root)
    checks = [check(path, sha, base) for path, (sha, _) in files.items()]
    inside = folder(name, datasets)
    if inside:
        for path in sorted((base / inside).rglob("*")):
            relative = path.relative_to(base).as_posix()
            if path.is_file() and relative not in files and path.suffix not in (".part", ".tmp"):
                checks.append(check(relative, "", base))
    return checks


def fingerprints(
    name: str, config_root: str | Path = "", datasets: Datasets | None = None
) -> dict[str, str]:
    """{path: SHA-256} of a dataset that is fit for use: to record, or as the `key` of a cache.

    Raises:
        DataError: a declared file is missing or differs from its hash.
    """
    locate(name, config_root, datasets)
    checks = verify(name, config_root, datasets)
    for item in checks:
        if item.state == "mismatch":
            raise DataError(
                f"{root(config_root) / item.path} is not the declared file: {item.detail}\n"
                f"  delete it, then:  python experiments/data.py download {name}"
            )
    return {item.path: item.sha256 for item in checks}


# ---------------------------------------------------------------------------------- made by us


@contextlib.contextmanager
def _alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file beside `path`; freed by the system when its holder ends, however it does.

    On a file system without locks two processes may do the same work; results stay right, because
    they appear by one atomic rename.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("ab")
    except OSError as error:
        raise DataError(
            f"the cache folder cannot be written: {error}\n"
            "  set XDG_CACHE_HOME to a folder that can"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to prepare {what}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _short(key: Any) -> str:
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(name: str, builder: Callable[[str], Any], key: Any = ()) -> Any:
    """A TFDS builder whose ArrayRecord files are in the cache, made there if they are not yet.

    Several processes or hosts may call it at once: one prepares, the others wait. The folder
    appears by one rename, so what is there is whole.

    Args:
        name: file name of the prepared data in the cache.
        builder: folder -> TFDS builder that writes array_record there; it knows its raw files.
        key: JSON value of all that decides the content, e.g. `fingerprints(name)` and options.

    Returns: the builder, ready for `as_data_source`.
    """
    home = cache_dir() / "prepared" / f"{name}-{_short(key)}"
    with _alone(home, name):
        if not home.is_dir():
            temporary = home.with_name(f".{home.name}.{os.getpid()}.tmp")
            try:
                _build(builder, temporary)
                (temporary / "key.json").write_text(json.dumps(key, indent=1, sort_keys=True))
                os.rename(temporary, home)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return builder(str(home))


def _build(builder: Callable[[str], Any], target: Path) -> None:
    import tensorflow_datasets as tfds  # late: two seconds nobody who reads a cache needs

    downloads = target / "downloads"
    made = builder(str(target))
    if made.info.file_format.value != "array_record":  # the only format read without TensorFlow
        raise ValueError(f"{made.name}: give its builder file_format='array_record'")
    made.download_and_prepare(
        download_dir=str(downloads),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),  # no hidden network
    )
    shutil.rmtree(downloads, ignore_errors=True)


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays, in name order."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{array.dtype.str}|{arrays[name].shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def packed(
    name: str, key: Any, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays out of the cache, made by `make` where they are missing, or damaged (said so).

    `<name>-<hash of key>.npz` lies beside a .json with the key and the SHA-256 of the arrays, which
    is checked at every load. No pickle: arrays of objects are refused.
    """
    path = cache_dir() / "packed" / f"{name}-{_short(key)}.npz"
    note = path.with_suffix(".json")
    with _alone(path, name):
        if path.exists() and note.exists():
            arrays, fault = _load(path, note)
            if not fault:
                return arrays
            print(f"{path} is damaged ({fault}): making it again", file=sys.stderr, flush=True)
        arrays = {k: np.asarray(v) for k, v in make().items()}
        for k, v in arrays.items():
            if v.dtype.hasobject:
                raise DataError(f"packed {name!r}: array {k!r} holds objects, not numbers or text")
        with _replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        record = {"name": name, "key": key, "sha256": fingerprint(arrays)}
        with _replacing(note) as file:
            file.write(json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
        return arrays


def _load(path: Path, note: Path) -> tuple[dict[str, np.ndarray], str]:
    """(arrays, "") or ({}, what is wrong with the file)."""
    try:
        expected = json.loads(note.read_bytes())["sha256"]
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return {}, "it is compressed, which `packed` never does"
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
        strange = [k for k, v in arrays.items() if not isinstance(v, np.ndarray)]
        if strange:
            return {}, f"{strange[0]} is no array"
    except (ValueError, KeyError, TypeError, EOFError, OSError, AttributeError) as error:
        return {}, f"{type(error).__name__}: {error}"
    except (zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError, OverflowError) as error:
        return {}, f"{type(error).__name__}: {error}"
    except (SyntaxError, tokenize.TokenError) as error:  # headers of arrays are Python literals
        return {}, f"{type(error).__name__}: {error}"
    actual = fingerprint(arrays)
    return (arrays, "") if actual == expected else ({}, f"SHA-256 {actual}, recorded {expected}")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole, by rename, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- download


def download(
    name: str,
    config_root: str | Path = "",
    datasets: Datasets | None = None,
    *,
    timeout_s: float | int = 30.0,
    attempts: int = 5,
    pause_s: float | int = 1.0,
) -> list[Path]:
    """Fetch the files of a dataset that are missing or wrong; each is checked before it appears.

    A broken transfer leaves `<file>.part` and goes on from there, within `attempts` tries and in
    the next call. A transfer without a byte for `timeout_s` seconds counts as broken.

    Raises:
        DataError: no address, refused, wrong bytes (nothing is kept), or no space.
    """
    base = root(config_root)
    paths = []
    for path, (expected, url) in dataset(name, datasets)["files"].items():
        target = base / inside(path)
        paths.append(target)
        state = check(path, expected, base)
        if state.state in ("ok", "unknown"):
            print(f"{path}: already there ({state.state})")
            continue
        if not url:
            raise DataError(f"{path} has no public address: put it at {target} by hand")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write below {base}: {error}; choose --root=DIR") from error
        part = target.with_name(target.name + ".part")
        transfer.fetch(url, part, timeout_s=timeout_s, attempts=attempts, pause_s=pause_s)
        sha = _install(part, target, url, expected)
        print(f"{path}: saved, SHA-256 {sha}" + ("" if expected else " (none declared)"))
    return paths


def _install(part: Path, target: Path, url: str, expected: str) -> str:
    """Turn a finished transfer into the file of our layout, if its content is the right one.

    A plain public file kept as .gz here is compressed without a time stamp, so always to the same
    bytes; a zipped one kept plain is unzipped.
    """
    temporary = target.with_name(target.name + ".tmp")
    zipped = url.partition("?")[0].endswith(".gz")
    try:
        if zipped == (target.suffix == ".gz"):
            os.replace(part, temporary)
        else:
            with temporary.open("wb") as raw:
                if zipped:
                    with gzip.open(part, "rb") as source:
                        shutil.copyfileobj(source, raw, CHUNK)
                else:
                    with (
                        gzip.GzipFile("", "wb", 9, raw, mtime=0) as out,
                        part.open("rb") as source,
                    ):
                        shutil.copyfileobj(source, out, CHUNK)
        actual = digest(temporary, target.suffix == ".gz")
        if expected and actual != expected:
            raise DataError(
                f"{url}: wrong bytes, nothing was kept\n"
                f"  expected SHA-256 {expected}\n  received SHA-256 {actual}"
            )
        os.replace(temporary, target)
        return actual
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{url}: not a whole gzip file ({error}), nothing was kept") from error
    except OSError as error:
        raise DataError(f"cannot save {target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
