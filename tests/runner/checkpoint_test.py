# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: read anywhere, damaged never unnoticed, a failed save never hidden."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from experiments.runner.assemble import assemble

from experiments.runner import checkpoint, digest, loop, reopen, sharding
from experiments.runner.errors import UserError
from tests import ROOT, toy

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Path:
    """A run of 8 steps with checkpoints 0, 4 and 8."""
    workdir = tmp_path_factory.mktemp("checkpoint") / "run"
    loop.train(toy.tiny(train__steps=8), workdir)
    return workdir


def test_read_needs_nothing_but_the_folder(run: Path, tmp_path: Path) -> None:
    """A fresh process, another device count, no system: the same arrays and JSON."""
    code = f"""
import sys
import numpy as np
from experiments.runner import checkpoint
found = checkpoint.read({str(run)!r})
flat = dict(checkpoint.leaf_paths(found["state"]))
np.savez({str(tmp_path / "out.npz")!r}, **flat, truth=found["artifacts"]["truth"])
assert found["config"]["toy"]["rows"] == 16 and found["artifacts"]["note"]["text"] == "ü"
print(found["step"], [m for m in sys.modules if m.split(".")[0] in ("banyan", "tests", "rec")])
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "8 []"
    asm, manager = reopen.open_run(run)
    with manager:
        state = checkpoint.restore(manager, 8, asm.abstract)
    arrays = np.load(tmp_path / "out.npz")
    want = sharding.leaf_paths(state)
    assert set(arrays) == {*want, "truth"}
    for path, leaf in want.items():
        raw = jax.random.key_data(leaf) if path == "key" else leaf
        np.testing.assert_array_equal(arrays[path], raw, err_msg=path)
    np.testing.assert_array_equal(arrays["truth"], asm.artifacts["truth"])


def test_read_of_a_step_that_is_not_there(run: Path, tmp_path: Path) -> None:
    assert checkpoint.read(run, 4)["step"] == 4
    with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*; there are \[0, 4, 8\]"):
        checkpoint.read(run, 5)
    with pytest.raises(UserError, match="no checkpoints in"):
        checkpoint.read(tmp_path)


def test_artifacts_round_trip() -> None:
    """Arrays of every kind and nested JSON; only tuples change (to lists)."""
    made = {
        "table": np.arange(6, dtype=np.int16).reshape(2, 3),
        "deep": {"a/b": np.array(True), "list": [1, 2.5, None, "ü", {"x": []}], "empty": {}},
        "zero": np.zeros((0, 3), np.float32),
        "half": np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16)),
        "name": "",
    }
    back = checkpoint.unpack_artifacts(checkpoint.pack_artifacts(made))
    assert jax.tree.structure(back) == jax.tree.structure(made)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(back), strict=True):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    assert checkpoint.unpack_artifacts(checkpoint.pack_artifacts({})) == {}


def test_differences_name_every_leaf() -> None:
    stored = {"params": {"a": np.zeros((2, 3)), "old": np.zeros(1)}, "key": np.zeros(2, np.uint32)}
    wanted = {"params": {"a": np.zeros((3, 2)), "new": np.zeros(1)}, "key": jax.random.key(0)}
    stored["step"], wanted["step"] = np.int32(1), np.float32(1)
    assert checkpoint.differences(stored, wanted) == [
        "missing in the checkpoint: params/new",
        "not in this run: params/old",
        "shape of params/a: checkpoint (2, 3), this run (3, 2)",
        "dtype of step: checkpoint int32, this run float32",
    ]


def test_restore_refuses_another_tree(run: Path) -> None:
    asm = assemble(toy.tiny(toy__extra=True, toy__width=8))
    with checkpoint.open_manager(run, read_only=True) as manager:
        with pytest.raises(UserError) as found:
            checkpoint.restore(manager, 8, asm.abstract)
    text = str(found.value)
    assert "missing in the checkpoint: params/extra" in text
    assert "shape of params/w: checkpoint (8, 4), this run (8, 8)" in text


# ------------------------------------------------------------------------------------- damage


def test_digest_is_the_same_on_host_and_device_and_sees_every_bit() -> None:
    rng = np.random.default_rng(0)
    leaves = {
        "f32": rng.normal(size=(8, 3, 2)).astype(np.float32),
        "i8": rng.integers(-99, 99, (5,), dtype=np.int8),
        "bool": rng.random((4, 4)) < 0.5,
        "bf16": np.asarray(jnp.asarray(rng.normal(size=(8, 2)), jnp.bfloat16)),
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 2), np.float32),
        "complex": (rng.normal(size=3) + 1j).astype(np.complex64),
    }
    host = digest.of_arrays(leaves)
    assert digest.of_arrays({k: jnp.asarray(v) for k, v in leaves.items()}) == host
    mesh = sharding.make_mesh((4, 2))
    put = jax.device_put(leaves["f32"], jax.sharding.NamedSharding(mesh, checkpoint_spec()))
    assert digest.of_arrays({"f32": put}) == {"f32": host["f32"]}
    with jax.experimental.enable_x64(True) if hasattr(jax.experimental, "enable_x64") else wide():
        f64 = rng.normal(size=(2, 3))
        assert digest.of_arrays({"x": jnp.asarray(f64)}) == digest.of_arrays({"x": f64})
    for bit in range(32):
        other = leaves["f32"].copy()
        other.view(np.uint32)[7, 2, 1] ^= np.uint32(1) << np.uint32(bit)
        assert digest.of_arrays({"f32": other}) != {"f32": host["f32"]}
    assert digest.of_arrays({"f32": leaves["f32"][::-1]}) != {"f32": host["f32"]}


def wide() -> Any:
    return jax.enable_x64(True)


def checkpoint_spec() -> Any:
    return jax.sharding.PartitionSpec("data", None, "model")


def same(a: Any, b: Any) -> bool:
    x, y = sharding.leaf_paths(a), sharding.leaf_paths(b)
    return x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)


def damages(path: Path) -> Iterator[bytes]:
    """Torn, emptied and flipped versions of a file."""
    data = path.read_bytes()
    yield b""
    yield data[: len(data) // 2]
    for place in {0, len(data) // 3, len(data) // 2, len(data) - 2}:
        yield data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :]


def test_damage_is_never_silent(run: Path, tmp_path: Path) -> None:
    """Every file of a checkpoint, torn or with a flipped byte: an error that names the folder, or
    the very same content. In a process of its own: TensorStore reports some errors a second time,
    to an event loop long closed."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    code = """
