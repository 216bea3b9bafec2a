# SPDX-License-Identifier: Apache-2.0
"""What recommenders that write semantic IDs share: the SID table as artifact, training pairs drawn
on the device, decoding to lists of items, and the metrics of those lists.

`make_generator` gives three pure functions of a model; `Decoder` runs them over queries in batches
of one compiled size, and `Evaluation` turns what they answer into metrics, whatever the model. All
of it reads the catalogue through `Catalogue`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.configs.rec.tiger import BeamEval
from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.rec import sid
from experiments.systems.rec.recommenders import figures, recommend, wiring
from experiments.systems.rec.recommenders.streams import Batches
from experiments.systems.rec.recommenders.wiring import Answer, Loaded, Ranking
from rec import augment, genpas, metrics
from rec.baselines import likelihood
from rec.data import sequences as seq
from rec.data.sequences import Queries, Sequences
from rec.decode import beam, exact
from rec.decode import items as policies
from rec.decode.beam import Beams
from rec.models import digits
from rec.models.generators import Model
from rec.sid import table
from rec.sid import trie as tries
from rec.sid.trie import Trie, TrieShape
from rec.training import Step


class Catalogue(NamedTuple):
    """Holds the semantic IDs of all items and their trie."""

    sids: np.ndarray
    """int32 [N, L]."""
    sizes: tuple[int, ...]
    """Codes of every level, [L]."""
    sha256: str
    """Of sids and sizes, hex; parameters trained with other SIDs mean nothing here."""
    trie: Trie
    shape: TrieShape

    @property
    def hash_words(self) -> np.ndarray:
        """The hash as a leaf of a state, uint32 [8]."""
        return np.frombuffer(bytes.fromhex(self.sha256), np.uint32)


class Histories(NamedTuple):
    """Holds a padded batch of histories as a generator reads them."""

    sids: Any
    """int32 [B, T, L], oldest first."""
    mask: Any
    """bool [B, T], which items there are."""
    users: Any
    """int32 [B]."""


class Generator(NamedTuple):
    """Holds what decoding asks of a model: pure functions, compiled once for a size of batch."""

    max_items: int
    """Newest items of a history that are read."""
    search: Callable[[Any, Histories, Trie], Beams]
    """(params, histories, trie) -> the likeliest SIDs."""
    nats: Callable[[Any, Histories, jax.Array], jax.Array]
    """(params, histories, SIDs of the targets int32 [B, L]) -> their negative log-probabilities,
    teacher forced, float32 [B]."""
    score_catalogue: Callable[[Any, Histories, jax.Array, Trie], jax.Array]
    """(params, histories, SIDs int32 [N, L], trie) -> scores of all items, float32 [B, N]."""


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes items, the rows without training, the SID table with its tokenizer, exponents of
    pairs."""
    loaded = wiring.load(config)
    vectors = wiring.load_features(config, loaded)
    artifacts = wiring.prepare(loaded, vectors)
    artifacts["sid"] = sid.make_artifact(config, loaded, vectors)
    if config.eval.policy == "relevance":
        artifacts["features"] = vectors
    return artifacts | prepare_exponents(config, loaded, config.model.max_items)


def prepare_exponents(config: ConfigDict, loaded: Loaded, max_items: int) -> dict[str, Any]:
    """Makes the artifacts of config.augment: exponents of pairs, and the search for them.

    Args:
        max_items: newest items of a history that are read.
    """
    pairs = config.augment
    if not pairs.search:
        return {"exponents": [float(x) for x in (pairs.alpha, pairs.beta, pairs.gamma)]}
    rows = genpas.search(
        loaded.split.train, loaded.split.valid, max_items=max_items, seed=config.seed
    )
    found = [[*map(float, row.exponents), row.kl, row.ratio] for row in rows if row.ratio > 0]
    exponents = found[0][:3]
    print("pairs: alpha, beta, gamma = {:g}, {:g}, {:g}".format(*exponents))
    return {"search": found, "exponents": exponents}


