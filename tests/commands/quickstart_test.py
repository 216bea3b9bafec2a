# SPDX-License-Identifier: Apache-2.0
"""The notebook: outputs stripped in the repository, and every cell but the installation runs."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

from experiments.configs.banyan.banyan import HEADLINE
from tests import ROOT

NOTEBOOK = ROOT / "experiments" / "quickstart.ipynb"
KERNEL = "this-python"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of the interpreter that runs the tests, whatever is installed elsewhere."""
    folder = tmp_path / "kernels" / KERNEL
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # the future default; else it warns
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are shown inline
    return KERNEL


def test_outputs_are_stripped() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.source
    installs = [cell for cell in notebook.cells if "install" in tags(cell)]
    assert len(installs) == 1 and "pip install" in installs[0].source


@pytest.mark.deep
def test_every_cell_runs(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    work = tmp_path / "runs"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name=kernel,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute()
    outputs = {
        cell.id: cell.get("outputs", []) for cell in notebook.cells if cell.cell_type == "code"
    }

    def kinds(name: str) -> set[str]:
        return {kind for out in outputs[name] for kind in out.get("data", {})}

    def text(name: str) -> str:
        return "".join(out.get("text", "") for out in outputs[name])

    assert "image/png" in kinds("plot")
    assert "image/gif" in kinds("watch")
    assert "text/html" in kinds("report")
    assert "report.html" in text("train")
    assert "step 12 of banyan" in text("read")
    assert "environment steps/s" in text("speed")
    (first,) = work.glob("banyan-*/first/results.json")
    assert len(list(work.glob("banyan-*/second/results.json"))) == 1
    # What README's tables would show of a finished run is really measured by one.
    assert {entry.metric for entry in HEADLINE} <= set(json.loads(first.read_text())["metrics"])
