# SPDX-License-Identifier: Apache-2.0
"""What is declared and what would be shipped: names, ranges, extras, files, notices."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import ROOT

PACKAGES = ["banyan", "rec", "graph", "attention", "experiments"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"cuda", "cuda12", "tpu", "tpu_aot", "tensorboard", "wandb", "test", "dev", "peers"}


def requirements(extra: str = "") -> dict[str, Requirement]:
    declared = PROJECT["project"]
    lines = declared["optional-dependencies"][extra] if extra else declared["dependencies"]
    return {(r := Requirement(line)).name.lower().replace("_", "-"): r for line in lines}


def shipped() -> set[str]:
    """Files under version control, or all of them where there is no git or it refuses."""
    if shutil.which("git") and (ROOT / ".git").exists():
        words = ["git", "ls-files"]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return set(run.stdout.split("\n"))
    paths = [
        path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*") if path.is_file()
    ]
    return {p.relative_to(ROOT).as_posix() for p in paths if p.parent.name != "__pycache__"}


def test_names_and_ranges() -> None:
    project = PROJECT["project"]
    assert project["name"] == "banyan-stack"
    assert project["requires-python"] == ">=3.11"
    assert (ROOT / project["readme"]).is_file() and (ROOT / "LICENSE").is_file()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES
    assert set(project["optional-dependencies"]) >= EXTRAS
    base = requirements()
    assert "0.10.2" in base["jax"].specifier and "0.12.0" in base["jax"].specifier
    assert "0.13" not in base["jax"].specifier
    assert "importlib-resources" in base  # tensorflow-datasets does not declare it
    every = {*base, *requirements("test"), *requirements("dev")}
    assert not every & {"tensorflow", "torch", "jax-cuda13-plugin", "tf-keras"}


def test_packages_are_those_of_this_checkout() -> None:
    """A foreign package of the same name may be installed: ours must come first."""
    for package in PACKAGES:
        module = __import__(package)
        assert Path(str(module.__file__)).parent == ROOT / package, (
            f"{package} is {module.__file__}"
        )
    for path in shipped():
        top, _, rest = path.partition("/")
        if top in PACKAGES and path.endswith(".py"):
            for folder in (ROOT / path).relative_to(ROOT).parents:
                if folder != Path("."):
                    assert (ROOT / folder / "__init__.py").is_file(), f"{folder}: no package"
        assert not (top in PACKAGES and rest.endswith(".pyc"))


def test_python_files_name_the_licence() -> None:
    for path in sorted(shipped()):
        if path.endswith(".py") and (ROOT / path).is_file():
            text = (ROOT / path).read_text()
            assert not text or text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_wheel_holds_the_packages_and_nothing_else() -> None:
    """The list hatchling would pack, where hatchling is installed (pip needs none of it)."""
    pytest.importorskip("hatchling")
    code = """
import json
import os
from hatchling.builders.wheel import WheelBuilder
print(json.dumps([f.distribution_path for f in WheelBuilder(".").recurse_included_files()]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    packed = set(json.loads(run.stdout))
    assert {path.partition("/")[0] for path in packed} == set(PACKAGES)
    results = "experiments/results/"
    source = {p for p in shipped() if p.partition("/")[0] in PACKAGES and (ROOT / p).is_file()}
    assert {path for path in source if not path.startswith(results)} <= packed
    assert not [path for path in packed if path.startswith(results)]
    assert not [path for path in packed if re.search(r"__pycache__|\.pyc$", path)]


def test_constraints_name_every_direct_dependency_at_both_ends() -> None:
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pinned.setdefault(pin.name.lower(), []).append(pin)
    for extra in ("", "test", "dev"):
        for name, wanted in requirements(extra).items():
            if name == "banyan-stack":
                continue
            for python in ("3.11", "3.13"):
                fitting = [
                    pin
                    for pin in pinned.get(name, [])
                    if not pin.marker or pin.marker.evaluate({"python_version": python})
                ]
                assert len(fitting) == 1, f"{name} on Python {python}"
                (version,) = fitting[0].specifier
                assert wanted.specifier.contains(version.version), f"{name} on Python {python}"


def test_the_check_script_and_the_notices_are_there() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert 'pip install -q -e ".[test]" && pytest' in script.read_text()
    readme = (ROOT / "README.md").read_text()
    assert 'pip install -e ".[test]" && pytest' in readme
    assert "pip install -e . && python experiments/run.py --config=" in readme
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    from banyan.types import RULE_VERSION

    assert f"## [{version}]" in changelog
    assert f"\n| {RULE_VERSION} | " in changelog and "## Errata" in changelog


@pytest.mark.deep
def test_the_wheel_works_where_others_use_its_names(tmp_path: Path) -> None:
    """Unpacked as pip would, beside distributions with packages named rec and graph."""
    pytest.importorskip("hatchling")
    build = "from hatchling.builders.wheel import WheelBuilder\n"
    build += (
        f"print(next(WheelBuilder('.').build(directory={str(tmp_path)!r}, versions=['standard'])))"
    )
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ours = tmp_path / "ours"
    with zipfile.ZipFile(built.stdout.strip()) as wheel:
        wheel.extractall(ours)
    foreign = tmp_path / "foreign"
    for name in ("rec", "graph"):
        (foreign / name).mkdir(parents=True)
        (foreign / name / "__init__.py").write_text("raise ImportError('somebody else')\n")
        information = foreign / f"{name}_tools-1.0.dist-info"
        information.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}-tools\nVersion: 1.0\n"
        (information / "METADATA").write_text(head)
        (information / "top_level.txt").write_text(f"{name}\n")

    def call(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(path), "BANYAN_DATA": ""}
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    run = str(ours / "experiments" / "run.py")
    said = call(foreign, run, "--list")
    assert said.returncode == 0 and "  tiger  " in said.stdout, said.stderr
    said = call(foreign, run, "--config=rec_baselines:tiny", "--workdir=run")
    assert said.returncode == 0 and (tmp_path / "run" / "results.json").is_file(), said.stderr
    first = f"import sys; sys.path.insert(0, {str(ours)!r}); import rec, graph"
    lazily = call(foreign, "-c", first)
    assert lazily.returncode == 0, lazily.stderr
    said = call(foreign, "-c", "import rec")
    assert "somebody else" in said.stderr  # the foreign ones are really there
