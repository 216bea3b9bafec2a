# SPDX-License-Identifier: Apache-2.0
"""Raw files: found, checked, fetched over a bad line; caches: made once, verified at every load."""

import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from experiments import data as data_command
from experiments.runner import data, transfer
from experiments.runner.errors import UserError
from tests import ROOT

CONTENT = b"".join(b"level %d\n" % i for i in range(20_000))
SHA = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


def toy(url: str = "", sha: str = SHA, path: str = "toy/levels.txt.gz") -> data.Datasets:
    return {"toy": {"about": "a toy", "terms": "none", "files": {path: (sha, url)}}}


REAL = os.environ.get("BANYAN_DATA")  # before each test gets folders of its own


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BANYAN_DATA", str(tmp_path / "raw"))


def put(tmp_path: Path, content: bytes = CONTENT, name: str = "toy/levels.txt.gz") -> Path:
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


# -------------------------------------------------------------------------------------- locating


def test_root_prefers_config_then_environment_then_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.root("/x") == Path("/x")
    assert data.root() == tmp_path / "raw"
    monkeypatch.delenv("BANYAN_DATA")
    assert data.root() == tmp_path / "cache" / "banyan-stack" / "downloads"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.root("~/y") == tmp_path / "y"


def test_locate_finds_datasets_and_files(tmp_path: Path) -> None:
    path = put(tmp_path)
    assert data.locate("toy", datasets=toy()) == path.parent
    assert data.locate("toy/levels.txt.gz", datasets=toy()) == path
    other = put(tmp_path, b"mine", "toy/mine.txt")
    assert data.locate("toy/mine.txt", datasets=toy()) == other
    for bad in ("../secret", "/etc/passwd", ""):
        with pytest.raises(data.DataError, match="path under the data folder"):
            data.locate(bad, datasets=toy())


def test_a_missing_file_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        data.locate("toy", datasets=toy())
    assert str(tmp_path / "raw" / "toy" / "levels.txt.gz") in str(caught.value)
    assert "python experiments/data.py download toy\n" in str(caught.value)
    with pytest.raises(UserError, match=r"download toy --root=/nowhere"):
        data.locate("toy/levels.txt.gz", "/nowhere", toy())


def test_verify_states(tmp_path: Path) -> None:
    state = lambda sha=SHA: [(c.path, c.state) for c in data.verify("toy", datasets=toy(sha=sha))]
    name = "toy/levels.txt.gz"
    assert state() == [(name, "missing")]
    path = put(tmp_path)
    assert state() == [(name, "ok")]
    assert state("") == [(name, "unknown")]
    path.write_bytes(gzip.compress(CONTENT, 1, mtime=7))
    assert state() == [(name, "ok")], "the hash is that of the content"
    put(tmp_path, b"mine", "toy/sub/mine.txt")
    assert state() == [(name, "ok"), ("toy/sub/mine.txt", "unknown")]
    put(tmp_path, CONTENT + b"x")
    assert state()[0] == (name, "mismatch")
    with pytest.raises(data.DataError, match=f"expected {SHA}, found"):
        data.fingerprints("toy", datasets=toy())


def test_fingerprints_record_what_nobody_declared(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, b"mine", "toy/mine.txt")
    assert data.fingerprints("toy", datasets=toy()) == {
        "toy/levels.txt.gz": SHA,
        "toy/mine.txt": hashlib.sha256(b"mine").hexdigest(),
    }


@pytest.mark.parametrize("cut", [5, 100, -1])
def test_a_truncated_gzip_is_named(tmp_path: Path, cut: int) -> None:
    path = put(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(data.DataError, match=r"levels\.txt\.gz: truncated or corrupted gzip"):
        data.digest(path)
    (check,) = data.verify("toy", datasets=toy())
    assert check.state == "mismatch" and "truncated" in check.detail


def test_a_dataset_that_is_not_known_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"'toi'; did you mean 'toy'\? \(known: toy\)"):
        data.verify("toi", datasets=toy())


def test_files_of_a_library_are_grouped_by_their_first_folder() -> None:
    module: Any = types.ModuleType("toys", "Toys of all kinds.\n\nMore.")
    module.FILES = {"a/x": ("", ""), "b/y": ("", ""), "a/sub/z": ("", "")}
    module.ABOUT = {"a": ("the letter a", "free")}
    found = data.grouped(module)
    assert {name: sorted(entry["files"]) for name, entry in found.items()} == {
        "a": ["a/sub/z", "a/x"], "b": ["b/y"],
    }  # fmt: skip
    assert (found["a"]["about"], found["a"]["terms"]) == ("the letter a", "free")
    assert found["b"]["about"] == "Toys of all kinds."


