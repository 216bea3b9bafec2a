# SPDX-License-Identifier: Apache-2.0
"""--mode=recommend of every recommender: histories in, tables of ranked items out.

    --query="ITEM ITEM"     one history, oldest item first; several lines are several histories
    --query=@FILE.csv       a table of user, item and perhaps time: a history for each user
    --query=all             every user of the run's interactions, with all they have

Answers are tables of user (a line's number where no user is named), rank from 1, item, score and,
where items have texts, title. Items of the whole history are left out.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.runner.contract import State
from experiments.runner.errors import UserError
from experiments.runner.queries import Columns, Query, lookup
from experiments.systems.rec.recommenders.wiring import Answer, Loaded, shorten
from rec.data import columns, own
from rec.data import sequences as seq
from rec.data.sequences import Sequences

BATCH = 256  # histories answered by one call, all of one shape

Rank = Callable[[State, Sequences, int], Sequence[Answer]]
"""(state, whole histories, number of items wanted) -> an Answer for each, best first."""


class Histories(NamedTuple):
    """Whom to recommend to."""

    users: Sequence[str]
    sequences: Sequences


def make_recommend(
    artifacts: Mapping[str, Any],
    loaded: Callable[[], Loaded],
    named: str,
    top: int,
    rank: Rank,
    most: int = sys.maxsize,
    max_items: int = sys.maxsize,
) -> Callable[[State, Query], Iterator[Columns]]:
    """Makes the action.

    Args:
        named: config.data.columns, for files of histories.
        top: items of a list where the query does not say.
        rank: of the system.
        most: items a list can have.
        max_items: newest items of a history that the model reads.
    """

    def recommend(state: State, query: Query) -> Iterator[Columns]:
        wanted = query.top or top
        if wanted > most:
            raise UserError(f"--top={wanted}: this run's lists have at most {most} items")
        asked = read_histories(query, artifacts["items"], loaded, named)
        longest = int(asked.sequences.lengths.max(initial=0))
        if longest > max_items:
            print(f"of longer histories the newest {max_items} items are read", file=sys.stderr)
        return tables(artifacts, state, asked, wanted, rank)

    return recommend


def tables(
    artifacts: Mapping[str, Any], state: State, asked: Histories, wanted: int, rank: Rank
) -> Iterator[Columns]:
    """Yields what is recommended, a table for every batch of histories."""
    count = len(asked.users)
    size = min(BATCH, count)
    for start in range(0, count, size):
        # The last batch is filled up with its last row: one shape is one compiled program.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        answers = rank(state, seq.select(asked.sequences, rows), wanted)
        users = asked.users[start : start + size]
        yield one_table(artifacts, users, answers[: len(users)], wanted)


def one_table(
    artifacts: Mapping[str, Any], users: Sequence[str], answers: Sequence[Answer], wanted: int
) -> Columns:
    """Lists the best items of each user."""
    items = artifacts["items"]
    texts = artifacts["texts"]
    listed = [(answer, np.flatnonzero(answer.items >= 0)[:wanted]) for answer in answers]
    cut = [Answer(answer.items[places], answer.scores[places]) for answer, places in listed]
    lengths = [len(answer.items) for answer in cut]
    numbers = [int(i) for answer in cut for i in answer.items]
    table: dict[str, Any] = {
        "user": [user for user, n in zip(users, lengths, strict=True) for _ in range(n)],
        "rank": np.concatenate([np.arange(1, n + 1) for n in lengths]),
        "item": [items[i] for i in numbers],
        "score": np.concatenate([answer.scores for answer in cut]).astype(np.float32),
    }
    return table | ({"title": [shorten(texts[i]) for i in numbers]} if any(texts) else {})


def read_histories(
    query: Query, items: Sequence[str], loaded: Callable[[], Loaded], named: str
) -> Histories:
    """Reads the histories a query asks about.

    Raises:
        UserError: no history, an unknown item, or a file that cannot be read.
    """
    if query.is_all:
        corpus = loaded().corpus
        return Histories(corpus.users, corpus.sequences)
    number = {name: i for i, name in enumerate(items)}
    if query.path is not None:
        try:
            users, lines = own.read_histories(query.path, columns.parse(named))
        except ValueError as error:
            raise UserError(f"--query: {error}") from error
    else:
        lines = [line.split() for line in query.text.splitlines() if line.strip()]
        users = [str(place) for place in range(1, len(lines) + 1)]
    if not lines:
        raise UserError('--query="": give items of a history, oldest first, @FILE.csv, or all')
    rows = [[lookup(name, number, "item") for name in line] for line in lines]
    return Histories(users, seq.pack(rows, len(items)))


def rank_scores(scores: np.ndarray, histories: Sequences, wanted: int) -> list[Answer]:
    """Ranks a whole catalogue by scores [Q, N], best first, items of each history left out; of
    equal scores the smaller number comes first."""
    answers = []
    for row, line in enumerate(scores):
        left = np.where(np.isin(np.arange(len(line)), histories.of(row)), -np.inf, line)
        order = np.argsort(-left, kind="stable")[:wanted].astype(np.int32)
        order = order[np.isfinite(left[order])]
        answers.append(Answer(order, line[order]))
    return answers
