# SPDX-License-Identifier: Apache-2.0
"""The systems `lm` and `passkey`: numbers by hand, meshes, pictures, actions, misuse."""

import io
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from attention import data as texts
from attention.lm import loading, model, passkey
from experiments.runner import loop, reopen, results, settings
from experiments.runner.assemble import Assembly, assemble, initial_state
from experiments.runner.contract import Picture
from experiments.runner.errors import UserError
from experiments.runner.hosts import to_host
from experiments.runner.queries import Query
from experiments.systems.attention import lm as system
from experiments.systems.attention import passkey as passkey_system
from tests.systems.contract_test import on_devices
from tests.tiny_systems import assert_same_training, run_compiled, tiny


@pytest.fixture(scope="module")
def asm() -> Assembly:
    return assemble(tiny("lm", mesh=(8, 1), model__attention="tda"))


@pytest.fixture(scope="module")
def state(asm: Assembly) -> Any:
    return jax.device_get(initial_state(asm))


def test_valid_loss_by_hand(asm: Assembly, state: Any) -> None:
    """Log-softmax in NumPy over evenly spaced stretches of the last tenth of the text."""
    found = to_host(asm.experiment.evaluate(state, "valid"))
    text = texts.made_text(0, system.MADE_CHARACTERS)[180_000:]
    alphabet = sorted(set(texts.made_text(0, system.MADE_CHARACTERS)))
    tokens = np.array([alphabet.index(c) for c in text])
    starts = np.linspace(0, len(tokens) - 33, 16).astype(int)
    ids = np.stack([tokens[s : s + 33] for s in starts]).astype(np.int32)
    logits = np.asarray(model.forward(state["params"], _model(asm), ids[:, :-1]).logits, np.float64)
    total = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, ids[:, 1:, None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(found["valid/loss"], (total - picked).mean(), rtol=1e-5)
    assert 1.0 < found["valid/loss/bigram"] < found["valid/loss/unigram"] < np.log(25)
    lengths = to_host(asm.experiment.evaluate(state, "lengths"))
    np.testing.assert_allclose(lengths["lengths/loss@32"], found["valid/loss"], rtol=1e-6)
    assert {"lengths/zeros@64", "lengths/first_token/uniform@64"} <= set(lengths)


def _model(asm: Assembly) -> Any:
    from experiments.runner import settings

    return settings.groups(asm.config)["model"]


@pytest.mark.deep
@pytest.mark.trains
def test_meshes_agree_and_heads_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 device = 4 = data 2 x model 2: batches over data, heads and hidden units over model."""
    runs = {}
    for mesh, count in (((1, 1), 1), ((4, 1), 4), ((2, 2), 4)):
        one = on_devices(tiny("lm", model__attention="tda"), mesh, count)
        state, metrics, text = run_compiled(one, 2)
        runs[mesh] = state, metrics
        if count > 1:
            assert re.search(r"\ball-reduce(-start)?\(", text)
        if mesh == (2, 2):
            for name in ("q", "k", "v"):
                leaf = state["params"]["blocks"]["attn"][name]
                assert leaf.addressable_shards[0].data.shape[2] == leaf.shape[2] // 2
    for mesh in ((4, 1), (2, 2)):
        # Losses to 4e-7 of themselves, moments to 5e-5 of the largest over seeds and draws of last
        # bits: a score that crosses its threshold has another gradient.
        assert_same_training(runs[mesh], runs[1, 1], share=1e-3)
    assert np.ptp([m["loss"] for m in runs[1, 1][1]]) > 1e-3  # of different batches
    monkeypatch.delenv("BANYAN_MARGINS", raising=False)  # what is to fail is no margin
    with pytest.raises(AssertionError, match=r"loss|moments"):
        assert_same_training(run_with_gradients_of_one_device(), runs[1, 1])


def run_with_gradients_of_one_device() -> tuple[Any, list[dict[str, Any]]]:
    """State and metrics after two updates on the first of four parts of the batch alone, as where
    gradients are not summed over devices."""
    one = on_devices(tiny("lm", model__attention="tda"), (1, 1), 1)
    batch = one.experiment.batch
    assert batch is not None

    def first_part(step: int, rows: Any = None) -> dict[str, np.ndarray]:
        ids = batch(step, rows)["ids"]
        return {"ids": np.tile(ids[: len(ids) // 4], (4, 1))}

    one = one._replace(experiment=one.experiment._replace(batch=first_part))
    state, metrics, _ = run_compiled(one, 2)
    return state, metrics


@pytest.mark.deep
def test_pictures_and_sample(asm: Assembly, state: Any) -> None:
    experiment = asm.experiment
    records = [
        results.record_of(0, split, to_host(experiment.evaluate(state, split)))
        for split in experiment.splits
    ]
    assert experiment.figures is not None
    pictures = experiment.figures(records, state)
    assert len(pictures) == 3
    for title, picture in pictures.items():
        assert isinstance(picture, Picture) and len(picture.caption) > 40, title
        image = Image.open(io.BytesIO(picture.data))
        assert image.format == "PNG" and min(image.size) > 150, title
    sample = experiment.actions["sample"]
    text = sample(state, Query("the old"))
    assert text.startswith("the old") and text == sample(state, Query("the old"))
    assert len(text) == len("the old") + system.SAMPLED * 32
    for query, words in (("", "give the beginning"), ("Ünknown", "outside the vocabulary")):
        with pytest.raises(UserError, match=words):
            sample(state, Query(query))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("lm", {"model__vocab_size": 20}, "config.model.vocab_size=20.*needs 25"),
        ("lm", {"num_seeds": 2}, "config.num_seeds=2: lm trains one seed per run"),
        ("lm", {"optim__microbatches": 3}, "config.optim.microbatches=3 must divide"),
        ("lm", {"data__text": "nowhere.txt"}, r"missing data file .*nowhere\.txt"),
        ("lm", {"eval__lengths": (32, 30_000)}, "validation tokens are too few for stretches"),
        ("passkey", {"model__vocab_size": 20}, "config.model.vocab_size=20 must be 24"),
        ("passkey", {"eval__lengths": (32, 6)}, r"config.eval.lengths: \[6\] are below 8"),
    ],
)
def test_misuse(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        loop.train(tiny(name, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model__attention", "sparse", "attention='sparse': must be one of .*tda"),
        ("model__heads", 3, "heads=3: must be a multiple of kv_heads"),
        ("model__beta", 0.0, "beta=0.0: must be > 0"),
        ("data__tokenizer", "word", "tokenizer='word': must be one of"),
        ("data__valid_share", 1.0, "valid_share=1.0"),
        ("optim__lr", -1.0, "lr=-1.0"),
        ("eval__head_rows", 100, "head_rows=100: at most rows=16"),
    ],
)
def test_values_out_of_range(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny("lm", **{key: value})


@pytest.mark.deep
@pytest.mark.trains
def test_another_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on with the text it began with, wherever that lies, or not at all."""
    one, other = texts.made_text(1, 4000), texts.made_text(2, 4000)
    (tmp_path / "text.txt").write_text(one)
    text = str(tmp_path / "text.txt")
    few = {"train__steps": 2, "eval__every": 2, "eval__lengths": (32,), "model__layers": 1}
    loop.train(tiny("lm", data__text=text, **few), tmp_path / "run")
    assert reopen.check(tmp_path / "run") == []
    (tmp_path / "text.txt").write_text(other)
    with pytest.raises(UserError, match="is not the text this run began with"):
        reopen.check(tmp_path / "run")


def test_bpe_reads_any_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_text(texts.made_text(0, 6000) + "Grüße, 世界\n" * 40)
    config = tiny(
        "lm",
        data__text=str(tmp_path / "text.txt"),
        data__tokenizer="bpe",
        model__vocab_size=300,
        eval__lengths=(32,),
    )
    asm = assemble(config)
    assert asm.experiment.batch is not None
    ids = asm.experiment.batch(0)["ids"]
    assert ids.shape == (8, 33) and ids.max() < 300
    made = system.tokenizer.from_json(asm.artifacts["tokenizer"])
    assert made.decode(made.encode("Grüße, 世界 cat")) == "Grüße, 世界 cat"


def test_passkey_accuracy_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers by search has accuracy 1, one that is wrong in one digit 0."""
    config = tiny("passkey")
    task = passkey_system.task_of(config)

    def oracle(shift: int) -> Any:
        def forward(params: Any, cfg: Any, ids: Any) -> Any:
            del params

            def answer(row: np.ndarray) -> np.ndarray:
                whole = np.concatenate([row, row[:, -1:]], axis=1)  # the last digit is not shown
                found = passkey.solve(task, whole)
                found[:, -1] = task.noise + (found[:, -1] - task.noise + shift) % 10
                logits = np.zeros((*row.shape, cfg.vocab_size), np.float32)
                for t in range(task.digits):
                    at = row.shape[1] - task.digits + t
                    logits[np.arange(len(row)), at, found[:, t]] = 9.0
                return logits

            shape = jax.ShapeDtypeStruct((*ids.shape, cfg.vocab_size), np.float32)
            return model.LMOut(
                jax.pure_callback(answer, shape, ids, vmap_method="sequential"), {}, None
            )

        return forward

    for shift, want in ((0, 1.0), (1, 0.0)):
        monkeypatch.setattr(passkey_system.model, "forward", oracle(shift))
        asm = assemble(config)
        found = asm.experiment.evaluate({"params": {}}, "lengths")
        assert found["lengths/accuracy@32"] == found["lengths/accuracy@64"] == want


@pytest.mark.parametrize("name", ["lm", "passkey"])
def test_frequencies_are_stretched_beyond_the_training_length(name: str) -> None:
    """With eval.ntk, the test at twice the length changes and the one at the length does not."""
    plain, ntk = (assemble(tiny(name, eval__ntk=given)) for given in (False, True))
    state = jax.device_get(initial_state(plain))
    one = to_host(plain.experiment.evaluate(state, "lengths"))
    two = to_host(ntk.experiment.evaluate(state, "lengths"))
    assert one["lengths/loss@32"] == two["lengths/loss@32"]
    assert one["lengths/loss@64"] != two["lengths/loss@64"]


def test_passkey_pictures() -> None:
    asm = assemble(tiny("passkey"))
    state = jax.device_get(initial_state(asm))
    assert asm.experiment.figures is not None
    (picture,) = asm.experiment.figures([], state).values()
    assert isinstance(picture, Picture) and picture.caption
    assert Image.open(io.BytesIO(picture.data)).format == "PNG"


@pytest.mark.deep
def test_a_published_model_reads_back(tmp_path: Path) -> None:
    """Bit-equal parameters and the same config, through the reader of published models."""
    published = {"model__norm": "rms", "model__mlp": "swiglu", "model__qk_norm": True}
    asm = assemble(tiny("lm", **published))
    state = initial_state(asm)
    files = asm.experiment.actions["publish"](state, Query(""))
    assert isinstance(files, dict)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    params, cfg = loading.load(tmp_path)
    asked = settings.groups(asm.config)["model"]
    assert (cfg.width, cfg.layers, cfg.qk_norm) == (asked.width, asked.layers, True)
    saved = jax.device_get(state["params"])
    assert jax.tree.structure(saved) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(saved), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    plain = assemble(tiny("lm"))
    with pytest.raises(UserError, match="--mode=publish: norm='layer' has no published layout"):
        plain.experiment.actions["publish"](initial_state(plain), Query(""))
