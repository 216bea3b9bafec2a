# SPDX-License-Identifier: Apache-2.0
"""Wiring of semantic IDs: a tokenizer as a run of its own, or inside another one's prepare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import checkpoint, data, settings
from experiments.runner.contract import Experiment, Rows
from experiments.runner.errors import UserError
from experiments.systems.rec.recommenders import figures as recommenders_figures
from experiments.systems.rec.recommenders import wiring as recommenders
from rec.data import sid_files
from rec.sid import conflict, table, tokenizer
from rec.sid import report as reports
from rec.sid.config import SIDConfig

RULES = ((r"batch/features", P()),)


def tokenizer_config(config: ConfigDict) -> SIDConfig:
    """The tokenizer's own part of config.sid."""
    return settings.groups(config)["sid"]


def check_room(cfg: SIDConfig, items: int) -> None:
    """Raises ValueError: more items than there are SIDs, where all must differ."""
    if cfg.conflict.startswith("psid") and items > cfg.codes**cfg.levels:
        raise ValueError(
            f"config.sid: {items} items do not fit {cfg.codes}^{cfg.levels} = "
            f"{cfg.codes**cfg.levels} SIDs; raise codes or levels"
        )


# ------------------------------------------------------------------- as part of another system


def artifact(config: ConfigDict, loaded: recommenders.Loaded, vectors: np.ndarray) -> dict:
    """The SID table of a catalogue: of an earlier run, of a published file, or fitted here.

    Returns: {"table": int32 [N, L], "sizes", "greedy_sizes", "sha256", "report", "params"}.

    Raises:
        UserError: a run or file that is not of these items.
        ValueError: more items than codes, a group that overflows the counter.
    """
    cfg = tokenizer_config(config)
    check_room(cfg, len(loaded.corpus.items))
    if config.sid.run:
        found = of_run(config.sid.run, loaded.corpus.items)
    elif config.sid.table:
        found = of_file(config, loaded)
    else:
        params = tokenizer.fit(jax.random.key(config.seed), vectors, cfg)
        found = finished(params, vectors, cfg)
    if config.sid.shuffle:
        found["table"] = table.shuffled(found["table"], config.seed)
        found["sha256"] = table.sha256(found["table"], tuple(found["sizes"]))
    told = found["report"]
    print(
        f"SIDs {found['sha256'][:12]}: {told['distinct']:,.0f} distinct before conflicts are "
        f"settled, uniqueness {told['uniqueness']:.3f}, largest group {told['largest_group']:.0f}"
    )
    words = reports.reason(told, tuple(found["greedy_sizes"]))
    if words:
        print(f"warning: {words}")
    return found


def finished(params: Any, vectors: np.ndarray, cfg: SIDConfig) -> dict[str, Any]:
    """A fitted tokenizer as artifact."""
    sids = tokenizer.assign(params, vectors, cfg)
    return {
        "table": sids,
        "sizes": list(cfg.sizes),
        "greedy_sizes": list(cfg.sizes[: cfg.levels]),
        "sha256": table.sha256(sids, cfg.sizes),
        "report": judged(params, vectors, cfg)[1],
        "params": flat(params),
    }


def judged(params: Any, vectors: np.ndarray, cfg: SIDConfig) -> tuple[np.ndarray, dict[str, float]]:
    """Greedy codes int32 [N, L], before conflicts are settled, and their report."""
    codes = tokenizer.encode(params, vectors, cfg)
    decoded = tokenizer.reconstruct(params, codes, cfg)
    return codes, reports.report(codes, cfg.sizes[: cfg.levels], vectors, decoded)


