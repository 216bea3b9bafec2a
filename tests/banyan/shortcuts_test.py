# SPDX-License-Identifier: Apache-2.0
"""One-operation shortcuts: the count against every single operation executed in the world."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from banyan import layouts, trees
from banyan.env import reset_to, step_env
from banyan.oracle_check import draw_tree, has_shortcut, main, single_params
from banyan.rules import make_rules, recipes
from banyan.trees import Node
from banyan.types import DROP, EMPTY, NUM_CELLS, NUM_ITEMS, TOGGLE, EnvParams, Rules, host_leaf

ALONE = NUM_CELLS - 1  # a far cell: nothing is beside it


def operations(node: Node) -> list[tuple[int, ...]]:
    """Every operation on the leaves except the tree's own last one."""
    below = trees.leaves(node)
    every = [(a,) for a in below] + list(itertools.combinations(below, 2))
    own = sorted(child.item for child in node.children)
    return [inputs for inputs in every if sorted(inputs) != own]


def shortcuts_by_trial(params: EnvParams, nodes: list[Node]) -> list[bool]:
    """Executes each operation alone on an empty board; per tree, True if one is a success."""
    tried = [(i, inputs) for i, node in enumerate(nodes) for inputs in operations(node)]
    tree = np.array([i for i, _ in tried], np.int32)
    grid = np.zeros((len(tried), NUM_CELLS), np.uint8)
    held = np.zeros(len(tried), np.uint8)
    pos = np.zeros(len(tried), np.int32)
    action = np.full(len(tried), TOGGLE, np.int32)
    for row, (_, inputs) in enumerate(tried):
        if len(inputs) == 1:
            grid[row, ALONE], pos[row] = inputs[0], ALONE
        else:  # stand on the first cell, drop one item, the other lies east of it
            grid[row, 1], held[row], action[row] = inputs[0], inputs[1], DROP

    @jax.jit
    @jax.vmap
    def succeeds(t: jax.Array, g: jax.Array, p: jax.Array, h: jax.Array, a: jax.Array) -> jax.Array:
        state = reset_to(t, jnp.int32(0), params)._replace(grid=g, pos=p, held=h)
        return step_env(jax.random.key(0), state, a, params)[-1].success

    won = np.asarray(succeeds(tree, grid, pos, held, action))
    return [bool(won[tree == i].any()) for i in range(len(nodes))]


@pytest.mark.parametrize("topology", ["random", "balanced"])
def test_agrees_with_every_operation_executed(topology: str) -> None:
    rng = np.random.Generator(np.random.Philox(key=[3, 0]))
    rules = make_rules(rng)
    nodes = [draw_tree(rng, 3, topology, recipes(rules)) for _ in range(60)]
    # Put the shortcut there in half of them: a leaf that turns into the goal.
    singles = np.asarray(rules.transform).copy()
    for node in nodes[::2]:
        leaf = trees.leaves(node)[0]
        if (leaf,) not in [inputs for inputs, _ in trees.edges(node)]:
            singles[leaf] = node.item
    rules = rules._replace(transform=host_leaf(singles))
    layout = layouts.sample_layout(rng, (8, 8), 0)
    params = single_params(rules, trees.pack(nodes, [3] * len(nodes)), layouts.pack([layout]))
    found = [has_shortcut(node, rules) for node in nodes]
    assert found == shortcuts_by_trial(params, nodes)
    assert 5 < sum(found) < 55


def tiny_rules(*reactions: tuple[int, ...]) -> Rules:
    combine = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.uint8)
    transform = np.zeros(NUM_ITEMS + 1, np.uint8)
    for *inputs, result in reactions:
        if len(inputs) == 1:
            transform[inputs[0]] = result
        else:
            combine[inputs[0], inputs[1]] = combine[inputs[1], inputs[0]] = result
    return Rules(host_leaf(combine.reshape(-1)), host_leaf(transform))


def test_what_counts() -> None:
    pair = Node(3, (Node(1), Node(2)))
    deep = Node(5, (pair, Node(4)))
    own = ((1, 2, 3), (3, 4, 5))
    assert not has_shortcut(Node(1), tiny_rules((2, 1)))
    assert not has_shortcut(pair, tiny_rules((1, 2, 3)))  # its own edge
    assert has_shortcut(pair, tiny_rules((1, 2, 3), (2, 3)))
    assert not has_shortcut(deep, tiny_rules(*own))
    assert has_shortcut(deep, tiny_rules(*own, (2, 4, 5)))
    assert not has_shortcut(deep, tiny_rules(*own, (3, 5)))  # 3 is not there at the start
    assert not has_shortcut(deep, tiny_rules(*own, (2, 4, 3)))  # two operations
    assert EMPTY == 0  # "no reaction" is never a goal


def test_command_prints_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shortcuts", "--trees=200", "--depths=5-6", "--topology=balanced"]
    assert main([*words, f"--json={tmp_path}/counts.json"]) == 0
    shares = [float(x) for x in re.findall(r"\(([\d.]+) %\)", capsys.readouterr().out)]
    # 16 leaves have 120 pairs: 1 - exp(-(120 * .9 + 16) / 80) = 79 %; 32 leaves: 99.7 %.
    assert len(shares) == 2 and 65 < shares[0] < 90 and shares[1] > 97
    written = json.loads((tmp_path / "counts.json").read_text())
    assert [100 * n / written["trees"] for n in written["shortcuts"].values()] == shares


def test_command_refuses_what_it_would_ignore(capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ("--rules=per_task", "--levels=some.txt"):
        with pytest.raises(SystemExit) as stop:
            main(["--shortcuts", extra])
        assert stop.value.code == 2
        assert "--shortcuts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--json=counts.json"])
    assert "--json goes with --shortcuts" in capsys.readouterr().err
