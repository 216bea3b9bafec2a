# SPDX-License-Identifier: Apache-2.0
"""Wiring of TIGER: SIDs as artifact, pairs drawn on the device, beams along the trie."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.rec import sid
from experiments.systems.rec.recommenders import figures as recommenders_figures
from experiments.systems.rec.recommenders import wiring as recommenders
from rec import augment, genpas, metrics, training
from rec.data import sequences as seq
from rec.data.sequences import Queries
from rec.decode import beam, exact
from rec.decode import items as policies
from rec.models import tiger
from rec.models.tiger import Tiger
from rec.sid import table
from rec.sid import trie as tries

RULES = (
    (r"batch/row", P("data")),
    (r"batch/.*", P()),
    (r"(.*/)?attn/[qkv]/kernel", P(None, None, "model")),
    (r"(.*/)?cross/[qkv]/kernel", P(None, None, "model")),
    (r"(.*/)?mlp/(gate|up)/kernel", P(None, None, "model")),
    (r"(.*/)?(attn|cross)/o/kernel", P(None, "model")),
    (r"(.*/)?mlp/down/kernel", P(None, "model")),
)


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Items, the rows without training, the SID table with its tokenizer, exponents of pairs."""
    loaded = recommenders.load(config)
    vectors = recommenders.features(config, loaded)
    out = recommenders.prepare(config, loaded, vectors)
    out["sid"] = sid.artifact(config, loaded, vectors)
    if config.eval.policy == "relevance":
        out["features"] = vectors
    pairs = config.augment
    out["exponents"] = [float(x) for x in (pairs.alpha, pairs.beta, pairs.gamma)]
    if pairs.search:
        found = genpas.search(
            loaded.split.train, loaded.split.valid, max_items=config.model.max_items,
            seed=config.seed,
        )  # fmt: skip
        out["search"] = [[*map(float, r.exponents), r.kl, r.ratio] for r in found if r.ratio > 0]
        out["exponents"] = out["search"][0][:3]
        print("pairs: alpha, beta, gamma = {:g}, {:g}, {:g}".format(*out["exponents"]))
    return out


