# SPDX-License-Identifier: Apache-2.0
"""Wiring of language modelling: a tokenizer as artifact, random stretches of text as batches.

The text itself is no artifact: it is read again through the data root, and its SHA-256, which is
one, is compared.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention import data as texts
from attention.lm import heads, loading, model, sampler, tokenizer, training
from attention.lm.config import LMConfig
from attention.lm.tokenizer import Tokenizer
from experiments.runner import data, settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.runner.queries import Query, text_of
from experiments.systems.attention.language import figures as lm_figures
from experiments.systems.attention.language import wiring as language

MADE_CHARACTERS = 200_000
EVAL_BATCH = 32  # rows of an evaluation that run at once
SAMPLED = 4  # contexts of text that --mode=sample writes


def read(config: ConfigDict) -> str:
    """The text config.data names, verified where it is a dataset that is known."""
    group = config.data
    if group.text == "made":
        return texts.made_text(config.seed, MADE_CHARACTERS)
    if group.text in data.declared():
        checked = data.fingerprints(group.text, group.root)
        (path,) = checked
        return texts.read_text(data.root(group.root) / path)
    path = Path(group.text).expanduser()
    if not path.is_file():
        path = data.locate(group.text, group.root)
    return texts.read_text(path)


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Tokenizer, SHA-256 of the text, and what counting alone reaches on its last part."""
    text = read(config)
    sha256 = texts.sha256(text)
    made = make_tokenizer(config, text)
    train, valid = encode(config, text, sha256, made)
    floor = training.ngram_losses(train, valid, config.model.vocab_size)
    print(
        f"text {sha256[:12]}: {len(text):,} characters, {len(train):,} + {len(valid):,} tokens of "
        f"{made.vocab_size}; counting alone: unigrams {floor['loss/unigram']:.4f}, bigrams "
        f"{floor['loss/bigram']:.4f} nats per token"
    )
    return {"tokenizer": made.to_json(), "sha256": sha256, "floor": floor}


def make_tokenizer(config: ConfigDict, text: str) -> Tokenizer:
    """Tokenizer of config.data.tokenizer for at most config.model.vocab_size tokens.

    Raises:
        ValueError: the text has more characters than that.
    """
    kind, size = config.data.tokenizer, config.model.vocab_size
    if kind == "char":
        made = tokenizer.CharTokenizer(text)
    else:
        made = tokenizer.train_bpe([texts.split(text, config.data.valid_share)[0]], size)
    if made.vocab_size > size:
        raise ValueError(
            f"config.model.vocab_size={size}: config.data.text={config.data.text} needs "
            f"{made.vocab_size} with config.data.tokenizer={kind}"
        )
    return made


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: another text than the run began with, a text too short for a context, more than
            one seed.
    """
    language.check(config)
    groups = settings.groups(config)
    cfg, optim, evaluation = groups["model"], groups["optim"], groups["eval"]
    context, rows = config.data.context, config.data.rows
    made = tokenizer.from_json(artifacts["tokenizer"])
    train, valid = tokens_of(config, artifacts, made)
    longest = max(context, *evaluation.lengths)
    for name, part in (("training", train), ("validation", valid)):
        if len(part) <= longest:
            raise ValueError(
                f"config.data.text={config.data.text}: {len(part)} {name} tokens are too few for "
                f"stretches of {longest} (config.data.context, config.eval.lengths)"
            )

    def batch(step: int, rows_wanted: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        wanted = rows_wanted or (0, rows)
        return {"ids": training.windows(train, config.seed, step, wanted, context)}

    evaluate = make_evaluate(cfg, evaluation, context, valid, artifacts["floor"])
    return Experiment(
        init=language.make_init(cfg, optim),
        step=language.make_step(cfg, optim),
        batch=batch,
        evaluate=evaluate,
        rules=language.RULES,
        splits=("valid", "lengths"),
        selectable=("valid/loss",),
        figures=lm_figures.make_figures(cfg, made, valid, context),
        actions={"sample": make_sample(cfg, made, context), "publish": make_publish(cfg, made)},
    )


def tokens_of(
    config: ConfigDict, artifacts: Mapping[str, Any], made: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(train, valid) tokens of the text a run began with."""
    text = read(config)
    sha256 = texts.sha256(text)
    if sha256 != artifacts["sha256"]:
        raise ValueError(
            f"config.data.text={config.data.text} is not the text this run began with: SHA-256 "
            f"{sha256}, expected {artifacts['sha256']}"
        )
    return encode(config, text, sha256, made)