import pathlib, sys
from tests.runner import checkpoint_test
from tests import toy
toy.install()
checkpoint_test.damage(pathlib.Path(sys.argv[1]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(workdir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.startswith("refused ")


def damage(workdir: Path) -> None:
    """Damages every file of the last checkpoint in turn; prints how often that was noticed."""
    shutil.rmtree(workdir / "checkpoints" / "0")
    shutil.rmtree(workdir / "checkpoints" / "4")
    whole, refused, tried = checkpoint.read(workdir), 0, 0
    asm, manager = reopen.open_run(workdir)
    manager.close()
    files = sorted(p for p in (workdir / "checkpoints" / "8").rglob("*") if p.is_file())
    assert {p.relative_to(workdir / "checkpoints" / "8").parts[0] for p in files} >= {
        "state",
        "artifacts",
        "config",
    }
    for path in files:
        data = path.read_bytes()
        if not data:
            continue  # a marker
        for number, damaged in enumerate(damages(path)):
            path.write_bytes(damaged)
            tried += 1
            try:
                found = checkpoint.read(workdir)
                assert same(found, whole), path
            except UserError as error:
                refused += 1
                assert str(workdir) in str(error), error
            if number == 2:  # the loop's own way to read
                try:
                    with checkpoint.open_manager(workdir, read_only=True) as manager:
                        state = checkpoint.restore(manager, 8, asm.abstract)
                    assert same(state["params"], whole["state"]["params"]), path
                except UserError as error:
                    assert str(workdir) in str(error), error
        path.write_bytes(data)
    assert refused > tried / 4
    assert same(checkpoint.read(workdir), whole)
    print("refused", refused, "of", tried)


def test_flipped_value_bytes_are_found(tmp_path: Path) -> None:
    """Incompressible arrays, where no container notices a flipped bit by itself."""
    value = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    state = {"step": jnp.int32(1), "params": {"w": jnp.asarray(value)}}
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, state, {}, {})
    files = [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]
    big = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(big.read_bytes())
    data[len(data) // 2] ^= 1
    big.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read(tmp_path)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.restore(manager, 1, abstract)


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    torn = workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "8", torn)
    assert checkpoint.steps(workdir) == [0, 4, 8]
    assert checkpoint.read(workdir)["step"] == 8
    assert reopen.check(workdir) == [] and torn.exists()  # a reader removes nothing
    loop.train(toy.tiny(train__steps=10), workdir)
    assert not torn.exists() and checkpoint.steps(workdir)[-1] == 10


# ------------------------------------------------------------------------------- failed saves


def test_a_failed_save_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in the background: the run ends with a plain message, the last good step loads."""
    real = ocp.StandardCheckpointHandler.async_save

    async def failing(self: Any, directory: Any, *args: Any, **kwargs: Any) -> Any:
        if "/8" in str(directory):
            raise OSError(28, "No space left on device", str(directory))
        return await real(self, directory, *args, **kwargs)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", failing)
    with pytest.raises(UserError, match=r"checkpoint in .* was not saved.*No space left on device"):
        loop.train(toy.tiny(train__steps=12), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [0, 4]
    assert checkpoint.read(tmp_path / "run")["step"] == 4
    assert not (tmp_path / "run" / "results.json").exists()


def test_disk_full_during_a_save(tmp_path: Path) -> None:
    """No file may grow past 64 KiB once step 5 is reached; the state is larger than that."""
    code = """
import pathlib, resource, signal, sys, time
import tests.toy
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
real = tests.toy.make
def make(config, artifacts):
    made = real(config, artifacts)
    def batch(step, rows=None):
        if step == 6:
            while not pathlib.Path(sys.argv[2][10:], "checkpoints", "4").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        return made.batch(step, rows)
    return made._replace(batch=batch)
tests.toy.make = make
tests.toy.install()
tests.toy.main()
"""
    workdir = tmp_path / "run"
    words = ["--config=tests/toy.py", f"--workdir={workdir}", "--config.toy.width=40000"]
    process = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
    )
    assert process.returncode == 2, (process.returncode, process.stderr[-2000:])
    want = f"error: checkpoint in {workdir}/checkpoints was not saved"
    lines = process.stderr.splitlines()  # among what the library's threads have to say
    assert any(line.startswith(want) for line in lines), process.stderr[-3000:]
    assert checkpoint.steps(workdir)[-1] == 4
    assert checkpoint.read(workdir)["state"]["params"]["w"].shape == (8, 40000)
    assert not (workdir / "results.json").exists()


def test_a_workdir_that_cannot_be_made(tmp_path: Path) -> None:
    """Below a file, for any user; without permission, for all but root."""
    (tmp_path / "file").write_text("")
    for below in ("file", "file/run"):
        with pytest.raises(UserError, match="is a file"):
            loop.train(toy.tiny(), tmp_path / below)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_workdir_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission in"):
        loop.train(toy.tiny(), tmp_path / "locked" / "run")


def test_run_files_that_are_damaged_are_named(run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for name, text in (
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"seed": 0}'),
        ("config.json", b"\xff\xfe"),
        ("results.json", '{"metrics": {}}'),
    ):
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(run, workdir)
        (workdir / name).write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(UserError, match=r"config\.json|results\.json|config\.system"):
            reopen.check(workdir)
    assert json.loads((run / "config.json").read_text())["system"] == "toy"