def load_catalogue(artifacts: Mapping[str, Any]) -> Catalogue:
    """Reads the SID table of the artifacts.

    Raises:
        ValueError: it is not the one its hash was taken of.
    """
    sid_artifact = artifacts["sid"]
    sids = np.asarray(sid_artifact["table"], np.int32)
    sizes = tuple(int(size) for size in sid_artifact["sizes"])
    expected = sid_artifact["sha256"]
    sha256 = table.sha256(sids, sizes)
    if sha256 != expected:
        raise ValueError(
            f"the SID table is not the one of this run: SHA-256 {sha256}, expected {expected}"
        )
    trie, shape = tries.build(sids, sizes)
    return Catalogue(sids, sizes, sha256, trie, shape)


def choose_exponents(config: ConfigDict, artifacts: Mapping[str, Any]) -> augment.Exponents:
    """Returns the exponents of the pairs: those of the artifacts, which may have been searched, or
    of a named strategy."""
    if config.augment.pairs == "genpas":
        return augment.Exponents(*artifacts["exponents"])
    return wiring.choose_exponents(config.augment)


def draw_pairs(
    key: jax.Array, batch: Mapping[str, Any], exponents: augment.Exponents, max_items: int
) -> dict[str, jax.Array]:
    """Draws a history and a target for every row of a batch, with a key of its own: {"history"
    int32 [B, T, L], "mask" bool [B, T], "users" int32 [B], "target" int32 [B, L]}."""
    tables = augment.Tables(**{name: batch[name] for name in augment.Tables._fields})
    longest = batch["longest"].shape[0]
    rows = jax.vmap(
        lambda row: augment.example(
            jax.random.fold_in(key, row), tables, exponents, longest, max_items
        )
    )(batch["row"])
    sids = batch["sids"]
    return {
        "history": sids[rows["items"]],
        "mask": rows["mask"],
        "users": rows["user"],
        "target": sids[rows["target"]],
    }


def make_generator(
    model: Model,
    catalogue: Catalogue,
    eval_config: BeamEval,
    *,
    max_items: int,
    softmax: str = "digit",
    children_only: bool = False,
) -> Generator:
    """Makes what decoding asks of a model: beam search, and scores teacher forced.

    Args:
        max_items: newest items of a history that are read.
        softmax: what the negative log-probabilities are normalised over, "digit" or "full".
        children_only: score no code that the trie does not allow, see `beam.make_generator`.
    """

    def search(params: Any, histories: Histories, trie: Trie) -> Beams:
        return beam.search(
            model,
            params,
            *histories,
            trie,
            shape=catalogue.shape,
            beams=eval_config.beams,
            normaliser=eval_config.normaliser,
            constrained=eval_config.constrained,
            children_only=children_only,
        )

    def nats(params: Any, histories: Histories, targets: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, *histories, targets)
        log_probs = digits.target_log_probs(logits, targets, model.sizes, softmax)
        return -log_probs.sum(axis=1)

    def score_catalogue(
        params: Any, histories: Histories, sids: jax.Array, trie: Trie
    ) -> jax.Array:
        return exact.exact_scores(
            model,
            params,
            *histories,
            sids,
            normaliser=eval_config.normaliser,
            trie=trie,
            shape=catalogue.shape,
        )

    return Generator(max_items, search, nats, score_catalogue)


def make_pair_batches(
    config: ConfigDict,
    train: Sequences,
    exponents: augment.Exponents,
    constants: Mapping[str, np.ndarray],
) -> Batches:
    """Makes what the device draws pairs from, the same at every step.

    Args:
        constants: leaves that are sent beside it: "sids" int32 [N, L], and what else a loss reads.
    """
    tables, _ = augment.strategy(train, config.augment.pairs, exponents)
    whole = {**wiring.make_pair_batch(tables, config.augment.rows), **constants}
    return lambda step, rows: wiring.take_rows(whole, rows)


