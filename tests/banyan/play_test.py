# SPDX-License-Identifier: Apache-2.0
"""The game: scripted to victory through a pipe and through a real terminal, and its misuse."""

import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from banyan import oracle, play, trees
from banyan.types import DROP, STAY, TOGGLE
from tests import ROOT

# The game in a terminal of its own, which turns ^C into an interrupt as the shell's does.
OWN_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("banyan.play", run_name="__main__", alter_sys=True)
"""
ARGS = ("--depth=3", "--seed=5", "--topology=balanced")


def setup(*argv: str) -> play.Setup:
    return play.parse([*ARGS, *argv])[0]


def winning_keys(number: int = 0) -> str:
    actions = oracle.plan(play.make_task(setup(), number), 0, 0)
    assert actions is not None
    return "".join(play.ACTION_KEYS[int(action)] for action in actions)


def run(
    keys: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(keys))
    assert play.main([*ARGS, *argv]) == 0
    return capsys.readouterr().out


def messages(out: str) -> list[str]:
    return [line[2:] for line in out.splitlines() if line.startswith("> ")]


def press(keys: Sequence[str], *argv: str) -> play.Game:
    here = setup(*argv)
    return play.play(here, iter(keys), lambda game: None, play._step)


def test_piped_to_victory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = winning_keys()
    out = run(keys + "\n", monkeypatch, capsys)
    assert out.startswith("compiling")
    last = messages(out)[-1]
    assert f"SUCCESS in {len(keys)} steps!" in last and "Reward +1." in last
    assert sum("SUCCESS" in line for line in messages(out)) == 1
    assert out.count("Banyan, depth 3") == len(keys) + 1
    assert "\x1b" not in out


def test_space_picks_up_and_drops() -> None:
    keys = winning_keys().translate({ord("p"): " ", ord("x"): " "})
    assert "SUCCESS" in press(keys).message


def test_second_task_differs_and_restart_does_not() -> None:
    first, second = press(""), press("n")
    assert second.number == 1 and not np.array_equal(first.state.grid, second.state.grid)
    assert "SUCCESS" in press("n" + winning_keys(1)).message
    again = press("dds.r")
    assert again.state.t == 0 and np.array_equal(again.state.grid, first.state.grid)
    assert "SUCCESS" in press(winning_keys() + "r" + winning_keys()).message


def test_oracle_plays_on() -> None:
    assert "SUCCESS" in press("O").message
    assert "SUCCESS" in press("o" * len(winning_keys())).message
    assert "SUCCESS" in press(winning_keys()[: len(winning_keys()) // 2] + "O").message
    after = press("OO")
    assert "over" in after.message and after.over and "over" in press("Ow").message


def test_dead_end_and_out_of_steps() -> None:
    tree = trees.unpack(play.make_task(setup(), 0).trees, 0)
    # Walk to any leaf and toggle it: the tree is balanced, so a toggle is never in it.
    actions = oracle.plan(play.make_task(setup(), 0), 0, 0)
    assert actions is not None and len(tree.children) == 2 and not (actions == TOGGLE).any()
    to_leaf = actions[: int(np.argmax(actions == DROP))]
    walk = [play.ACTION_KEYS[int(a)] for a in to_leaf if a <= STAY]
    pickup = len(to_leaf) - int(np.argmax(to_leaf[::-1] == 5)) - 1
    dead = press(["r", *walk[:pickup], "t"])
    assert "DEAD END" in dead.message and "Reward -1." in dead.message and dead.over
    late = press("...", "--max-steps=3")
    assert "OUT OF STEPS" in late.message and late.over


def test_tree_view_and_messages() -> None:
    game = press("v")
    text = play.screen(game, False)
    assert "the agent never sees it" in text and text.count("<- combine") == 3
    assert sum(line.strip().startswith("* ") for line in text.splitlines()) == 4
    assert "the agent" not in play.screen(press("v?"), False)
    assert "a wall" in press("w").message and "nothing" in press("t").message
    assert "no such key: 'z'" in press("z").message
    assert press("q").quit and press("qdd").state.t == 0


def test_arrows_are_keys() -> None:
    assert list(play.parse_keys("a\x1b[A\x1bOBq")) == ["a", "\x1b[A", "\x1bOB", "q"]
    keys = [play.KEYS[key] for key in ("\x1b[A", "\x1b[B", "\x1b[D", "\x1b[C")]
    assert keys == [play.KEYS[key] for key in "wsad"] == [play.KEYS[key] for key in "kjhl"]
    commands = set("vn?roOq ")
    assert not commands & set(play.KEYS) and len(set(play.ACTION_KEYS.values())) == 8


def read_until(descriptor: int, words: str, seconds: float = 120.0) -> str:
    seen, end = "", time.monotonic() + seconds
    while words not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no {words!r} in {seen[-2000:]}"
        seen += os.read(descriptor, 65536).decode()
    return seen


@pytest.mark.deep
@pytest.mark.parametrize("leave", ["q", "\x03"])
def test_real_terminal(leave: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    game = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *ARGS],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        read_until(ours, "q quit")
        assert not termios.tcgetattr(theirs)[3] & termios.ICANON
        os.write(ours, b"\x1b[B")
        read_until(ours, "step 1 of 160")
        assert comes_to_rest(game.pid)  # waiting costs nothing
        os.write(ours, b"r")
        read_until(ours, "Started again.")
        os.write(ours, winning_keys().encode())
        assert "\x1b[?1049h" not in read_until(ours, "SUCCESS")
        os.write(ours, leave.encode())
        read_until(ours, "\x1b[?1049l")
        assert game.wait(60) == (0 if leave == "q" else 130)
        assert termios.tcgetattr(theirs) == before
    finally:
        game.kill()
        game.wait()
        os.close(ours)
        os.close(theirs)


def comes_to_rest(pid: int, seconds: int = 30) -> bool:
    """Whether a process soon uses less than a tenth of a core; one that polls never does."""
    for _ in range(seconds):
        used = cpu_seconds(pid)
        time.sleep(1.0)
        if cpu_seconds(pid) - used < 0.1:
            return True
    return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--depth=0"], "'0'"),
        (["--depth=7"], "'7'"),
        (["--size=9x9"], "9x9"),
        (["--size=6"], "6x6"),
        (["--size=3x3", "--walls=9"], "num_walls=9"),
        (["--levels=absent.txt"], "absent.txt"),
        (["--topology=odd"], "odd"),
        (["--bogus"], "--bogus"),
    ],
)
def test_misuse(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        play.main(argv)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_tree_that_fits_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--depth=6", "--topology=balanced", "--size=4x4", "--walls=1"]
    assert play.main(argv) == 2
    assert "no winnable task" in capsys.readouterr().err


@pytest.mark.data
def test_plays_real_levels(data_root: Path) -> None:
    game = press("O", f"--levels={data_root / 'boxoban'}")
    assert "SUCCESS" in game.message
