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

from experiments import settings
from experiments.contract import Experiment
from experiments.errors import UserError
from experiments.systems import recommenders, recommenders_figures, sid
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
    recommenders.one_seed(config)
    groups = settings.groups(config)
    cfg, evaluation, pairs = groups["model"], groups["eval"], groups["augment"]
    loaded = recommenders.lazily(config, artifacts)
    sids, sizes = checked_sids(artifacts)
    hashed = np.frombuffer(bytes.fromhex(artifacts["sid"]["sha256"]), np.uint32)
    model, tx = Tiger(cfg, sizes), training.optimizer(groups["optim"])
    exponents = augment.Exponents(*artifacts["exponents"])
    if pairs.pairs != "genpas":
        exponents = recommenders.exponents_of(pairs)

    def init(key: jax.Array) -> dict[str, Any]:
        one = jnp.zeros((1, 1, len(sizes)), jnp.int32)
        params = model.init(
            jax.random.fold_in(key, 0), one, jnp.ones((1, 1), bool), one[0, 0, :1], one[0]
        )["params"]
        return {
            "step": jnp.int32(0),
            "key": key,
            "params": params,
            "opt_state": tx.init(params),
            "sid_sha256": jnp.asarray(hashed),  # which SIDs these parameters speak
        }

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

    @functools.cache
    def batch() -> dict[str, np.ndarray]:
        made = augment.strategy(loaded().split.train, pairs.pairs, exponents)[0]
        return recommenders.pair_batch(made, pairs.rows) | {"sids": sids}

    decoder = Decoder(model, sids, evaluation, cfg.max_items)
    whole = jax.jit(
        functools.partial(exact.exact_scores, model, normaliser=evaluation.normaliser),
        static_argnames="shape",
    )

    def speaks(state: Mapping[str, Any]) -> Any:
        """Parameters, if they were trained with these SIDs."""
        if not np.array_equal(np.asarray(state["sid_sha256"]), hashed):
            raise UserError(
                "the checkpoint was trained with another SID table than the one beside it: its "
                f"hash begins with {np.asarray(state['sid_sha256']).tobytes()[:6].hex()}, the "
                f"table's with {hashed.tobytes()[:6].hex()}"
            )
        return state["params"]

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, Any]:
        params, parts = speaks(state), loaded().split
        queries = recommenders.queries_of(parts, split, evaluation.rows)
        values = bucket_values(config, artifacts, parts.train, queries, cfg.max_items)
        found = decoder(params, queries, values)
        kept = policies.unseen(found.items, *seq.newest(queries.history, longest_of(queries)))
        ranks = metrics.rank_in_list(kept, queries.targets)
        out = recommenders.judge(split, queries, ranks, kept, artifacts, parts, evaluation.draws)
        out[f"{split}/loss"] = decoder.loss(params, queries)
        out |= beam_metrics(split, queries, found.items)
        if split == "test" and evaluation.exact:
            scores = decoder.in_batches(
                lambda *inputs: whole(
                    params, *inputs, sids, trie=decoder.trie, shape=decoder.shape
                ),
                queries,
            )
            ranks = metrics.ranks(scores, queries.targets, queries.history)
            out |= metrics.summarise(ranks, recommenders.KS, "test/", "/exact")
            sampled = metrics.uniform_ranks(scores, queries.targets, queries.history)
            out |= metrics.summarise(sampled, recommenders.KS, "test/", "/uni100")
        return out

    def answer(state: Mapping[str, Any], history: np.ndarray) -> recommenders.Answer:
        one = Queries(np.zeros(1, np.int32), seq.pack([history], len(sids)), np.zeros(1, np.int32))
        values = bucket_values(config, artifacts, None, one, cfg.max_items)
        found = decoder(speaks(state), one, values)
        return recommenders.leave_out(found.items[0], found.scores[0], history)

    def lists(state: Mapping[str, Any]) -> list[tuple[np.ndarray, int, np.ndarray]]:
        queries = loaded().split.test
        few = recommenders.chosen_histories(queries, 3)
        return [
            (queries.history.of(int(q)), int(queries.targets[q]),
             answer(state, queries.history.of(int(q))).items)
            for q in few
        ]  # fmt: skip

    return Experiment(
        init=init,
        step=step,
        batch=lambda step, rows=None: recommenders.rows_of(batch(), rows),
        evaluate=evaluate,
        rules=RULES,
        selectable=("valid/recall@5", "valid/recall@10", "valid/ndcg@5", "valid/ndcg@10",
                    "valid/loss"),
        figures=recommenders_figures.make_ranker_figures(config, artifacts, lists),
        actions={
            "recommend": recommenders.make_recommend(
                artifacts, evaluation.top, cfg.max_items, answer
            )
        },
    )  # fmt: skip


def longest_of(queries: Queries) -> int:
    """Items of the longest history."""
    return int(queries.history.lengths.max())


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

    def __init__(self, model: Tiger, sids: np.ndarray, evaluation: Any, limit: int) -> None:
        self.trie, self.shape = tries.build(sids, model.sizes)
        self._sids, self._limit, self._batch = sids, limit, evaluation.batch
        window = policies.largest_bucket(self.trie)
        per_sid = min(evaluation.per_sid, window)

        @jax.jit
        def decode(params: Any, trie: Any, values: jax.Array, *inputs: jax.Array) -> Any:
            history, mask, users = inputs
            found = beam.search(
                model, params, history, mask, users, trie, shape=self.shape,
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

    def __call__(self, params: Any, queries: Queries, values: np.ndarray) -> recommenders.Answer:
        """Lists [Q, K] and scores of their beams, history not masked."""
        items, scores = [], []
        for start, inputs, real in self._parts(queries):
            own = values
            if values.ndim == 2:
                own = values[start : start + real]
                own = np.pad(own, ((0, len(inputs[0]) - real), (0, 0)))
            found, score = self._decode(params, self.trie, own, *inputs)
            items.append(np.asarray(found)[:real])
            scores.append(np.asarray(score)[:real])
        return recommenders.Answer(np.concatenate(items), np.concatenate(scores))

    def loss(self, params: Any, queries: Queries) -> float:
        """Mean nats of the targets' SIDs, teacher forced."""
        targets, out = self._sids[queries.targets], []
        for start, inputs, real in self._parts(queries):
            own = targets[start : start + real]
            own = np.pad(own, ((0, len(inputs[0]) - real), (0, 0)))
            out.append(np.asarray(self._nats(params, *inputs, own))[:real])
        return float(np.concatenate(out).mean())

    def in_batches(self, score: Any, queries: Queries) -> np.ndarray:
        """[Q, N] of a function of (history, mask, users)."""
        parts = [np.asarray(score(*inputs))[:real] for _, inputs, real in self._parts(queries)]
        return np.concatenate(parts)

    def _parts(self, queries: Queries) -> Any:
        """(first row, padded inputs, real rows) of every batch."""
        items, mask = seq.newest(queries.history, self._limit)
        size = min(self._batch, len(items))
        for start in range(0, len(items), size):
            rows = slice(start, start + size)
            real = len(items[rows])
            pad = ((0, size - real), (0, 0))
            users = np.pad(queries.users[rows], pad[0])
            history = self._sids[np.pad(items[rows], pad)]
            yield start, (history, np.pad(mask[rows], pad), users), real