class Decoder:
    """Answers queries with lists of items, in batches of one compiled size."""

    def __init__(self, generator: Generator, catalogue: Catalogue, eval_config: BeamEval) -> None:
        self.generator = generator
        self.catalogue = catalogue
        self._batch_size = eval_config.batch
        window = policies.largest_bucket(catalogue.trie)
        per_sid = min(eval_config.per_sid, window)
        num_items = eval_config.beams * per_sid
        self.list_length = num_items

        def decode(params: Any, histories: Histories, trie: Trie, values: jax.Array) -> Any:
            beams = generator.search(params, histories, trie)
            items = policies.expand(
                beams.leaves, trie, values, per_sid=per_sid, window=window, num_items=num_items
            )
            return items, jnp.repeat(beams.scores, per_sid, axis=1)

        self._decode = jax.jit(decode)
        self._nats = jax.jit(generator.nats)
        self._score_catalogue = jax.jit(generator.score_catalogue)

    def decode(self, params: Any, queries: Queries, values: np.ndarray) -> Answer:
        """Decodes lists [Q, K], items of the history not left out, and the scores of their beams.

        Args:
            values: float32 [N], or [Q, N], what items of one SID are ranked by.
        """
        items = []
        scores = []
        for rows, histories in self._batches(queries):
            size = len(histories.users)
            batch_values = values if values.ndim == 1 else pad_rows(values[rows], size)
            listed, beam_scores = self._decode(params, histories, self.catalogue.trie, batch_values)
            count = rows.stop - rows.start
            items.append(np.asarray(listed)[:count])
            scores.append(np.asarray(beam_scores)[:count])
        return Answer(np.concatenate(items), np.concatenate(scores))

    def mean_nats(self, params: Any, queries: Queries) -> float:
        """Averages the negative log-probabilities of the targets' SIDs."""
        targets = self.catalogue.sids[queries.targets]
        nats = []
        for rows, histories in self._batches(queries):
            batch_targets = pad_rows(targets[rows], len(histories.users))
            count = rows.stop - rows.start
            nats.append(np.asarray(self._nats(params, histories, batch_targets))[:count])
        return float(np.concatenate(nats).mean())

    def score_catalogue(self, params: Any, queries: Queries) -> np.ndarray:
        """Scores the whole catalogue, float32 [Q, N]."""
        catalogue = self.catalogue
        scores = []
        for rows, histories in self._batches(queries):
            batch_scores = self._score_catalogue(params, histories, catalogue.sids, catalogue.trie)
            scores.append(np.asarray(batch_scores)[: rows.stop - rows.start])
        return np.concatenate(scores)

    def _batches(self, queries: Queries) -> Iterator[tuple[slice, Histories]]:
        """Yields (rows of the queries, their histories padded to the one compiled size)."""
        items, mask = seq.newest(queries.history, self.generator.max_items)
        count = len(items)
        size = min(self._batch_size, count)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            histories = Histories(
                sids=self.catalogue.sids[pad_rows(items[rows], size)],
                mask=pad_rows(mask[rows], size),
                users=pad_rows(queries.users[rows], size),
            )
            yield rows, histories


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """Pads the first axis with zeros."""
    return np.pad(array, ((0, size - len(array)), *((0, 0),) * (array.ndim - 1)))


Beside = Callable[[str, Ranking], dict[str, Any]]
"""(split, ranking of its queries) -> metrics that stand beside those of the ranking."""