def encode(
    config: ConfigDict, text: str, sha256: str, made: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(train, valid) tokens int32, out of the cache where they are long to make."""

    def both() -> dict[str, np.ndarray]:
        parts = zip(("train", "valid"), texts.split(text, config.data.valid_share), strict=True)
        return {name: np.asarray(made.encode(part), np.int32) for name, part in parts}

    key = [sha256, made.to_json(), config.data.valid_share]
    found = data.packed("tokens", key, both) if config.data.tokenizer == "bpe" else both()
    return found["train"], found["valid"]


def stretches(tokens: np.ndarray, rows: int, length: int) -> np.ndarray:
    """Evenly spaced stretches, int32 [rows, length + 1]; fewer where the text is shorter."""
    most = (len(tokens) - 1) // length
    starts = np.linspace(0, len(tokens) - length - 1, min(rows, most)).astype(np.int64)
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def make_evaluate(
    cfg: LMConfig, evaluation: Any, context: int, valid: np.ndarray, floor: Mapping[str, float]
) -> Any:
    """(state, split) -> metrics. "valid" at the training context, "lengths" at all contexts."""

    @jax.jit(static_argnums=1)
    def nats(params: Any, cfg: LMConfig, ids: jax.Array) -> jax.Array:
        def one(part: jax.Array) -> jax.Array:
            logits = model.forward(params, cfg, part[None, :-1]).logits
            return training.cross_entropy(logits, part[None, 1:])[0]

        return jax.lax.map(one, ids, batch_size=EVAL_BATCH)  # [rows, length]

    statistics = jax.jit(heads.statistics, static_argnums=1)

    def at(params: Any, length: int) -> tuple[dict[str, Any], np.ndarray]:
        ids = stretches(valid, evaluation.rows, length)
        there = language.config_at(cfg, context, length, ntk=evaluation.ntk)
        found = nats(params, there, jnp.asarray(ids))
        few = ids[:: max(1, len(ids) // evaluation.head_rows)][: evaluation.head_rows, :-1]
        few_found = statistics(params, there, jnp.asarray(few))
        return jax.device_get(few_found), np.asarray(found)

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, Any]:
        params = state["params"]
        if split == "valid":
            found, losses = at(params, context)
            out = {"valid/loss": losses.mean()} | {f"valid/{k}": v for k, v in floor.items()}
            return out | heads.named("valid", found, layers=True)
        out = {}
        for length in evaluation.lengths:
            found, losses = at(params, length)
            out[f"lengths/loss@{length}"] = losses.mean()
            out[f"lengths/loss/last_quarter@{length}"] = losses[:, -(length // 4) :].mean()
            named = heads.named("lengths", found, layers=False)
            out |= {f"{name}@{length}": value for name, value in named.items()}
        return out

    return evaluate


def make_sample(cfg: LMConfig, made: Tokenizer, context: int) -> Any:
    """Makes the action --mode=sample --query="ROMEO:", which continues a text."""

    # The model may have more rows than the tokenizer has ids.
    real = sampler.Constraint(
        allowed=lambda carry: jnp.arange(cfg.vocab_size)[None] < carry[:, None],
        advance=lambda carry, tokens: carry,
    )

    def sample(state: Mapping[str, Any], query: Query) -> str:
        text = text_of(query, "the beginning of a text")
        try:
            prompt = made.encode(text)[-context:]
        except ValueError as error:
            raise UserError(f"--query: {error}") from error
        if not prompt:
            raise UserError('--query="": give the beginning of a text to continue')
        ids, mask = sampler.pad_prompts([prompt])
        new = SAMPLED * context
        begun = sampler.start(state["params"], cfg, ids, mask, capacity=ids.shape[1] + new)
        drawn = sampler.sample(
            state["params"],
            cfg,
            begun,
            jax.random.key(0),
            sampler.Sampling(max_new=new, temperature=0.8),
            constraint=real,
            carry=jnp.full((1,), made.vocab_size),
        )
        return text + made.decode(np.asarray(drawn.ids[0]).tolist())

    return sample


def make_publish(cfg: LMConfig, made: Tokenizer) -> Any:
    """Makes the action --mode=publish --out=DIR: config.json, weights and tokenizer in the layout
    that `attention.lm.loading` reads, and other programs with it."""

    def publish(state: Mapping[str, Any], query: Query) -> dict[str, bytes]:
        del query
        try:
            from safetensors.numpy import save
        except ModuleNotFoundError as error:
            raise UserError(
                '--mode=publish needs safetensors, which is not installed: pip install -e ".[lm]"'
            ) from error
        try:
            config = loading.write_config(cfg)
            tensors = loading.export(state["params"], cfg)
        except ValueError as error:
            raise UserError(f"--mode=publish: {error}") from error
        return {
            "config.json": (json.dumps(config, indent=1) + "\n").encode(),
            "model.safetensors": save(tensors, {"format": "np"}),
            "banyan_tokenizer.json": (json.dumps(made.to_json()) + "\n").encode(),
        }

    return publish
