# SPDX-License-Identifier: Apache-2.0
"""Play the world in a terminal.

    python -m banyan.play --depth=3 --seed=0

Keys go straight to the game in a terminal; from a pipe they are read as text, so a game can be
scripted: `printf 'dd s t q' | python -m banyan.play` (blanks are the pickup/drop key).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from banyan import layouts, oracle, trees
from banyan.env import reset_to, step_env
from banyan.oracle_check import (
    LARGE,
    MAX_STEPS,
    NUM_WALLS,
    SMALL,
    SMALL_DEPTH,
    TOPOLOGIES,
    draw_tree,
    single_params,
    whole_number,
)
from banyan.render import item_letters, item_name, items_present, made, paint_text, render_text
from banyan.rules import make_rules, recipes
from banyan.types import (
    ACTIONS,
    DOWN,
    DROP,
    EMPTY,
    LEFT,
    MAX_DEPTH,
    PICKUP,
    RIGHT,
    SIDE,
    STAY,
    TOGGLE,
    UP,
    EnvParams,
    State,
)

KEYS = {
    **dict.fromkeys(("w", "k", "\x1b[A", "\x1bOA"), UP),
    **dict.fromkeys(("s", "j", "\x1b[B", "\x1bOB"), DOWN),
    **dict.fromkeys(("a", "h", "\x1b[D", "\x1bOD"), LEFT),
    **dict.fromkeys(("d", "l", "\x1b[C", "\x1bOC"), RIGHT),
    ".": STAY,
    "p": PICKUP,
    "x": DROP,
    "t": TOGGLE,
}
ACTION_KEYS = {UP: "w", DOWN: "s", LEFT: "a", RIGHT: "d"} | {
    STAY: ".",
    PICKUP: "p",
    DROP: "x",
    TOGGLE: "t",
}
HELP = (
    "move arrows wasd hjkl | space pick up / drop (p, x) | t toggle | . stay\n"
    "v or ? tree | o oracle's next step | O oracle to the end | r restart | n new task | q quit"
)
ORACLE = "oracle: "
PAUSE = 0.12  # seconds between steps of the oracle on a terminal
MAX_DRAWS = 100  # layouts tried for a tree before its leaves are called too many for the board


class Setup(NamedTuple):
    """What the command line asked for."""

    depth: int
    seed: int
    size: tuple[int, int]
    walls: int
    topology: str
    per_task: bool
    max_steps: int
    levels: tuple[layouts.RawLevel, ...]


class Game(NamedTuple):
    """Everything on the screen; keys map one game to the next."""

    params: EnvParams
    state: State
    number: int  # of the task within this seed
    message: str = ""
    show_tree: bool = False
    over: bool = False
    quit: bool = False


Step = Callable[[State, jax.Array, EnvParams], tuple]


@jax.jit
def _step(state: State, action: jax.Array, params: EnvParams) -> tuple:
    return step_env(jax.random.key(0), state, action, params)


def make_task(setup: Setup, number: int) -> EnvParams:
    """The `number`-th task of a seed: one tree on one layout, under the rules of the seed.

    Raises:
        ValueError: the tree has more leaves than any board of this kind has room for.
    """
    rules = make_rules(np.random.Generator(np.random.Philox(key=[setup.seed, 0])))
    table = None if setup.per_task else recipes(rules)
    for draw in range(MAX_DRAWS):
        stream = np.random.Philox(key=[setup.seed, 1 + number * MAX_DRAWS + draw])
        rng = np.random.Generator(stream)
        node = draw_tree(rng, setup.depth, setup.topology, table)
        if setup.levels:
            level = setup.levels[int(rng.integers(len(setup.levels)))]
            layout = layouts.from_level(rng, level)
        else:
            layout = layouts.sample_layout(rng, setup.size, setup.walls)
        if len(trees.leaves(node)) > layouts.capacity(layout):
            continue
        params = single_params(
            rules,
            trees.pack([node], [setup.depth]),
            layouts.pack([layout]),
            setup.max_steps,
            setup.per_task,
        )
        if oracle.plan(params, 0, 0) is not None:
            return params
    raise ValueError(
        f"no winnable task in {MAX_DRAWS} draws: take a larger --size, fewer --walls, "
        "roomier --levels or a smaller --depth"
    )


def start(setup: Setup, number: int, message: str = "", show_tree: bool = False) -> Game:
    """A game at the first state of a task."""
    params = make_task(setup, number)
    return Game(params, reset_state(params), number, message, show_tree)


def reset_state(params: EnvParams) -> State:
    """First state of the only task in `params`."""
    zero = jnp.int32(0)
    return jax.tree.map(np.asarray, reset_to(zero, zero, params))


def act(game: Game, action: int, step: Step) -> Game:
    """One step of the environment and a word on what it did."""
    if game.over:
        return game._replace(message="The episode is over: r restarts, n draws a new task.")
    before = game.state
    _, state, reward, terminated, truncated, info = step(before, jnp.int32(action), game.params)
    state, info = jax.tree.map(np.asarray, (state, info))
    parts = []
    if info.created:
        verb = "merged into" if action == DROP else "became"
        source = int(before.held if action == DROP else before.grid[int(before.pos)])
        parts.append(f"{item_name(source)} {verb} {item_name(int(info.created))}.")
    elif action in (PICKUP, DROP) and int(state.held) != int(before.held):
        item = int(state.held) or int(before.held)
        parts.append(f"{'picked up' if state.held else 'dropped'} {item_name(item)}.")
    elif action in (PICKUP, DROP, TOGGLE):
        parts.append(f"{ACTIONS[action]}: nothing happens.")
    elif action != STAY and int(state.pos) == int(before.pos):
        parts.append("a wall.")
    if info.success:
        parts.append(f"SUCCESS in {int(state.t)} steps!")
    elif info.dead_end:
        parts.append("DEAD END: that was not in the tree.")
    elif truncated:
        parts.append("OUT OF STEPS.")
    if reward:
        parts.append(f"Reward {float(reward):+g}.")
    over = bool(terminated) or bool(truncated)
    return game._replace(state=state, message=" ".join(parts), over=over)


def _ask_oracle(game: Game, step: Step, to_end: bool) -> Iterator[Game]:
    if game.over:
        yield act(game, STAY, step)
        return
    actions = oracle.plan_state(game.params, game.state)
    if actions is None:
        yield game._replace(message="The oracle knows no way from here.")
        return
    for i, action in enumerate(actions[: None if to_end else 1]):
        game = act(game, int(action), step)
        left = len(actions) - 1 - i
        note = f"{ORACLE}{ACTIONS[int(action)]}, {left} to go. "
        game = game._replace(message=note + game.message)
        yield game
        if game.over:
            return


def press(game: Game, key: str, setup: Setup, step: Step) -> Iterator[Game]:
    """The games that a key leads through; several only when the oracle plays on."""
    if key in KEYS:
        yield act(game, KEYS[key], step)
    elif key == " ":
        yield act(game, DROP if int(game.state.held) else PICKUP, step)
    elif key in ("o", "O"):
        yield from _ask_oracle(game, step, key == "O")
    elif key in ("v", "?"):
        yield game._replace(show_tree=not game.show_tree, message="")
    elif key == "r":
        yield game._replace(state=reset_state(game.params), over=False, message="Started again.")
    elif key == "n":
        yield start(setup, game.number + 1, "A new task.", game.show_tree)
    elif key in ("q", "\x03", "\x04"):
        yield game._replace(quit=True, message="Bye.")
    elif not key.isspace():
        yield game._replace(message=f"no such key: {key!r}")


def tree_lines(game: Game, color: bool) -> list[str]:
    """The tree, one node a line: `*` on the board or in the hand, `+` used up, `-` to come."""
    tree = int(game.state.tree)
    present = items_present(game.state)
    past = made(game.params, tree, present)

    def lines(node: trees.Node, indent: str) -> Iterator[str]:
        mark = "*" if node.item in present else "+" if node.item in past else "-"
        how = {0: "", 1: "  <- toggle", 2: "  <- combine"}[len(node.children)]
        letters = paint_text(item_letters(node.item), node.item, color)
        yield f"{indent}{mark} {letters} {item_name(node.item)}{how}"
        for child in node.children:
            yield from lines(child, indent + "  ")

    return list(lines(trees.unpack(game.params.trees, tree), ""))


def screen(game: Game, color: bool) -> str:
    """The whole picture as text."""
    state = game.state
    params = game.params
    left = int(params.max_steps) - int(state.t)
    under = int(state.grid[int(state.pos)])
    lines = [
        f"Banyan, depth {int(params.trees.depth[0])}, task {game.number}",
        "",
        render_text(state, params, color),
        f"{left} steps left | here: {item_name(under) if under != EMPTY else 'bare floor'}",
        "",
        *(["the tree (the agent never sees it):", *tree_lines(game, color), ""] * game.show_tree),
        HELP,
        "",
        f"> {game.message}",
    ]
    return "\n".join(lines)


def parse_keys(text: str) -> Iterator[str]:
    """Single keys of a text; an arrow's escape sequence is one key."""
    at = 0
    while at < len(text):
        size = 3 if text[at : at + 2] in ("\x1b[", "\x1bO") else 1
        yield text[at : at + size]
        at += size