def checked_sids(artifacts: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The SID table of the artifacts.

    Raises:
        ValueError: it is not the one its hash was taken of.
    """
    kept = artifacts["sid"]
    sids = np.asarray(kept["table"], np.int32)
    sizes = tuple(int(s) for s in kept["sizes"])
    found = table.sha256(sids, sizes)
    if found != kept["sha256"]:
        raise ValueError(
            f"the SID table is not the one of this run: SHA-256 {found}, expected {kept['sha256']}"
        )
    return sids, sizes


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds, or a SID table that does not match its hash.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    evaluation, pairs = groups["eval"], groups["augment"]
    judged = evaluation_of(config, artifacts)
    model, sids, loaded = judged.decoder.model, judged.decoder.sids, judged.loaded
    hashed = np.frombuffer(bytes.fromhex(artifacts["sid"]["sha256"]), np.uint32)
    tx = training.optimizer(groups["optim"])
    exponents = augment.Exponents(*artifacts["exponents"])
    if pairs.pairs != "genpas":
        exponents = recommenders.exponents_of(pairs)

    @functools.cache
    def batch() -> dict[str, np.ndarray]:
        made = augment.strategy(loaded().split.train, pairs.pairs, exponents)[0]
        return recommenders.pair_batch(made, pairs.rows) | {"sids": sids}

    recommend = recommenders.make_recommend(
        artifacts, evaluation.top, model.cfg.max_items, judged.answer
    )
    lists = recommenders.make_lists(loaded, judged.answer)
    return Experiment(
        init=make_init(model, tx, hashed),
        step=make_step(model, tx, exponents),
        batch=lambda step, rows=None: recommenders.rows_of(batch(), rows),
        evaluate=judged.metrics,
        rules=RULES,
        selectable=(*recommenders.SELECTABLE, "valid/loss"),
        figures=recommenders_figures.make_ranker_figures(config, artifacts, lists),
        actions={"recommend": recommend},
    )


def evaluation_of(config: ConfigDict, artifacts: Mapping[str, Any]) -> "Evaluation":
    """How states of this config are judged."""
    groups = settings.groups(config)
    sids, sizes = checked_sids(artifacts)
    decoder = Decoder(Tiger(groups["model"], sizes), sids, groups["eval"])
    loaded = recommenders.lazily(config, artifacts)
    return Evaluation(config, artifacts, groups["eval"], decoder, loaded)


def make_init(model: Tiger, tx: Any, hashed: np.ndarray) -> Any:
    """key -> state; sid_sha256 says which SIDs the parameters speak."""

    def init(key: jax.Array) -> dict[str, Any]:
        one = jnp.zeros((1, 1, len(model.sizes)), jnp.int32)
        params = model.init(
            jax.random.fold_in(key, 0), one, jnp.ones((1, 1), bool), one[0, 0, :1], one[0]
        )["params"]
        own = {"params": params, "opt_state": tx.init(params)}
        return {"step": jnp.int32(0), "key": key, **own, "sid_sha256": jnp.asarray(hashed)}

    return init


def make_step(model: Tiger, tx: Any, exponents: augment.Exponents) -> Any:
    """(state, batch) -> (state, metrics); every row draws its pair with a key of its own."""
    cfg = model.cfg

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        tables = augment.Tables(**{name: batch[name] for name in augment.Tables._fields})
        longest = batch["longest"].shape[0]
        rows = jax.vmap(
            lambda row: augment.example(
                jax.random.fold_in(key, row), tables, exponents, longest, cfg.max_items
            )
        )(batch["row"])
        known = batch["sids"]
        inputs = {
            "history": known[rows["items"]],
            "mask": rows["mask"],
            "users": rows["user"],
            "target": known[rows["target"]],
        }
        drop = jax.random.fold_in(key, len(batch["row"])) if cfg.dropout else None
        params, opt_state, found = training.update(
            lambda p: tiger.loss(model, p, inputs, drop), state["params"], state["opt_state"], tx
        )
        new = {**state, "step": state["step"] + 1, "params": params, "opt_state": opt_state}
        return new, found

    return step


class Evaluation:
    """Metrics and answers of a state, after its SIDs were compared with the table's."""

    def __init__(
        self,
        config: ConfigDict,
        artifacts: Mapping[str, Any],
        evaluation: Any,
        decoder: "Decoder",
        loaded: Any,
    ) -> None:
        self._config, self._artifacts, self._evaluation = config, artifacts, evaluation
        self.decoder, self.loaded = decoder, loaded

    def metrics(self, state: Mapping[str, Any], split: str) -> dict[str, Any]:
        """Of the beams, history masked and not; at the test also of the whole catalogue, where
        config.eval.exact asks for it."""
        params, parts, draws = self._speaks(state), self.loaded().split, self._evaluation.draws
        queries, items, kept = self.lists(state, split)
        ranks = metrics.rank_in_list(kept, queries.targets)
        out = recommenders.judge(split, queries, ranks, kept, self._artifacts, parts, draws)
        out[f"{split}/loss"] = self.decoder.loss(params, queries)
        out |= beam_metrics(split, queries, items)
        if split == "test" and self._evaluation.exact:
            scores = self.decoder.exact(params, queries)
            ranks = metrics.ranks(scores, queries.targets, queries.history)
            out |= metrics.summarise(ranks, recommenders.KS, "test/", "/exact")
            sampled = metrics.uniform_ranks(scores, queries.targets, queries.history)
            out |= metrics.summarise(sampled, recommenders.KS, "test/", "/uni100")
        return out

    def lists(self, state: Mapping[str, Any], split: str) -> tuple[Queries, np.ndarray, np.ndarray]:
        """Queries and their items int32 [Q, K], as decoded and with the history taken out."""
        parts = self.loaded().split
        queries = recommenders.queries_of(parts, split, self._evaluation.rows)
        values = self._values(parts.train, queries)
        items = self.decoder(self._speaks(state), queries, values).items
        longest = int(queries.history.lengths.max())
        return queries, items, policies.unseen(items, *seq.newest(queries.history, longest))

    def answer(self, state: Mapping[str, Any], history: np.ndarray) -> recommenders.Answer:
        """Items after one history int32 [T], without those in it."""
        rows = seq.pack([history], len(self._artifacts["items"]))
        one = Queries(np.zeros(1, np.int32), rows, np.zeros(1, np.int32))
        found = self.decoder(self._speaks(state), one, self._values(None, one))
        return recommenders.leave_out(found.items[0], found.scores[0], history)

    def _values(self, train: Any, queries: Queries) -> np.ndarray:
        limit = self._config.model.max_items
        return bucket_values(self._config, self._artifacts, train, queries, limit)

    def _speaks(self, state: Mapping[str, Any]) -> Any:
        """Parameters, if they were trained with these SIDs."""
        theirs = np.asarray(state["sid_sha256"]).tobytes().hex()
        ours = self._artifacts["sid"]["sha256"]
        if theirs != ours:
            raise UserError(
                "the checkpoint was trained with another SID table than the one beside it: its "
                f"hash begins with {theirs[:12]}, the table's with {ours[:12]}"
            )
        return state["params"]


def beam_metrics(split: str, queries: Queries, items: np.ndarray) -> dict[str, float]:
    """What concerns the lists as decoded: ranks without a mask, invalid and repeated beams."""
    raw = metrics.rank_in_list(items, queries.targets)
    out = metrics.summarise(raw, recommenders.KS, f"{split}/", "/unmasked")
    first = np.sort(items[:, :10], axis=1)
    again = (first[:, 1:] == first[:, :-1]) & (first[:, 1:] >= 0)
    out[f"{split}/invalid@10"] = float((items[:, :10] < 0).mean())
    out[f"{split}/repeated@10"] = float(again.mean())
    return out


def bucket_values(
    config: ConfigDict, artifacts: Mapping[str, Any], train: Any, queries: Queries, limit: int
) -> np.ndarray:
    """What items of one SID are ranked by, see `policies.bucket_values`."""
    popularity = np.asarray(artifacts["popularity"])
    last_seen = np.zeros(len(popularity))
    if config.eval.policy == "freshness":
        if train is None or not len(train.times):
            raise UserError(
                "config.eval.policy=freshness needs interactions with times: choose popularity"
            )
        np.maximum.at(last_seen, train.items, train.times)
    histories, mask = seq.newest(queries.history, limit)
    return policies.bucket_values(
        config.eval.policy,
        popularity=popularity,
        last_seen=last_seen,
        features=np.asarray(artifacts.get("features", np.zeros((len(popularity), 1)))),
        histories=histories,
        mask=mask,
        seed=config.seed,
    )


class Decoder:
    """Beams and items of queries, in batches of one compiled size."""

    def __init__(self, model: Tiger, sids: np.ndarray, evaluation: Any) -> None:
        self._trie, shape = tries.build(sids, model.sizes)
        self.model, self.sids, self._batch = model, sids, evaluation.batch
        window = policies.largest_bucket(self._trie)
        per_sid = min(evaluation.per_sid, window)

        @jax.jit
        def decode(params: Any, trie: Any, values: jax.Array, *inputs: jax.Array) -> Any:
            history, mask, users = inputs
            found = beam.search(
                model, params, history, mask, users, trie, shape=shape,
                beams=evaluation.beams, normaliser=evaluation.normaliser,
                constrained=evaluation.constrained,
            )  # fmt: skip
            listed = policies.expand(
                found.leaves, trie, values, per_sid=per_sid, window=window,
                num_items=evaluation.beams * per_sid,
            )  # fmt: skip
            return listed, jnp.repeat(found.scores, per_sid, axis=1)

        @jax.jit
        def nats(params: Any, *inputs: jax.Array) -> jax.Array:
            logits: Any = model.apply({"params": params}, *inputs)
            found = tiger.target_log_probs(logits, inputs[-1], model.sizes, model.cfg.softmax)
            return -found.sum(axis=1)

        self._decode, self._nats = decode, nats
        whole = functools.partial(
            exact.exact_scores, model, shape=shape, normaliser=evaluation.normaliser
        )
        self._whole = jax.jit(whole)

    def __call__(self, params: Any, queries: Queries, values: np.ndarray) -> recommenders.Answer:
        """Lists [Q, K] and scores of their beams, history not masked."""
        items, scores = [], []
        for start, inputs, real in self._parts(queries):
            own = values
            if values.ndim == 2:
                own = values[start : start + real]
                own = np.pad(own, ((0, len(inputs[0]) - real), (0, 0)))
            found, score = self._decode(params, self._trie, own, *inputs)
            items.append(np.asarray(found)[:real])
            scores.append(np.asarray(score)[:real])
        return recommenders.Answer(np.concatenate(items), np.concatenate(scores))

    def loss(self, params: Any, queries: Queries) -> float:
        """Mean nats of the targets' SIDs, teacher forced."""
        targets, out = self.sids[queries.targets], []
        for start, inputs, real in self._parts(queries):
            own = targets[start : start + real]
            own = np.pad(own, ((0, len(inputs[0]) - real), (0, 0)))
            out.append(np.asarray(self._nats(params, *inputs, own))[:real])
        return float(np.concatenate(out).mean())

    def exact(self, params: Any, queries: Queries) -> np.ndarray:
        """Scores of the whole catalogue, float32 [Q, N]."""
        parts = [
            np.asarray(self._whole(params, *inputs, self.sids, trie=self._trie))[:real]
            for _, inputs, real in self._parts(queries)
        ]
        return np.concatenate(parts)

    def _parts(self, queries: Queries) -> Any:
        """(first row, padded inputs, real rows) of every batch."""
        items, mask = seq.newest(queries.history, self.model.cfg.max_items)
        size = min(self._batch, len(items))
        for start in range(0, len(items), size):
            rows = slice(start, start + size)
            real = len(items[rows])
            pad = ((0, size - real), (0, 0))
            users = np.pad(queries.users[rows], pad[0])
            history = self.sids[np.pad(items[rows], pad)]
            yield start, (history, np.pad(mask[rows], pad), users), real
