# SPDX-License-Identifier: Apache-2.0
"""Rules of the repository: who imports whom, who touches files, and what is found nowhere."""

import ast
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

LIBRARIES = ("banyan", "rec", "graph", "attention")
PACKAGES = (*LIBRARIES, "experiments")
ARROWS = {"banyan": {"attention"}, "rec": {"attention"}, "graph": {"attention"}, "attention": set()}
# Calls that read or write files, as the last name of what is called.
FILE_CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "rmtree",
    "glob",
    "rglob",
    "iterdir",
    "savefig",
    "savez",
    "loadtxt",
    "genfromtxt",
    "fromfile",
    "tofile",
    "memmap",
    "NamedTemporaryFile",
}
# Besides `data` modules and modules run as `python -m`: why each may touch files.
MAY_TOUCH_FILES = {
    "banyan/layouts.py": "Boxoban level files, named by the config, are read to make tasks",
    "attention/lm/loading.py": "reads the folder of weights that its caller names",
    "banyan/gif.py": "writes a picture where its caller says, as any plotting library does",
}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported anywhere, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_tool(tree: ast.Module) -> bool:
    """Whether the module runs something as `python -m`."""
    return any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)


@pytest.mark.parametrize("library", LIBRARIES)
def test_arrows(library: str) -> None:
    """Libraries import attention or nothing of ours; never experiments, never tests."""
    forbidden = {*PACKAGES, "tests"} - {library} - ARROWS[library]
    for path in sources(library):
        for module in imports(tree_of(path)):
            assert module.split(".")[0] not in forbidden, f"{name_of(path)} imports {module}"


# Who imports whom inside experiments/: part -> parts it may import. A command is a module at the
# top; it reaches configs, systems and benches by name, through runner/.
PARTS = ("benches", "systems", "configs", "commands", "runner")
MAY_IMPORT = {
    "benches": {"benches", "systems", "configs", "runner"},
    "systems": {"systems", "configs", "runner"},
    "configs": {"configs", "runner"},
    "commands": {"runner"},
    "runner": {"runner"},
}


def part_of(module: str) -> str:
    """The part of experiments/ a dotted name lies in; "" for the package itself and for others."""
    first, _, rest = module.partition(".")
    if first != "experiments" or not rest:
        return ""
    part = rest.split(".")[0]
    return part if part in PARTS else "commands"


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_arrows_of_experiments() -> None:
    """benches -> systems -> configs, and commands -> runner, never back; nothing imports tests;
    only benches, systems and configs import libraries."""
    seen = set()
    for path in sources("experiments"):
        part = part_of(dotted(path)) if path.name != "__init__.py" else "runner"
        found = set(imports(tree_of(path)))
        for module in found:
            assert module.split(".")[0] != "tests", f"{name_of(path)} imports {module}"
            if to := part_of(module):
                assert to in MAY_IMPORT[part], f"{name_of(path)} imports {module}"
                seen.add((part, to))
        if part in ("commands", "runner"):
            assert not {m.split(".")[0] for m in found} & set(LIBRARIES), name_of(path)
    assert {("benches", "systems"), ("systems", "configs"), ("commands", "runner")} <= seen


def test_no_system_imports_one_of_another_library() -> None:
    """A system may import what its library's systems share, and the configs of its library."""
    for path in sources("experiments/systems", "experiments/configs"):
        library = path.relative_to(ROOT / "experiments").parts[1]
        for module in imports(tree_of(path)):
            words = module.split(".")
            if words[0] == "experiments" and words[1:2] in (["systems"], ["configs"]) and words[2:]:
                assert words[2] == library, f"{name_of(path)} imports {module}"


def test_commands_validate_before_jax() -> None:
    """run.py reaches JAX only after flags and config are sound."""
    runner = [
        f"runner/{name}" for name in ("command_line", "settings", "names", "errors", "shadowing")
    ]
    for name in ("run", *runner):
        tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        modules = {m.split(".")[0] for n in top for m in imports(ast.Module([n], []))}
        assert not modules & {"jax", "flax", "orbax", "tensorflow_datasets"}, name