def test_about_may_name_a_dataset_by_more_folders_than_one(tmp_path: Path) -> None:
    module: Any = types.ModuleType("toys", "Toys.")
    module.FILES = {path: (SHA, "") for path in ("a/one/x.gz", "a/one/sub/y.gz", "a/two/x.gz")}
    module.ABOUT = {"a/one": ("first", "free"), "a/two": ("second", "free")}
    known = data.grouped(module)
    assert {name: sorted(entry["files"]) for name, entry in known.items()} == {
        "a/one": ["a/one/sub/y.gz", "a/one/x.gz"], "a/two": ["a/two/x.gz"],
    }  # fmt: skip
    put(tmp_path, CONTENT, "a/two/x.gz")
    assert [data_command.main(["verify", name], known) for name in ("a/one", "a/two")] == [1, 0]


def test_a_folder_nobody_declared_is_read_and_its_hashes_are_recorded(
    tmp_path: Path, capsys: Any
) -> None:
    put(tmp_path, b"mine", "a/three/x.txt")
    put(tmp_path, CONTENT, "a/three/sub/y.gz")
    found = data.fingerprints("a/three", datasets=toy())
    assert found == {"a/three/sub/y.gz": SHA, "a/three/x.txt": hashlib.sha256(b"mine").hexdigest()}
    assert data.locate("a/three", datasets=toy()) == tmp_path / "raw" / "a" / "three"
    assert data_command.main(["verify", "a/three"], toy()) == 0
    assert f"unknown   a/three/sub/y.gz  {SHA}" in capsys.readouterr().out
    assert data_command.main(["download", "a/three"], toy()) == 1
    assert "unknown dataset 'a/three'" in capsys.readouterr().err
    for bad in ("a/four", "../raw"):
        with pytest.raises(data.DataError):
            data.fingerprints(bad, datasets=toy())


# ------------------------------------------------------------------------------------- downloads