def piped_keys(lines: Iterable[str]) -> Iterator[str]:
    """Keys of a text stream, line by line; line ends are no keys."""
    for line in lines:
        yield from parse_keys(line.rstrip("\r\n"))


def terminal_keys(descriptor: int) -> Iterator[str]:
    """Keys as they are typed; blocks without using the processor."""
    rest = b""
    while data := os.read(descriptor, 1024):
        rest += data
        text = rest.decode("utf-8", errors="ignore")
        if text in ("\x1b[", "\x1bO"):
            continue  # an arrow's sequence came in two pieces
        rest = b""
        for key in parse_keys(text):
            if key == "\x03":
                raise KeyboardInterrupt
            yield key


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Key by key input without echo on an alternate screen; all restored however it ends."""
    import termios
    import tty

    saved = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        # Ctrl-C as a key: a signal in the middle of a JAX call can get lost in its callbacks.
        attributes = termios.tcgetattr(descriptor)
        attributes[6][termios.VINTR] = bytes([os.fpathconf(descriptor, "PC_VDISABLE")])
        termios.tcsetattr(descriptor, termios.TCSADRAIN, attributes)
        print("\x1b[?1049h\x1b[?25l", end="", flush=True)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
        print("\x1b[?25h\x1b[?1049l", end="", flush=True)


def play(setup: Setup, keys: Iterator[str], show: Callable[[Game], None], step: Step) -> Game:
    """Plays until q or the end of the keys; returns the last game."""
    game = start(setup, 0)
    show(game)
    for key in keys:
        for then in press(game, key, setup, step):
            show(then)
            game = then
        if game.quit:
            break
    return game


def _size(text: str) -> tuple[int, int]:
    rows, _, cols = text.partition("x")
    if not (rows.isdecimal() and cols.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 6x6")
    if not all(1 <= int(side) <= SIDE for side in (rows, cols)):
        raise argparse.ArgumentTypeError(f"{text!r}: rows and columns must lie in 1..{SIDE}")
    return int(rows), int(cols)


def parse(argv: Sequence[str] | None) -> tuple[Setup, bool]:
    """Command line to (setup, color or not); exits with a message if it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m banyan.play",
        description="Play the world in a terminal, or pipe keys into it.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--depth", type=whole_number(1, MAX_DEPTH), default=3, help="levels of the tree")
    add("--seed", type=whole_number(0, 2**63 - 1), default=0)
    add("--size", type=_size, help="rows x columns; default 6x6, above depth 4 8x8")
    add("--walls", type=whole_number(0, SIDE * SIDE), default=NUM_WALLS)
    add("--topology", choices=TOPOLOGIES, default="random")
    add("--rules", choices=("global", "per_task"), default="global")
    add("--max-steps", type=whole_number(1, 2**31 - 2), default=MAX_STEPS)
    add("--levels", action="append", default=[], help="play on Boxoban levels instead; repeatable")
    add("--no-color", action="store_true")
    args = parser.parse_args(argv)
    size = args.size or (SMALL if args.depth <= SMALL_DEPTH else LARGE)
    try:
        levels = layouts.read_levels(args.levels) if args.levels else []
        levels = [level for level in levels if not layouts.usable(level)]
        if args.levels and not levels:
            raise ValueError(f"levels={args.levels}: none has connected free cells")
        if not levels:
            layouts.check_shape(size, args.walls)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    setup = Setup(
        args.depth,
        args.seed,
        size,
        args.walls,
        args.topology,
        args.rules == "per_task",
        args.max_steps,
        tuple(levels),
    )
    return setup, not args.no_color


def _compile(setup: Setup) -> Step:
    print("compiling the environment ...", flush=True)
    params = make_task(setup, 0)
    jax.block_until_ready(_step(reset_state(params), jnp.int32(STAY), params))
    return _step


def _play_terminal(setup: Setup, descriptor: int, color: bool, step: Step) -> Game:
    """Plays on the terminal behind `descriptor`; the oracle's steps follow at a watchable pace."""
    clear = "\x1b[H\x1b[2J"

    def show(game: Game) -> None:
        if game.message.startswith(ORACLE):
            time.sleep(PAUSE)
        print(clear + screen(game, color), flush=True)

    with raw_terminal(descriptor):
        return play(setup, terminal_keys(descriptor), show, step)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 after a quit or the end of the input, 2 for bad arguments."""
    setup, color = parse(argv)
    color = color and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        step = _compile(setup)
        if sys.stdin.isatty():
            last = _play_terminal(setup, sys.stdin.fileno(), color, step)
            print(render_text(last.state, last.params, color), flush=True)
        else:
            show = lambda game: print(screen(game, color), end="\n\n", flush=True)
            play(setup, piped_keys(sys.stdin), show, step)
    except ValueError as error:
        print(f"banyan.play: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