class Evaluation:
    """Computes metrics and answers of a state whose SIDs are the catalogue's.

    Args:
        params_of: state -> what the decoder is given; None takes state["params"].
        beside: further metrics of a ranking.
    """

    def __init__(
        self,
        config: ConfigDict,
        artifacts: Mapping[str, Any],
        decoder: Decoder,
        params_of: Callable[[Mapping[str, Any]], Any] | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.decoder = decoder
        self._params_of = params_of
        self._beside = beside
        self.loaded: Callable[[], Loaded] = wiring.load_lazily(config, artifacts)
        self._config = config
        self._artifacts = artifacts
        # The same at every evaluation.
        self._successor_nats = functools.cache(self._compute_successor_nats)
        self._eval: BeamEval = settings.groups(config)["eval"]

    def metrics(self, state: Mapping[str, Any], split: str) -> dict[str, Any]:
        """Computes the metrics of the lists, history masked and not; at the test also of the whole
        catalogue, where config.eval.exact asks for it."""
        params = self._matching_params(state)
        parts = self.loaded().split
        ranking, decoded = self.rank(state, split)
        queries = ranking.queries
        out = wiring.evaluate_ranking(split, ranking, self._artifacts, parts, self._eval.draws)
        out[f"{split}/loss"] = self.decoder.mean_nats(params, queries)
        uniform = likelihood.uniform(parts.train.num_items)
        if split != "test":  # a test is of what was learned: runs kept from before have no more
            out |= {"uniform/loss": uniform, "successor/loss": self._successor_nats()}
        elif out["test/loss"] > uniform:
            print(
                f"warning: test/loss {out['test/loss']:.2f} is above the {uniform:.2f} nats of a "
                "uniform guess"
            )
        out |= summarize_decoded(split, queries, decoded)
        if self._beside is not None:
            out |= self._beside(split, ranking)
        if split == "test" and self._eval.exact:
            scores = self.decoder.score_catalogue(params, queries)
            ranks = metrics.ranks(scores, queries.targets, queries.history)
            out |= metrics.summarize(ranks, wiring.KS, "test/", "/exact")
            out |= wiring.summarize_sampled(scores, queries)
        return out

    def _compute_successor_nats(self) -> float:
        """Computes the nats of successor counts at the queries of validation, which the loss is
        read beside; their weight is fitted on all of validation."""
        parts = self.loaded().split
        weight = likelihood.fit_weight(parts.train, parts.valid)
        queries = wiring.select_queries(parts, "valid", self._eval.rows)
        return likelihood.successor(parts.train, queries, weight)

    def rank(self, state: Mapping[str, Any], split: str) -> tuple[Ranking, np.ndarray]:
        """Ranks items for the queries of a side: (ranking, items int32 [Q, K] as decoded)."""
        parts = self.loaded().split
        queries = wiring.select_queries(parts, split, self._eval.rows)
        values = self._bucket_values(parts.train, queries)
        decoded = self.decoder.decode(self._matching_params(state), queries, values).items
        longest = int(queries.history.lengths.max())
        items = policies.unseen(decoded, *seq.newest(queries.history, longest))
        ranks = metrics.rank_in_list(items, queries.targets)
        return Ranking(queries, ranks, items), decoded

    def answer(self, state: Mapping[str, Any], history: np.ndarray) -> Answer:
        """Recommends items after one history int32 [T], without those in it."""
        rows = seq.pack([history], len(self._artifacts["items"]))
        return self.answers(state, rows, self.decoder.list_length)[0]

    def answers(self, state: Mapping[str, Any], histories: Sequences, wanted: int) -> list[Answer]:
        """Recommends items after each of several histories, without those in it."""
        nobody = np.zeros(histories.num_users, np.int32)
        queries = Queries(nobody, histories, nobody)
        values = self._bucket_values(None, queries)
        decoded = self.decoder.decode(self._matching_params(state), queries, values)
        listed = zip(decoded.items, decoded.scores, strict=True)
        answers = []
        for row, (items, scores) in enumerate(listed):
            left = wiring.drop_history(items, scores, histories.of(row))
            answers.append(Answer(left.items[:wanted], left.scores[:wanted]))
        return answers

    def _bucket_values(self, train: Sequences | None, queries: Queries) -> np.ndarray:
        """Computes what items of one SID are ranked by, see `policies.bucket_values`."""
        policy = self._eval.policy
        popularity = np.asarray(self._artifacts["popularity"])
        last_seen = np.zeros(len(popularity))
        if policy == "freshness":
            if train is None or not len(train.times):
                raise UserError(
                    "config.eval.policy=freshness needs interactions with times: choose popularity"
                )
            np.maximum.at(last_seen, train.items, train.times)
        histories, mask = seq.newest(queries.history, self.decoder.generator.max_items)
        return policies.bucket_values(
            policy,
            popularity=popularity,
            last_seen=last_seen,
            features=np.asarray(self._artifacts.get("features", np.zeros((len(popularity), 1)))),
            histories=histories,
            mask=mask,
            seed=self._config.seed,
        )

    def _matching_params(self, state: Mapping[str, Any]) -> Any:
        """Returns the parameters, if they were trained with these SIDs."""
        trained_with = np.asarray(state["sid_sha256"]).tobytes().hex()
        expected = self._artifacts["sid"]["sha256"]
        if trained_with != expected:
            raise UserError(
                "the checkpoint was trained with another SID table than the one beside it: its "
                f"hash begins with {trained_with[:12]}, the table's with {expected[:12]}"
            )
        return state["params"] if self._params_of is None else self._params_of(state)


def summarize_decoded(split: str, queries: Queries, items: np.ndarray) -> dict[str, float]:
    """Computes what concerns the lists as decoded: ranks without a mask, invalid and repeated
    items."""
    unmasked = metrics.rank_in_list(items, queries.targets)
    out = metrics.summarize(unmasked, wiring.KS, f"{split}/", "/unmasked")
    first_ten = np.sort(items[:, :10], axis=1)
    is_repeated = (first_ten[:, 1:] == first_ten[:, :-1]) & (first_ten[:, 1:] >= 0)
    out[f"{split}/invalid@10"] = float((items[:, :10] < 0).mean())
    out[f"{split}/repeated@10"] = float(is_repeated.mean())
    return out


def make_init(
    model: Model, init_optimizer: Callable[[Any], Any], catalogue: Catalogue
) -> Callable[[jax.Array], dict[str, Any]]:
    """Makes key -> state; its sid_sha256 says which SIDs the parameters were trained with. The
    parameters are what is trained: a student's teacher is not among them.

    Args:
        init_optimizer: trained parameters -> opt_state.
    """

    def init(key: jax.Array) -> dict[str, Any]:
        history = jnp.zeros((1, 1, len(model.sizes)), jnp.int32)
        inputs = (history, jnp.ones((1, 1), bool), jnp.zeros(1, jnp.int32), history[0])
        params = dict(model.init(jax.random.fold_in(key, 0), *inputs)["params"])
        params.pop("teacher", None)
        return {
            "step": jnp.int32(0),
            "key": key,
            "params": params,
            "opt_state": init_optimizer(params),
            "sid_sha256": jnp.asarray(catalogue.hash_words),
        }

    return init


def make_experiment(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    evaluation: Evaluation,
    *,
    init: Callable[[jax.Array], dict[str, Any]],
    step: Step,
    make_batches: Callable[[Sequences], Batches],
    rules: tuple[tuple[str, Any], ...],
) -> Experiment:
    """Makes the Experiment of a system from how it begins, steps and is evaluated.

    Args:
        make_batches: training sequences -> batches; called when the first batch is needed.
        rules: of sharding.
    """
    loaded = evaluation.loaded
    batches = functools.cache(lambda: make_batches(loaded().split.train))
    action = recommend.make_recommend(
        artifacts,
        loaded,
        config.data.columns,
        config.eval.top,
        evaluation.answers,
        most=evaluation.decoder.list_length,
        max_items=evaluation.decoder.generator.max_items,
    )
    lists = wiring.make_lists(loaded, evaluation.answer)
    return Experiment(
        init=init,
        step=step,
        batch=lambda step, rows=None: batches()(step, rows),
        evaluate=evaluation.metrics,
        rules=rules,
        selectable=(*wiring.SELECTABLE, "valid/loss"),
        figures=figures.make_ranker_figures(config, artifacts, lists),
        actions={"recommend": action},
    )