class Server(BaseHTTPRequestHandler):
    """Serves `body` in one of several bad ways; remembers the ranges asked for."""

    protocol_version = "HTTP/1.1"
    body: ClassVar[bytes] = CONTENT
    mode: ClassVar[str] = "good"
    asked: ClassVar[list[str | None]] = []
    sent: ClassVar[int] = 0
    hold: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        cls, asked = type(self), self.headers.get("Range")
        cls.asked.append(asked)
        first = len(cls.asked) == 1
        self.close_connection = True
        if cls.mode == "missing" or (cls.mode == "busy" and first):
            self.send_error(404 if cls.mode == "missing" else 503)
            return
        start = 0
        if asked and cls.mode != "ignores_range":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(cls.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(cls.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            shift = 1 if cls.mode == "shifts" else 0
            end = f"{start + shift}-{len(cls.body) - 1}/{len(cls.body)}"
            self.send_header("Content-Range", f"bytes {end}")
        else:
            self.send_response(200)
        rest = cls.body[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        broken = cls.mode in ("truncates", "ignores_range") and first
        stalls = cls.mode == "stalls" and first
        piece = rest[:HALF] if broken or stalls or cls.mode == "always_truncates" else rest
        if cls.mode == "always_truncates":
            piece = rest[:1000]
        self.wfile.write(piece)
        self.wfile.flush()
        cls.sent += len(piece)
        if stalls:
            cls.hold.wait(5)


@pytest.fixture
def server() -> Iterator[Any]:
    class Fresh(Server):
        asked: ClassVar[list[str | None]] = []
        hold: ClassVar[threading.Event] = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        Fresh.url = f"http://127.0.0.1:{http.server_port}/levels.txt"  # type: ignore[attr-defined]
        try:
            yield Fresh
        finally:
            Fresh.hold.set()
            http.shutdown()
            thread.join()


def fetch(server: Any, sha: str = SHA, path: str = "toy/levels.txt.gz", **options: Any) -> Path:
    options = {"timeout_s": 0.3, "attempts": 3, "pause_s": 0.0, **options}
    (target,) = data.download("toy", "", toy(server.url, sha, path), **options)
    return target


def assert_nothing_but(folder: Path, *names: str) -> None:
    assert sorted(p.name for p in folder.glob("*")) == sorted(names)


def test_download_checks_zips_without_a_time_stamp_and_does_it_once(server: Any) -> None:
    target = fetch(server)
    assert gzip.decompress(target.read_bytes()) == CONTENT
    first = target.read_bytes()
    assert first[4:8] == bytes(4), "the time field of the gzip header"
    fetch(server)
    assert len(server.asked) == 1, "it was already there"
    target.unlink()
    fetch(server)
    assert target.read_bytes() == first
    assert_nothing_but(target.parent, target.name)


@pytest.mark.parametrize("mode", ["truncates", "stalls", "busy"])
def test_a_broken_transfer_goes_on_where_it_broke(server: Any, mode: str) -> None:
    server.mode = mode
    target = fetch(server)
    assert gzip.decompress(target.read_bytes()) == CONTENT
    assert server.asked == [None, None if mode == "busy" else f"bytes={HALF}-"]
    assert server.sent == len(CONTENT), "no byte was sent twice"


def test_the_next_call_goes_on_too(server: Any, tmp_path: Path) -> None:
    server.mode = "always_truncates"
    with pytest.raises(UserError, match=r"connection closed after 2,000 of .* 2 tries"):
        fetch(server, attempts=2)
    assert_nothing_but(tmp_path / "raw" / "toy", "levels.txt.gz.part")
    server.mode = "good"
    fetch(server)
    assert server.asked == [None, "bytes=1000-", "bytes=2000-"]
    assert server.sent == len(CONTENT)


def test_a_server_that_ignores_ranges_starts_over(server: Any) -> None:
    server.mode = "ignores_range"
    assert gzip.decompress(fetch(server).read_bytes()) == CONTENT
    assert server.asked == [None, f"bytes={HALF}-"]


def test_a_server_that_resumes_elsewhere_is_not_trusted(server: Any, tmp_path: Path) -> None:
    part = tmp_path / "raw" / "toy" / "levels.txt.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:100])
    server.mode = "shifts"
    assert gzip.decompress(fetch(server).read_bytes()) == CONTENT
    assert server.asked == ["bytes=100-", None]


@pytest.mark.parametrize("held", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_whole_or_too_long(server: Any, tmp_path: Path, held: bytes) -> None:
    part = tmp_path / "raw" / "toy" / "levels.txt.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(held)
    assert gzip.decompress(fetch(server).read_bytes()) == CONTENT
    assert server.sent == (0 if held == CONTENT else len(CONTENT))


def test_wrong_bytes_are_not_kept(server: Any, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"expected SHA-256 {wrong}\n  received SHA-256 {SHA}"):
        fetch(server, wrong)
    assert_nothing_but(tmp_path / "raw" / "toy")


def test_an_error_page_that_claims_to_be_gzip_is_not_kept(server: Any, tmp_path: Path) -> None:
    server.url += ".gz"
    with pytest.raises(UserError, match="gzip"):
        fetch(server)
    assert_nothing_but(tmp_path / "raw" / "toy")


def test_a_zipped_source_is_kept_zipped_or_unzipped_as_the_layout_says(server: Any) -> None:
    server.url, server.body = server.url + ".gz", gzip.compress(CONTENT)
    assert fetch(server).read_bytes() == server.body
    assert fetch(server, path="toy/levels.txt").read_bytes() == CONTENT


def test_a_wrong_file_is_replaced_only_by_the_right_one(server: Any, tmp_path: Path) -> None:
    path = put(tmp_path, b"old")
    before = path.read_bytes()
    server.mode = "missing"
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(server)
    assert path.read_bytes() == before
    assert len(server.asked) == 1, "a refusal is not repeated"
    assert_nothing_but(path.parent, path.name)
    server.mode = "good"
    assert gzip.decompress(fetch(server).read_bytes()) == CONTENT


def test_no_connection_is_tried_a_bounded_number_of_times(server: Any, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:9/levels.txt"
    with pytest.raises(UserError, match=r"connection failed .*2 tries"):
        fetch(server, attempts=2)
    assert_nothing_but(tmp_path / "raw" / "toy")
    server.url = "file:///etc/hostname"
    with pytest.raises(UserError, match="only http"):
        fetch(server)
    server.url = ""
    with pytest.raises(UserError, match="no public address"):
        fetch(server)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_plainly(server: Any, tmp_path: Path, capsys: Any) -> None:
    part = tmp_path / "raw" / "toy" / "levels.txt.gz.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert data_command.main(["download", "toy"], toy(server.url)) == 1
    assert "disk full" in capsys.readouterr().err
    assert len(server.asked) == 1


def test_too_little_space_is_known_before_the_transfer(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = transfer.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=f"10 bytes, {len(CONTENT):,} needed"):
        fetch(server)
    assert server.sent <= len(CONTENT)
    assert (tmp_path / "raw" / "toy" / "levels.txt.gz.part").stat().st_size == 0


def test_two_downloads_of_one_file_do_not_mix(server: Any, tmp_path: Path) -> None:
    import fcntl

    part = tmp_path / "raw" / "toy" / "levels.txt.gz.part"
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is downloading"):
            fetch(server)


# ---------------------------------------------------------------------------------- command line


def test_command_line_list_verify_where(tmp_path: Path, capsys: Any) -> None:
    known = toy("http://127.0.0.1:9/levels.txt")
    assert data_command.main(["list"], known) == 0
    out = capsys.readouterr().out
    for piece in ("toy: 0 of 1 files", "a toy", "terms: none", "missing", "http://127", "download"):
        assert piece in out
    assert data_command.main(["verify", "toy"], known) == 1
    assert data_command.main(["where", "toy"], known) == 1
    assert "download toy" in capsys.readouterr().err
    path = put(tmp_path)
    for command, code in (("verify", 0), ("where", 0), ("list", 0)):
        assert data_command.main([command, *(["toy"] if command != "list" else [])], known) == code
    out = capsys.readouterr().out
    assert f"ok        toy/levels.txt.gz  {SHA}" in out and f"{path.parent}\n" in out
    assert data_command.main(["where", "toy", f"--root={tmp_path}"], known) == 1
    assert data_command.main(["verify", "tox"], known) == 1
    assert "did you mean 'toy'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        data_command.main(["fetch"], known)
    assert stop.value.code == 2


def test_it_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "experiments" / "data.py", "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "download" in run.stdout


def test_what_the_libraries_declare_is_well_formed() -> None:
    for name, entry in data.declared().items():
        assert entry["about"] and entry["terms"] and entry["files"], name
        for path, (sha, url) in entry["files"].items():
            assert data.inside(path) == path
            assert sha == "" or (len(sha) == 64 and int(sha, 16) >= 0)
            assert url == "" or url.startswith("https://")


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="real data not found: set BANYAN_DATA")
def test_the_real_files_are_the_declared_ones() -> None:
    for name in data.declared():
        states = {c.path: c.state for c in data.verify(name, REAL or "")}
        assert set(states.values()) == {"ok"}, states


# ----------------------------------------------------------------------------------------- packed


def test_packed_is_made_once_and_again_for_another_key(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"ids": np.arange(5, dtype=np.int32), "names": np.array(["a", "bb"])}

    for _ in range(2):
        arrays = data.packed("toy", {"v": 1}, make)
        assert arrays["ids"].dtype == np.int32 and arrays["ids"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["names"].tolist() == ["a", "bb"]
    assert len(made) == 1
    data.packed("toy", {"v": 2}, make)
    assert len(made) == 2
    assert len(list((data.cache_dir() / "packed").glob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "note", "no_note"])
def test_a_damaged_cache_is_said_and_made_again(damage: str, capsys: Any) -> None:
    make = lambda: {"ids": np.arange(1000)}
    data.packed("toy", 1, make)
    (path,) = (data.cache_dir() / "packed").glob("*.npz")
    note, whole = path.with_suffix(".json"), path.read_bytes()
    if damage == "flip":  # inside the array, where only a hash can see it
        at = whole.index(np.arange(1000).tobytes()[:800]) + 400
        whole = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes(whole)
    elif damage == "other":  # a sound file with other content
        np.savez(path, ids=np.arange(999))
    elif damage == "note":
        note.write_text('{"sha256": ')
    elif damage == "no_note":
        note.unlink()
    else:
        path.write_bytes(whole[:700] if damage == "cut" else b"")
    again = data.packed("toy", 1, make)
    np.testing.assert_array_equal(again["ids"], np.arange(1000))
    assert ("is damaged" in capsys.readouterr().err) == (damage != "no_note")
    fail = lambda: pytest.fail("was not repaired")
    np.testing.assert_array_equal(data.packed("toy", 1, fail)["ids"], np.arange(1000))


def test_objects_are_refused_and_a_failing_make_leaves_nothing() -> None:
    with pytest.raises(UserError, match="objects"):
        data.packed("toy", 1, lambda: {"x": np.array([{}, []], dtype=object)})
    with pytest.raises(ZeroDivisionError):
        data.packed("toy", 1, lambda: {"x": np.array(1 // 0)})
    assert [p.suffix for p in (data.cache_dir() / "packed").iterdir()] == [".lock"]


def test_fingerprint_sees_names_types_shapes_and_values() -> None:
    base = {"a": np.arange(6, dtype=np.int32)}
    variants = [
        base, {"b": base["a"]}, {"a": base["a"].astype(np.int64)}, {"a": base["a"].reshape(2, 3)},
        {"a": base["a"] + 1}, {},
    ]  # fmt: skip
    assert len({data.fingerprint(v) for v in variants}) == len(variants)
    a, b = np.zeros(2), np.ones((2, 2)).T
    assert data.fingerprint({"a": a, "b": b}) == data.fingerprint({"b": b.copy(), "a": a})


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        data.packed("toy", 1, lambda: {})


# ---------------------------------------------------------------------------------------- prepare


class FakeBuilder:
    """What `prepare` needs of a TFDS builder, without its two seconds of import."""

    def __init__(self, data_dir: str) -> None:
        self.path = Path(data_dir)


def slow_build(builder: Any, target: Path) -> None:
    target.mkdir(parents=True)
    with (target.parent / "made.log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    (target / "half").write_text("x")
    time.sleep(0.3)
    (target / "half").rename(target / "whole")


RACE = """
import sys
from tests.runner.data_test import FakeBuilder, data, slow_build
data._build = slow_build
print("ready", flush=True)
sys.stdin.read(1)
builder = data.prepare("toy", FakeBuilder, {"v": 1})
print(*sorted(p.name for p in builder.path.iterdir()))
"""


def test_of_two_processes_one_prepares_and_the_other_waits() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", RACE], env=env, text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    found = [process.communicate(timeout=30) for process in both]
    assert [out for out, _ in found] == ["key.json whole\n"] * 2
    assert sum("waiting for another process" in err for _, err in found) == 1
    made = (data.cache_dir() / "prepared" / "made.log").read_text().splitlines()
    assert len(made) == 1


def test_a_failing_builder_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(builder: Any, target: Path) -> None:
        target.mkdir()
        raise OSError("raw file vanished")

    monkeypatch.setattr(data, "_build", fail)
    with pytest.raises(OSError, match="vanished"):
        data.prepare("toy", FakeBuilder)
    assert [p.suffix for p in (data.cache_dir() / "prepared").iterdir()] == [".lock"]
    monkeypatch.setattr(data, "_build", slow_build)
    assert (data.prepare("toy", FakeBuilder).path / "whole").exists()


def test_a_tfds_builder_is_prepared_without_tensorflow_and_read_back(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    raw = put(tmp_path, b"###\n#.#\n###\n", "toy/rooms.txt")
    raw.parent.chmod(0o555)  # raw data may be read-only

    class RoomsOfATest(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"row": tfds.features.Tensor(shape=(3,), dtype=np.uint8)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"test": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for index, line in enumerate(raw.read_bytes().splitlines()):
                yield index, {"row": np.frombuffer(line, np.uint8)}

    array_record = lambda folder: RoomsOfATest(data_dir=folder, file_format="array_record")
    with pytest.raises(ValueError, match="array_record"):
        data.prepare("rooms", lambda folder: RoomsOfATest(data_dir=folder))
    for _ in range(2):
        builder = data.prepare("rooms", array_record, {"raw": data.digest(raw)})
        rows = [bytes(item["row"]) for item in builder.as_data_source("test")]
        assert sorted(rows) == sorted([b"###", b"#.#", b"###"])
    (home,) = (p for p in (data.cache_dir() / "prepared").iterdir() if p.is_dir())
    assert list(home.rglob("*.array_record*")) and not (home / "downloads").exists()
    assert "tensorflow" not in sys.modules
