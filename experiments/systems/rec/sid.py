# SPDX-License-Identifier: Apache-2.0
"""Wiring of semantic IDs: a tokenizer as a run of its own, or inside another one's prepare."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import checkpoint, data, serving, settings
from experiments.runner.contract import Experiment, Picture, Rows
from experiments.runner.errors import UserError
from experiments.systems.rec.recommenders import figures, wiring
from experiments.systems.rec.recommenders.wiring import Loaded
from rec.data import sid_files
from rec.sid import conflict, report, sources, table, tokenizer
from rec.sid.config import SIDConfig

RULES = ((r"batch/features", P()),)
SHOWN_ITEMS = 12  # examples in a report


def tokenizer_config(config: ConfigDict) -> SIDConfig:
    """Returns the tokenizer's own part of config.sid."""
    return settings.groups(config)["sid"]


def with_widths(cfg: SIDConfig, widths: tuple[int, ...]) -> SIDConfig:
    """Returns the tokenizer for inputs of several sources, where the config names no widths."""
    return cfg if cfg.source_widths else dataclasses.replace(cfg, source_widths=widths)


def check_capacity(cfg: SIDConfig, items: int) -> None:
    """Raises ValueError where there are more items than SIDs, and all must differ."""
    capacity = cfg.codes**cfg.levels
    if cfg.conflict.startswith("psid") and items > capacity:
        raise ValueError(
            f"config.sid: {items} items do not fit {cfg.codes}^{cfg.levels} = "
            f"{capacity} SIDs; raise codes or levels"
        )


# ------------------------------------------------------------------- as part of another system


def make_artifact(config: ConfigDict, loaded: Loaded, vectors: np.ndarray) -> dict[str, Any]:
    """Makes the SID table of a catalogue: of an earlier run, of a published file, or fitted here.

    Args:
        vectors: float32 [N, d] of the texts.

    Returns: {"table": int32 [N, L], "sizes", "greedy_sizes", "sha256", "report", "params"}.

    Raises:
        UserError: a run or file that is not of these items.
        ValueError: more items than codes, a group that overflows the counter.
    """
    cfg = tokenizer_config(config)
    check_capacity(cfg, len(loaded.corpus.items))
    if config.sid.run:
        artifact = read_run(config.sid.run, loaded.corpus.items)
    elif config.sid.table:
        artifact = read_table(config, loaded)
    else:
        joined, widths = sources.inputs(config.sid.sources, vectors, loaded.split.train)
        cfg = with_widths(cfg, widths)
        params = tokenizer.fit(jax.random.key(config.seed), joined, cfg)
        artifact = pack_tokenizer(params, joined, cfg)
    if config.sid.shuffle:
        artifact["table"] = table.shuffled(artifact["table"], config.seed)
        artifact["sha256"] = table.sha256(artifact["table"], tuple(artifact["sizes"]))
    quality = artifact["report"]
    print(
        f"SIDs {artifact['sha256'][:12]}: {quality['distinct']:,.0f} distinct before conflicts are "
        f"settled, uniqueness {quality['uniqueness']:.3f}, largest group "
        f"{quality['largest_group']:.0f}"
    )
    warning = report.reason(quality, tuple(artifact["greedy_sizes"]))
    if warning:
        print(f"warning: {warning}")
    return artifact


def pack_tokenizer(params: Any, vectors: np.ndarray, cfg: SIDConfig) -> dict[str, Any]:
    """Packs a fitted tokenizer and the SIDs it gives as an artifact."""
    sids = tokenizer.assign(params, vectors, cfg)
    return {
        "table": sids,
        "sizes": list(cfg.sizes),
        "greedy_sizes": list(cfg.sizes[: cfg.levels]),
        "sha256": table.sha256(sids, cfg.sizes),
        "report": encode_and_report(params, vectors, cfg)[1],
        "params": flatten(params),
    }


def encode_and_report(
    params: Any, vectors: np.ndarray, cfg: SIDConfig
) -> tuple[np.ndarray, dict[str, float]]:
    """Encodes items greedily, int32 [N, L], before conflicts are settled, and reports the quality
    of the codes."""
    codes = tokenizer.encode(params, vectors, cfg)
    decoded = tokenizer.reconstruct(params, codes, cfg)
    return codes, report.report(codes, cfg.sizes[: cfg.levels], vectors, decoded)


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Flattens a tokenizer's parameters to {path: array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {join_path(path): np.asarray(leaf) for path, leaf in leaves}