def test_libraries_leave_files_alone() -> None:
    seen = set()
    for path in sources(*LIBRARIES):
        tree, name = tree_of(path), name_of(path)
        calls = {called(n) for n in ast.walk(tree) if isinstance(n, ast.Call)} & FILE_CALLS
        if not calls or "data" in (path.stem, path.parent.name) or is_tool(tree):
            continue
        assert name in MAY_TOUCH_FILES, f"{name} calls {sorted(calls)}"
        seen.add(name)
    assert seen == set(MAY_TOUCH_FILES), "an allowance nobody needs"


def all_code() -> list[Path]:
    return sources(*PACKAGES, "tests")


def test_every_file_is_short_and_licensed() -> None:
    for path in all_code():
        lines = path.read_text().splitlines()
        assert lines[0] == "# SPDX-License-Identifier: Apache-2.0" if lines else True, name_of(path)
        assert len(lines) < 600, f"{name_of(path)} has {len(lines)} lines"
    assert len((ROOT / "experiments" / "run.py").read_text().splitlines()) < 150
    for path in sources(*PACKAGES):
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 100, f"{name_of(path)}: {node.name} has {length} lines"


# Where `except Exception` stands, and how often: what a library raises bare is raised again, named.
MAY_CATCH_ALL = {"experiments/runner/checkpoint.py": 1}


def test_nothing_swallows_errors_and_nothing_unpickles() -> None:
    caught_all: dict[str, int] = {}
    for path in all_code():
        for node in ast.walk(tree_of(path)):
            where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                names = set(re.findall(r"\w+", caught))
                assert not names & {"everything", "BaseException"}, where
                if "Exception" in names:
                    assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), where
                    caught_all[name_of(path)] = caught_all.get(name_of(path), 0) + 1
            if isinstance(node, ast.Call):
                assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")), (
                    where
                )
                for keyword in node.keywords:
                    if keyword.arg == "allow_pickle":
                        assert ast.unparse(keyword.value) == "False", where
        for module in imports(tree_of(path)):
            assert module.split(".")[0] not in ("pickle", "dill", "cloudpickle", "joblib"), path
    assert caught_all == MAY_CATCH_ALL


def tracked() -> list[Path]:
    """Files under version control or about to be; those of known kinds where git is not there or
    refuses, as it does in a checkout of another user."""
    if shutil.which("git") and (ROOT / ".git").exists():
        words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return [ROOT / name for name in run.stdout.splitlines() if (ROOT / name).is_file()]
    return [*all_code(), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("*.txt")]


def test_no_machine_and_no_mirror_is_named() -> None:
    """Absolute paths of somebody's machine, private package mirrors, other people's homes."""
    # Written in pieces so that this file does not name them either.
    mirrors = ["index" + "-url", "arti" + "factory", "dev" + "pi", "py" + "pi-proxy"]
    mirrors.append("/sim" + "ple/")
    machine = re.compile(
        r"(?<![\w./$}])/(?:home|Users|root|work|mnt|tmp/(?:wt|v)|nfs|scratch)/\w+", re.ASCII
    )
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:4096]:
            continue  # no text
        text = data.decode()
        for word in mirrors:
            assert word not in text.lower(), f"{path.relative_to(ROOT)}: {word}"
        found = machine.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_no_leftovers() -> None:
    """No unfinished work, no stub, in code that ships."""
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
    for path in all_code():
        found = marks.search(path.read_text())
        assert not found, f"{name_of(path)}: {found and found.group()}"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Raise) and node.exc is not None:
                assert "NotImplementedError" not in ast.unparse(node.exc), name_of(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_this_checkout_is_what_is_tested(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None and Path(file).resolve().is_relative_to(ROOT)