def flat(params: Any) -> dict[str, np.ndarray]:
    """{path: array} of a tokenizer's parameters."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def of_run(folder: str, items: list[str]) -> dict[str, Any]:
    """The table a finished run of system "sid" left.

    Raises:
        UserError: no such run, or a run on other items.
    """
    saved = checkpoint.read(folder)
    kept = saved["artifacts"]
    if saved["config"]["system"] != "sid":
        raise UserError(f"config.sid.run={folder} is a run of {saved['config']['system']}, not sid")
    if kept["items"] != items:
        raise UserError(
            f"config.sid.run={folder} has SIDs of {len(kept['items']):,} other items than the "
            f"{len(items):,} here: give both runs the same config.data"
        )
    config = settings.from_json(saved["config"])
    cfg = tokenizer_config(config)
    return finished(restored(cfg, saved, kept), np.asarray(kept["features"]), cfg)


def restored(cfg: SIDConfig, saved: Mapping[str, Any], kept: Mapping[str, Any]) -> Any:
    """Tokenizer parameters of a checkpoint, in the containers the tokenizer gives them."""
    made = tokenizer.make(cfg)
    x = jax.ShapeDtypeStruct(np.asarray(kept["features"]).shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    wanted = jax.eval_shape(made.init, key, x)["params"]
    leaves = flat(saved["state"]["params"])
    return jax.tree_util.tree_map_with_path(
        lambda p, _: jnp.asarray(leaves[jax.tree_util.keystr(p, simple=True, separator="/")]),
        wanted,
    )


def of_file(config: ConfigDict, loaded: recommenders.Loaded) -> dict[str, Any]:
    """A published table, whose rows are the items of the whole corpus by first appearance.

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
    items = recommenders.load(whole).corpus.items
    if len(items) != len(published):
        raise UserError(
            f"config.sid.table={config.sid.table} has {len(published):,} items, "
            f"{config.data.name} {len(items):,}"
        )
    number = {name: i for i, name in enumerate(items)}
    codes = published[[number[name] for name in loaded.corpus.items]]
    sizes = tuple(int(s) for s in published.max(axis=0) + 1)
    cfg = tokenizer_config(config)
    sids, all_sizes = codes, sizes
    if cfg.conflict == "digit":
        sids = conflict.add_digit(codes, cfg.digit_limit)
        all_sizes = (*sizes, cfg.digit_limit)
    return {
        "table": sids,
        "sizes": list(all_sizes),
        "greedy_sizes": list(sizes),
        "sha256": table.sha256(sids, all_sizes),
        "report": reports.report(codes, sizes),
        "params": {},
    }


# ------------------------------------------------------------------------------- as a run alone


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Items and their features."""
    loaded = recommenders.load(config)
    cfg = tokenizer_config(config)
    check_room(cfg, len(loaded.corpus.items))
    vectors = recommenders.features(config, loaded)
    tokenizer.check_features(vectors, cfg)
    print(
        f"{loaded.corpus.name}: {len(loaded.corpus.items):,} items of {vectors.shape[1]} features"
    )
    return {"items": loaded.corpus.items, "texts": loaded.corpus.texts, "features": vectors}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds; config.train.steps differs from what the method trains; a table
            or run, which leaves nothing to train.
    """
    settings.one_seed(config)
    if config.sid.run or config.sid.table or config.sid.shuffle:
        raise ValueError("config.sid.run, table and shuffle are for the systems that read SIDs")
    cfg = tokenizer_config(config)
    made = tokenizer.make(cfg)
    if made.update is None and config.train.steps:
        raise ValueError(
            f"config.train.steps={config.train.steps}: config.sid.method={cfg.method} is complete "
            "without training: --config.train.steps=0"
        )
    if made.update is not None and config.train.steps != cfg.steps:
        raise ValueError(
            f"config.train.steps={config.train.steps} must equal config.sid.steps={cfg.steps}, "
            "which decides when levels change"
        )
    vectors = np.asarray(artifacts["features"], np.float32)
    batch = {"features": vectors}

    def init(key: jax.Array) -> dict[str, Any]:
        return {**made.init(jax.random.fold_in(key, 0), jnp.asarray(vectors)), "key": key}

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        assert made.update is not None
        own = {k: v for k, v in state.items() if k != "key"}
        key = jax.random.fold_in(state["key"], 1)
        new, metrics = made.update(own, batch["features"], key)
        return {**new, "key": state["key"]}, metrics

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        told = judged(state["params"], vectors, cfg)[1]
        return {f"{split}/{name}": value for name, value in told.items()}

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, bytes | Rows]:
        del records
        codes, told = judged(state["params"], vectors, cfg)
        few = np.linspace(0, len(codes) - 1, 12).astype(int)
        examples = tuple(
            ("-".join(map(str, codes[i])), artifacts["items"][i],
             recommenders.short(artifacts["texts"][i]))
            for i in few[np.lexsort(codes[few].T[::-1])]
        )  # fmt: skip
        return {
            "Semantic IDs": recommenders_figures.sid_rows(told, cfg.levels),
            "Codes in use": recommenders_figures.usage_picture(codes, cfg.sizes[: cfg.levels]),
            "Examples": Rows(("codes", "item", "text"), examples),
        }

    return Experiment(
        init=init,
        step=step if made.update is not None else None,
        batch=(lambda step, rows=None: batch) if made.update is not None else None,
        evaluate=evaluate,
        rules=RULES,
        selectable=("valid/uniqueness", "valid/reconstruction"),
        figures=figures,
    )