def join_path(path: Any) -> str:
    """Joins the keys that lead to a leaf by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def read_run(folder: str, items: list[str]) -> dict[str, Any]:
    """Reads the table that a finished run of system "sid" left.

    Raises:
        UserError: no such run, or a run on other items.
    """
    step, _ = serving.step_to_serve(Path(folder))
    saved = checkpoint.read(folder, step)
    artifacts = saved["artifacts"]
    if saved["config"]["system"] != "sid":
        raise UserError(f"config.sid.run={folder} is a run of {saved['config']['system']}, not sid")
    if artifacts["items"] != items:
        raise UserError(
            f"config.sid.run={folder} has SIDs of {len(artifacts['items']):,} other items than the "
            f"{len(items):,} here: give both runs the same config.data"
        )
    cfg = tokenizer_config(settings.from_json(saved["config"]))
    cfg = with_widths(cfg, tuple(artifacts.get("source_widths", ())))
    vectors = np.asarray(artifacts["features"])
    return pack_tokenizer(restore_params(cfg, saved, vectors), vectors, cfg)


def restore_params(cfg: SIDConfig, saved: Mapping[str, Any], vectors: np.ndarray) -> Any:
    """Restores tokenizer parameters of a checkpoint, in the containers the tokenizer gives them."""
    x = jax.ShapeDtypeStruct(vectors.shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(tokenizer.make(cfg).init, key, x)["params"]
    leaves = flatten(saved["state"]["params"])
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(leaves[join_path(path)]), shapes
    )


def read_table(config: ConfigDict, loaded: Loaded) -> dict[str, Any]:
    """Reads a published table, whose rows are the items of the whole corpus by first appearance.

    Raises:
        UserError: a missing or malformed file, or one of another number of items.
    """
    path = Path(config.sid.table).expanduser()
    try:
        if not path.is_file():
            path = data.locate(config.sid.table, config.data.root)
        published = sid_files.read_sids(path)
    except (UserError, ValueError, OSError) as error:
        raise UserError(f"config.sid.table: {error}") from error
    whole = ConfigDict(config.to_dict())
    whole.data.core = 0
    items = wiring.load(whole).corpus.items
    if len(items) != len(published):
        raise UserError(
            f"config.sid.table={config.sid.table} has {len(published):,} items, "
            f"{config.data.name} {len(items):,}"
        )
    number = {name: i for i, name in enumerate(items)}
    codes = published[[number[name] for name in loaded.corpus.items]]
    greedy_sizes = tuple(int(size) for size in published.max(axis=0) + 1)
    cfg = tokenizer_config(config)
    sids = codes
    sizes = greedy_sizes
    if cfg.conflict == "digit":
        sids = conflict.add_digit(codes, cfg.digit_limit)
        sizes = (*greedy_sizes, cfg.digit_limit)
    return {
        "table": sids,
        "sizes": list(sizes),
        "greedy_sizes": list(greedy_sizes),
        "sha256": table.sha256(sids, sizes),
        "report": report.report(codes, greedy_sizes),
        "params": {},
    }


# ------------------------------------------------------------------------------- as a run alone


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes items and their features."""
    loaded = wiring.load(config)
    corpus = loaded.corpus
    cfg = tokenizer_config(config)
    check_capacity(cfg, len(corpus.items))
    text = wiring.load_features(config, loaded)
    vectors, widths = sources.inputs(config.sid.sources, text, loaded.split.train)
    tokenizer.check_features(vectors, with_widths(cfg, widths))
    print(f"{corpus.name}: {len(corpus.items):,} items of {vectors.shape[1]} features")
    return {
        "items": corpus.items,
        "texts": corpus.texts,
        "features": vectors,
        "source_widths": list(widths),
    }


def check_training(config: ConfigDict, is_trained: bool) -> None:
    """Raises ValueError where nothing is left to train, or config.train.steps differs from what the
    method trains."""
    if config.sid.run or config.sid.table or config.sid.shuffle:
        raise ValueError("config.sid.run, table and shuffle are for the systems that read SIDs")
    if not is_trained and config.train.steps:
        raise ValueError(
            f"config.train.steps={config.train.steps}: config.sid.method={config.sid.method} is "
            "complete without training: --config.train.steps=0"
        )
    if is_trained and config.train.steps != config.sid.steps:
        raise ValueError(
            f"config.train.steps={config.train.steps} must equal config.sid.steps="
            f"{config.sid.steps}, which decides when levels change"
        )


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; see `check_training`.
    """
    settings.one_seed(config)
    cfg = with_widths(tokenizer_config(config), tuple(artifacts.get("source_widths", ())))
    learner = tokenizer.make(cfg)
    is_trained = learner.update is not None
    check_training(config, is_trained)
    vectors = np.asarray(artifacts["features"], np.float32)
    batch = {"features": vectors}

    def init(key: jax.Array) -> dict[str, Any]:
        return {**learner.init(jax.random.fold_in(key, 0), jnp.asarray(vectors)), "key": key}

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        assert learner.update is not None
        learner_state = {name: leaf for name, leaf in state.items() if name != "key"}
        key = jax.random.fold_in(state["key"], 1)
        learner_state, metrics = learner.update(learner_state, batch["features"], key)
        return {**learner_state, "key": state["key"]}, metrics

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        _, quality = encode_and_report(state["params"], vectors, cfg)
        return {f"{split}/{name}": value for name, value in quality.items()}

    def draw_figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        del records
        codes, quality = encode_and_report(state["params"], vectors, cfg)
        return {
            "Semantic IDs": figures.sid_rows(quality, cfg.levels),
            "Codes in use": figures.draw_usage(codes, cfg.sizes[: cfg.levels]),
            "Examples": list_examples(codes, artifacts["items"], artifacts["texts"]),
        }

    return Experiment(
        init=init,
        step=step if is_trained else None,
        batch=(lambda step, rows=None: batch) if is_trained else None,
        evaluate=evaluate,
        rules=RULES,
        selectable=("valid/uniqueness", "valid/reconstruction"),
        figures=draw_figures,
    )


def list_examples(codes: np.ndarray, items: Sequence[str], texts: Sequence[str]) -> Rows:
    """Lists a few items, evenly spaced, in order of their codes."""
    chosen = np.linspace(0, len(codes) - 1, SHOWN_ITEMS).astype(int)
    by_code = chosen[np.lexsort(codes[chosen].T[::-1])]
    rows = tuple(
        ("-".join(map(str, codes[i])), items[i], wiring.shorten(texts[i]))
        for i in map(int, by_code)
    )
    caption = "A few items in order of their codes: neighbors should be alike."
    return Rows(("codes", "item", "text"), rows, caption)
