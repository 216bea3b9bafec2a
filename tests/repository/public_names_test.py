# SPDX-License-Identifier: Apache-2.0
"""Public names of the libraries: all resolve, on first use only, and hide no submodule."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

from tests import ROOT

LIBRARIES = ("attention", "banyan", "rec", "graph")
HEAVY = {"jax", "flax", "optax", "numpy", "scipy", "tensorflow_datasets"}
# What a user types first; each library has at least these.
WANTED = {
    "attention": {"attention", "attention_map", "output_norm", "tda_attention", "Decoder"},
    "banyan": {"TaskConfig", "make_tasks", "reset", "rollout", "step"},
    "rec": {"fit_tokenizer", "ndcg", "read_corpus", "recall"},
    "graph": {"heuristic_scores", "mrr", "read_links", "sample_links"},
}


def in_fresh_process(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("library", LIBRARIES)
def test_import_loads_nothing_heavy_until_a_name_is_used(library: str) -> None:
    name = sorted(WANTED[library])[-1]
    code = f"""
import json, sys
import {library}
before = [name.split(".")[0] for name in sys.modules]
listed = dir({library})
value = {library}.{name}
after = [name for name in sys.modules if name.startswith("{library}.")]
print(json.dumps([before, listed, after, callable(value), "{name}" in vars({library})]))
"""
    before, listed, after, is_callable, is_remembered = json.loads(in_fresh_process(code))
    assert library in before and not HEAVY & set(before)
    assert set(importlib.import_module(library).__all__) <= set(listed)
    assert after and is_callable and is_remembered


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_public_name_resolves_to_its_own_object(library: str) -> None:
    package = importlib.import_module(library)
    assert sorted(package.__all__) == sorted(package._PUBLIC) and WANTED[library] <= set(
        package.__all__
    )
    for name, path in package._PUBLIC.items():
        module, attribute = path.split(":")
        assert module.split(".")[0] == library
        assert getattr(package, name) is getattr(importlib.import_module(module), attribute), name
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_public_name_is_that_of_a_submodule(library: str) -> None:
    """`from attention import masks` gives the module, whatever was imported before."""
    package = importlib.import_module(library)
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert len(submodules) > 5
    assert not submodules & set(package.__all__)


@pytest.mark.parametrize("library", LIBRARIES)
def test_type_checkers_see_the_same_names(library: str) -> None:
    """The imports under TYPE_CHECKING, read as source, are the table that runs."""
    tree = ast.parse((ROOT / library / "__init__.py").read_text())
    (guard,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(guard.test) == "TYPE_CHECKING"
    declared = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == dict(importlib.import_module(library)._PUBLIC)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_unknown_name_is_refused_by_package_and_name(library: str) -> None:
    package = importlib.import_module(library)
    with pytest.raises(AttributeError, match=f"module '{library}' has no attribute 'nothing'"):
        _ = package.nothing
