# SPDX-License-Identifier: Apache-2.0
"""The planner wins every task that can be won, says so when none can, and its command line."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from banyan import layouts, oracle, oracle_check, reference, trees
from banyan.rules import make_rules, recipes
from banyan.trees import Node
from banyan.types import (
    DROP,
    NUM_CELLS,
    PICKUP,
    SIDE,
    SLOT_LEAF,
    SLOT_WALL,
    EnvParams,
    Rules,
    host_leaf,
)
from tests import ROOT
from tests.banyan import worlds

A, B, C, D, P, Q, G, X = 1, 2, 3, 4, 10, 11, 12, 20
NAMES = {"a": A, "b": B, "c": C, "d": D, "x": X, "g": G}


def table(*reactions: tuple[int, ...]) -> Rules:
    """(a, b, product) combines, (a, product) transforms."""
    combine, transform = np.zeros((81, 81), np.uint8), np.zeros(81, np.uint8)
    for *inputs, product in reactions:
        if len(inputs) == 2:
            combine[inputs[0], inputs[1]] = combine[inputs[1], inputs[0]] = product
        else:
            transform[inputs[0]] = product
    return Rules(host_leaf(combine.reshape(-1)), host_leaf(transform))


def world(rows: Sequence[str], tree: Node, rules: Rules, per_task: bool = False) -> EnvParams:
    """One task from a picture: `#` wall, `.` floor, `@` start, letters the leaves."""
    slot = np.full(NUM_CELLS, SLOT_WALL, np.uint8)
    start, order = 0, trees.leaves(tree)
    for r, row in enumerate(rows):
        for c, char in enumerate(row):
            cell = r * SIDE + c
            start = cell if char == "@" else start
            slot[cell] = SLOT_WALL if char == "#" else 0
            if char in NAMES:
                slot[cell] = SLOT_LEAF + order.index(NAMES[char])
    layout = layouts.Layout(slot, start, (len(rows), len(rows[0])))
    packed = trees.pack([tree], [trees.levels(tree)])
    return oracle_check.single_params(rules, packed, layouts.pack([layout]), per_task=per_task)


def execute(params: EnvParams, actions: np.ndarray) -> oracle_check.Executed:
    zero = np.zeros(1, np.int32)
    return oracle_check.execute(params, zero, zero, [actions])


def plan_and_win(params: EnvParams) -> np.ndarray:
    actions = oracle.plan(params, 0, 0)
    assert actions is not None and actions.dtype == np.int8
    done = execute(params, actions)
    assert done.reward[0] == 1.0 and done.terminated[0] and done.length[0] == len(actions)
    return actions


def run_cli(*argv: str) -> list[str]:
    """The tool as users start it, without the type checks that slow the planner down in tests."""
    command = [sys.executable, "-m", "banyan.oracle_check", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.deep
def test_every_generated_task_is_won() -> None:
    lines = run_cli("--trees=1000", "--depths=1-6", "--seed=11")
    for depth, line in enumerate(lines[1:7], start=1):
        assert line.startswith(f"depth {depth}: won 1000 of 1000, plan length mean ")
    assert lines[-1] == "won 6000 of 6000 (skipped 0: no task excluded)"


@pytest.mark.deep
@pytest.mark.data
def test_every_boxoban_level_is_won(data_root: Path) -> None:
    files = data_root / "boxoban"
    num_levels = len(layouts.read_levels(files))
    assert num_levels >= 1000
    num = -(-num_levels // 6)
    lines = run_cli(f"--levels={files}", f"--trees={num}", "--seed=12")
    assert f"{num_levels} of {num_levels} levels" in lines[0]
    assert lines[-1].startswith(f"won {6 * num} of {6 * num} (skipped 0")


@pytest.mark.deep
def test_balanced_tasks_are_won() -> None:
    rng = worlds.generator(11)
    rules = make_rules(rng)
    drawn = oracle_check.draw(rng, range(1, 7), 10, "balanced", recipes(rules))
    assert not drawn.skipped and Counter(drawn.depths) == dict.fromkeys(range(1, 7), 10)
    packed = trees.pack(drawn.nodes, drawn.depths), layouts.pack(drawn.layouts)
    report = oracle_check.check(oracle_check.single_params(rules, *packed))
    assert report.won.all(), np.flatnonzero(~report.won)
    assert report.length[report.depth == 6].mean() < 270


def test_per_task_rules() -> None:
    rng = worlds.generator(13)
    drawn = oracle_check.draw(rng, range(2, 7), 10, "random", None)
    packed = trees.pack(drawn.nodes, drawn.depths), layouts.pack(drawn.layouts)
    params = oracle_check.single_params(table(), *packed, per_task=True)
    assert oracle_check.check(params).won.all()


CHAIN = Node(G, (Node(Q, (Node(P, (Node(A), Node(D))), Node(B))), Node(C)))


def test_corridor_needs_relocation() -> None:
    rules = table((A, D, P), (P, B, Q), (Q, C, G))
    params = world(["@cabd"], CHAIN, rules)
    actions = plan_and_win(params)
    merges = 3
    assert (actions == PICKUP).sum() > merges
    # Without an idle act there is no first merge at all.
    task = oracle.read_task(params, 0, 0)
    grid = bytearray(task.grid)
    where = oracle._where(grid)
    pairs = list(oracle._pairs(task, where))
    assert pairs and all(not oracle._merge_cells(task, grid, where, a, b) for a, b in pairs)
    assert oracle._dive(task, 0.0) is not None  # greedy relocation, not the search behind it


def test_wrong_first_neighbor_is_avoided() -> None:
    tree = Node(G, (Node(P, (Node(A), Node(B))), Node(X)))
    params = world(["@x.", "..b", "a.."], tree, table((A, B, P), (P, X, G), (A, X, 33)))
    plan_and_win(params)
    # The nearest cell next to b is a trap: x lies to its north.
    down, right = 1, 3
    trap = np.array([down, down, PICKUP, right, 0, DROP], np.int8)
    done = execute(params, trap)
    assert done.reward[0] == -1.0 and done.length[0] == len(trap)


def test_fetch_and_missing_leaf() -> None:
    assert plan_and_win(world(["@.g"], Node(G), table())).tolist() == [3, 3, PICKUP]
    assert oracle.plan(world(["@#g"], Node(G), table()), 0, 0) is None
    assert oracle.plan(world(["@a."], CHAIN, table()), 0, 0) is None


def test_impossible_is_proved() -> None:
    pair = Node(G, (Node(A), Node(B)))
    for rows, rules in ((["@a#b"], table((A, B, G))), (["@a", "b."], table())):
        params = world(rows, pair, rules)
        outcome = oracle.solve(oracle.read_task(params, 0, 0))
        assert outcome == oracle.Outcome(None, True)
        assert oracle.plan(params, 0, 0) is None
    plan_and_win(world(["@a", "b."], pair, table(), per_task=True))


def test_state_budget_is_no_proof() -> None:
    params = world(["@a......", ".b......"], Node(G, (Node(A), Node(B))), table())
    assert oracle.search(oracle.read_task(params, 0, 0), 20) == oracle.Outcome(None, False)
    # a and b on 15 cells with the reach of everything: 16 * 15 ordered placements
    assert oracle.search(oracle.read_task(params, 0, 0), 240) == oracle.Outcome(None, True)


def reachable(params: EnvParams) -> bool:
    """Brute force over primitive actions in the reference world: can the task be won at all?"""
    game = reference.World(params._replace(max_steps=host_leaf(np.array(10**6, np.int32))))
    game.reset_to(0, 0)
    key = lambda: (game.position, game.held, frozenset(game.items.items()))
    seen, stack = {key()}, [(game.position, game.held, dict(game.items))]
    while stack:
        position, held, items = stack.pop()
        for action in range(8):
            game.position, game.held, game.items = position, held, dict(items)
            game.done = False
            reward, terminated, _ = game.step(action)
            if reward == 1.0:
                return True
            if not terminated and key() not in seen:
                seen.add(key())
                stack.append((game.position, game.held, dict(game.items)))
    return False


def tiny_tasks(num: int, seed: int) -> list[EnvParams]:
    """Crowded boards of 3 to 6 cells, random reactions among few items: many are impossible."""
    rng = worlds.generator(seed)
    boards = [["@..."], ["@...", "##.#"], [".@..."], ["@.", ".."], ["@.#", "..."], ["@...."]]
    shapes = [
        Node(G, (Node(P, (Node(A), Node(B))), Node(C))),
        Node(G, (Node(Q, (Node(P, (Node(A),)), Node(B))), Node(C))),
        Node(G, (Node(Q, (Node(P, (Node(A), Node(B))), Node(C))), Node(D))),
    ]
    drawn = []
    while len(drawn) < num:
        rows = list(boards[rng.integers(len(boards))])
        tree = shapes[rng.integers(len(shapes))]
        cells = [(r, c) for r, row in enumerate(rows) for c in range(len(row)) if row[c] == "."]
        leaves = [next(k for k, v in NAMES.items() if v == x) for x in trees.leaves(tree)]
        if len(leaves) > len(cells):
            continue
        for letter, i in zip(leaves, rng.permutation(len(cells)), strict=False):
            r, c = cells[i]
            rows[r] = rows[r][:c] + letter + rows[r][c + 1 :]
        edges = {tuple(sorted(inputs)): made for inputs, made in trees.edges(tree)}
        wrong = {
            pair: G if rng.random() < 0.06 else X  # sometimes a short cut off the tree
            for pair in itertools.combinations(sorted(trees.items_of(tree)), 2)
            if rng.random() < 0.95
        }
        if rng.random() < 0.3:  # a world without one of the tree's own rules
            edges.pop(sorted(edges)[rng.integers(len(edges))])
        rules = table(*((*inputs, made) for inputs, made in (wrong | edges).items()))
        drawn.append(world(rows, tree, rules))
    return drawn


def test_agrees_with_brute_force() -> None:
    wins, num = 0, 120
    for params in tiny_tasks(num, 5):
        possible = reachable(params)
        task = oracle.read_task(params, 0, 0)
        outcome = oracle.solve(task)
        assert (outcome.acts is not None) == possible == (oracle.search(task).acts is not None)
        assert outcome.proved == (not possible)
        if possible:
            plan_and_win(params)
        wins += possible
    assert 10 <= wins <= num - 10, wins  # both answers occur


def test_search_alone_wins() -> None:
    rng = worlds.generator(14)
    rules = make_rules(rng)
    drawn = oracle_check.draw(rng, range(2, 7), 8, "random", recipes(rules))
    packed = trees.pack(drawn.nodes, drawn.depths), layouts.pack(drawn.layouts)
    params = oracle_check.single_params(rules, *packed)
    plans = []
    for i in range(len(drawn.nodes)):
        task = oracle.read_task(params, i, i)
        acts = oracle.search(task).acts
        assert acts is not None
        plans.append(oracle.primitive(task, acts))
    ids = np.arange(len(plans))
    done = oracle_check.execute(params, ids, ids, plans)
    assert (done.reward == 1.0).all() and (done.length == [len(p) for p in plans]).all()


def test_plans_from_the_middle_of_episodes() -> None:
    rng = worlds.generator(15)
    rules = make_rules(rng)
    drawn = oracle_check.draw(rng, (3, 5), 8, "random", recipes(rules))
    packed = trees.pack(drawn.nodes, drawn.depths), layouts.pack(drawn.layouts)
    params = oracle_check.single_params(rules, *packed)
    ids = np.arange(len(drawn.nodes))
    actions = rng.integers(0, 4, size=(64, len(ids)))  # aimless moves after part of a plan
    for i in map(int, ids):
        begun = oracle.plan(params, i, i)
        assert begun is not None
        keep = rng.integers(len(begun))
        actions[:keep, i] = begun[:keep]
    episodes = worlds.play(params, ids, ids, actions)
    carrying, whole = 0, []
    for i in ids:
        t = int(np.asarray(episodes.states.t)[:, i].max())
        state = type(episodes.states)(*(leaf[t, i] for leaf in episodes.states))
        rest = oracle.plan_state(params, state)
        assert rest is not None
        carrying += int(state.held) != 0
        whole.append(np.concatenate([actions[:t, i], rest]))
    done = oracle_check.execute(params, ids, ids, whole)
    assert (done.reward == 1.0).all() and (done.length == [len(w) for w in whole]).all()
    assert carrying >= 3
    over = type(episodes.states)(*(leaf[-1, 0] for leaf in episodes.states))._replace(done=True)
    assert oracle.plan_state(params, over) is None


def test_plan_takes_jax_arrays() -> None:
    import jax

    params = world(["@ab"], Node(G, (Node(A), Node(B))), table((A, B, G)))
    on_device = jax.tree.map(jax.numpy.asarray, params)
    first, second = oracle.plan(params, 0, 0), oracle.plan(on_device, 0, 0)
    assert first is not None and second is not None and first.tolist() == second.tolist()
    with pytest.raises(IndexError):
        oracle.plan(params, 1, 0)


def test_distances_and_walks() -> None:
    free = worlds.generator(16).random((SIDE, SIDE)) < 0.7
    distance = oracle._distances(free)
    neighbors = oracle._neighbors(free)
    for source in np.flatnonzero(free.reshape(-1)):
        expected, ring = {int(source): 0}, [int(source)]
        while ring:
            ring = [n for cell in ring for n in neighbors[cell] if n not in expected]
            expected |= {n: max(expected.values()) + 1 for n in ring}
        for cell in range(NUM_CELLS):
            assert distance[source, cell] == expected.get(cell, oracle.FAR)


def cli(*argv: str) -> int:
    return oracle_check.main(argv)


def test_cli_reports_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--trees=5", "--depths=2-3", "--seed=4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("depth 2: won 5 of 5, plan length mean ")
    assert lines[-1] == "won 10 of 10 (skipped 0: no task excluded)"


LEVEL = ["#" * 10, "#@  #    #", *["#" * 10] * 8]


def level_text(rows: Sequence[str]) -> str:
    return "; 0\n" + "\n".join(rows) + "\n"


def test_cli_skips_only_by_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn, small = tmp_path / "torn.txt", tmp_path / "small.txt"
    torn.write_text(level_text(LEVEL))
    small.write_text(level_text([LEVEL[0], "#@  ######", *LEVEL[2:]]))
    args = ("--trees=6", "--depths=3", "--topology=balanced", "--seed=1")
    assert cli(f"--levels={torn}", f"--levels={small}", *args) == 1
    out = capsys.readouterr().out
    assert "(skipped 6: " in out.splitlines()[-1]
    assert oracle_check.DISCONNECTED in out and oracle_check.CROWDED in out


def test_cli_counts_a_lost_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oracle, "solve", lambda task: oracle.Outcome(None, False))
    assert cli("--trees=3", "--depths=2") == 1
    out = capsys.readouterr().out
    assert "won 0 of 3" in out and "3 given up" in out and "reject 3 of 3" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--levels=absent.txt"], "absent.txt"),
        (["--depths=0-9"], "0-9"),
        (["--depths=6-1"], "6-1"),
        (["--depths=x"], "'x'"),
        (["--trees=0"], "'0'"),
        (["--trees=many"], "'many'"),
        (["--seed=-1"], "'-1'"),
        (["--tree=5"], "--tree=5"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_cli_misuse(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(*argv)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_cli_names_the_bad_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text(level_text(LEVEL) + "\n" + level_text(["#" * 10, "#" * 9, *LEVEL[2:]]))
    with pytest.raises(SystemExit) as stopped:
        cli(f"--levels={bad}")
    assert stopped.value.code == 2
    assert "bad.txt:14" in capsys.readouterr().err
