# SPDX-License-Identifier: Apache-2.0
"""What students of a generator share: the teacher as artifact, its parameters beside a batch, and
an evaluation that puts teacher and student side by side.

The teacher's parameters are no part of a state, for nothing trains them: they come from the
artifacts, travel as leaves "teacher/<path>" of every batch (the same objects, so sent once), and
are joined with the student's before a model is applied.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.configs.rec.sid_mlp import StudentEval
from experiments.runner import checkpoint, names, serving, settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.rec import tiger
from experiments.systems.rec.recommenders import generators, wiring
from experiments.systems.rec.recommenders.generators import Catalogue, Decoder, Evaluation
from experiments.systems.rec.recommenders.wiring import Loaded, Ranking
from rec import augment, metrics
from rec.data import cards
from rec.models import generators as models
from rec.models import sid_mlp
from rec.models.config import TigerConfig
from rec.models.packed import Packed
from rec.models.sid_mlp import SidMlp
from rec.models.tiger import Tiger
from rec.sid import table
from rec.training import Step

RULES = (
    (r"batch/row", P("data")),
    (r"batch/.*", P()),
)
TEACHER = "teacher/"
"""Leaves of a batch whose names begin so are the teacher's parameters."""
SPLIT_KEYS = ("split", "valid_from", "test_from")
SPLIT_COUNTS = ("train_interactions", "valid_queries", "test_queries")
OF_THE_DATA = ("items", "texts", "card", "rows", "ranks", "plus", "popularity", "sid")
"""Artifacts of a teacher that are its student's as they are."""
MAKE_TEACHER = "python experiments/run.py --config=tiger:t5 --workdir=runs/teacher"


# ------------------------------------------------------------------------------------ the teacher


class Taught(NamedTuple):
    """Holds what a student takes from a trained generator."""

    model: TigerConfig
    params: Mapping[str, Any]
    """Nested, float arrays."""
    artifacts: Mapping[str, Any]
    """Of its run."""


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Takes parameters, SID table and the rows without training of the teacher, which are those of
    the same data, and makes the exponents of pairs.

    Raises:
        UserError: no teacher, or one that does not fit; see `read_teacher`.
    """
    loaded = wiring.load(config)
    if config.teacher:
        taught = read_teacher(config, loaded)
    elif config.distill.brief_teacher:
        taught = train_brief_teacher(config)
    else:
        raise UserError(
            f"config.teacher is empty: {config.system} learns from a finished run of tiger; make "
            f"one, {MAKE_TEACHER}, and add --config.teacher=runs/teacher"
        )
    artifacts = {name: taught.artifacts[name] for name in OF_THE_DATA}
    if config.eval.policy == "relevance":
        artifacts["features"] = wiring.load_features(config, loaded)
    artifacts |= generators.prepare_exponents(config, loaded, taught.model.max_items)
    artifacts["teacher"] = {"model": dataclasses.asdict(taught.model), "params": taught.params}
    return artifacts


def read_teacher(config: ConfigDict, loaded: Loaded) -> Taught:
    """Reads the run that config.teacher names.

    Raises:
        UserError: no finished run of tiger, or one with other interactions, another split, or
            parameters of other SIDs than its table.
    """
    named = f"config.teacher={config.teacher}"
    folder = Path(config.teacher)
    if not (folder / "results.json").is_file():
        raise UserError(
            f"{named}: no finished run is there (no results.json); finish it by the command that "
            f"began it, or make one: {MAKE_TEACHER}"
        )
    step, _ = serving.step_to_serve(folder)
    values = checkpoint.read_json(folder, step)
    if values["system"] != "tiger":
        raise UserError(f"{named}: its system is {values['system']!r}, not 'tiger'")
    saved = checkpoint.read(folder, step)
    artifacts = saved["artifacts"]
    _check_data(named, config, values, artifacts["card"], loaded)
    sid = artifacts["sid"]
    sha256 = table.sha256(np.asarray(sid["table"], np.int32), tuple(map(int, sid["sizes"])))
    trained_with = np.asarray(saved["state"]["sid_sha256"]).tobytes().hex()
    if not sha256 == sid["sha256"] == trained_with:
        raise UserError(
            f"{named}: its SID hash differs: its table has {sha256[:12]}, its artifacts say "
            f"{sid['sha256'][:12]}, its parameters were trained with {trained_with[:12]}"
        )
    model = settings.groups(settings.from_json(values))["model"]
    print(f"teacher {folder}: step {step}, layout {model.layout}, SIDs {sha256[:12]}")
    return Taught(model, saved["state"]["params"], artifacts)


def _check_data(
    named: str,
    config: ConfigDict,
    values: Mapping[str, Any],
    card: Mapping[str, Any],
    loaded: Loaded,
) -> None:
    """Raises UserError where a teacher learned from other interactions than the student will.

    Args:
        named: the field that names the teacher, and its value.
        values, card: config and data card of the teacher's run.
    """
    own = cards.card(loaded.corpus, loaded.split)
    remedy = "give both runs the same config.data"
    if card["sha256_sequences"] != own["sha256_sequences"]:
        raise UserError(
            f"{named}: its sha256_sequences is {card['sha256_sequences'][:12]}, of config.data "
            f"here {str(own['sha256_sequences'])[:12]}: {remedy}"
        )
    keys = SPLIT_KEYS if config.data.split == "temporal" else SPLIT_KEYS[:1]
    differing = [
        f"config.data.{key} {values['data'][key]!r}, here {config.data[key]!r}"
        for key in keys
        if values["data"][key] != config.data[key]
    ]
    differing += [
        f"{key} {card[key]}, here {own[key]}" for key in SPLIT_COUNTS if card[key] != own[key]
    ]
    if differing:
        raise UserError(f"{named}: its split differs: {differing[0]}: {remedy}")


def train_brief_teacher(config: ConfigDict) -> Taught:
    """Trains the variant of tiger that config.distill.brief_teacher names, for its few updates."""
    data = json.dumps(config.data.to_dict(), sort_keys=True)
    return _train_brief_teacher(config.distill.brief_teacher, data, config.seed)


@functools.lru_cache(maxsize=2)
def _train_brief_teacher(variant: str, data: str, seed: int) -> Taught:
    teacher_config = names.config_module("tiger").get_config(variant)
    teacher_config.data = ConfigDict(json.loads(data))
    teacher_config.seed = seed
    groups = settings.groups(teacher_config)
    artifacts = tiger.prepare(teacher_config)
    experiment = tiger.make(teacher_config, artifacts)
    assert experiment.step is not None and experiment.batch is not None
    state = jax.jit(experiment.init)(jax.random.key(seed))
    step = jax.jit(experiment.step, donate_argnums=0)
    metrics_of_step: Mapping[str, Any] = {}
    for number in range(teacher_config.train.steps):
        state, metrics_of_step = step(state, experiment.batch(number))
    print(
        f"teacher tiger:{variant}: {teacher_config.train.steps} updates, loss "
        f"{float(metrics_of_step['loss']):.3f}"
    )
    params = jax.tree.map(np.asarray, state["params"])
    return Taught(groups["model"], params, artifacts)


def load_teacher_config(artifacts: Mapping[str, Any]) -> TigerConfig:
    """Reads the sizes of the teacher from a student's artifacts."""
    return TigerConfig(**artifacts["teacher"]["model"])


def teacher_leaves(artifacts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Lists the teacher's parameters as leaves of a batch."""
    flat = traverse_util.flatten_dict(artifacts["teacher"]["params"], sep="/")
    return {TEACHER + path: np.asarray(leaf) for path, leaf in flat.items()}


def teacher_params(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Nests the teacher's parameters among the leaves of a batch."""
    flat = {
        name.removeprefix(TEACHER): leaf for name, leaf in batch.items() if name.startswith(TEACHER)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


# ------------------------------------------------------------------------------------ the student


class Student(NamedTuple):
    """Holds a student, and what its wiring reads."""

    model: SidMlp
    catalogue: Catalogue
    evaluation: Evaluation
    exponents: augment.Exponents

    def draw_pairs(self, key: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Draws histories and targets, see `generators.draw_pairs`."""
        max_items = self.model.teacher.cfg.max_items
        return generators.draw_pairs(key, batch, self.exponents, max_items)

    def dropout_key(self, key: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
        """Derives a key that no row's pair is drawn with: rows have the keys 0 to rows - 1."""
        return jax.random.fold_in(key, len(batch["row"]))


def make_student(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    make_reader: Callable[[Tiger | Packed], Any],
) -> Student:
    """Makes a student of the teacher among the artifacts.

    Args:
        make_reader: teacher -> what the student reads histories with, see `SidMlp.reader`.
    """
    groups = settings.groups(config)
    catalogue = generators.load_catalogue(artifacts)
    teacher = models.make(load_teacher_config(artifacts), catalogue.sizes)
    model = SidMlp(groups["distill"], teacher, make_reader(teacher))
    evaluation = make_evaluation(config, artifacts, catalogue, model)
    exponents = generators.choose_exponents(config, artifacts)
    return Student(model, catalogue, evaluation, exponents)


def make_evaluation(
    config: ConfigDict, artifacts: Mapping[str, Any], catalogue: Catalogue, model: SidMlp
) -> Evaluation:
    """Makes what computes metrics and answers of a student's states, beside its teacher's."""
    eval_config: StudentEval = settings.groups(config)["eval"]
    max_items = model.teacher.cfg.max_items
    generator = generators.make_generator(
        model.clone(folded=eval_config.fold),
        catalogue,
        eval_config,
        max_items=max_items,
        children_only=eval_config.children_only,
    )
    of_teacher = generators.make_generator(
        model.teacher, catalogue, eval_config, max_items=max_items
    )
    # On the device once, however many batches are decoded.
    params = functools.cache(lambda: jax.tree.map(jnp.asarray, artifacts["teacher"]["params"]))
    teacher = Evaluation(
        config,
        artifacts,
        Decoder(of_teacher, catalogue, eval_config),
        lambda state: params(),
    )
    fold = jax.jit(functools.partial(sid_mlp.fold, model))

    def join(state: Mapping[str, Any]) -> Any:
        joined = {**state["params"], "teacher": params()}
        return fold(joined) if eval_config.fold else joined

    beside = make_beside(teacher, catalogue, eval_config.draws)
    return Evaluation(config, artifacts, Decoder(generator, catalogue, eval_config), join, beside)


def make_beside(teacher: Evaluation, catalogue: Catalogue, draws: int) -> generators.Beside:
    """Makes the teacher's own metrics on the queries of a ranking, and what share of its ndcg@10
    the ranking reaches, with an interval over users at the test."""
    state = {"sid_sha256": catalogue.hash_words}
    rank = functools.cache(lambda split: teacher.rank(state, split)[0])

    def beside(split: str, ranking: Ranking) -> dict[str, Any]:
        of_teacher = rank(split)
        out: dict[str, Any] = metrics.summarize(of_teacher.ranks, wiring.KS, f"teacher/{split}/")
        ours = metrics.ndcg(ranking.ranks, 10)
        theirs = metrics.ndcg(of_teacher.ranks, 10)
        if not theirs.any():
            return out
        out[f"{split}/recovery"] = float(ours.mean() / theirs.mean())
        if split == "test":
            low, high = metrics.ratio_bootstrap(ours, theirs, draws=draws)
            out |= {"test/recovery/low": low, "test/recovery/high": high}
        return out

    return beside


def make_experiment(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    student: Student,
    init_optimizer: Callable[[Any], Any],
    step: Step,
) -> Experiment:
    """Makes the Experiment of a student.

    Args:
        init_optimizer: trained parameters -> opt_state.
        step: of a batch that holds the teacher's parameters, see `teacher_params`.
    """
    constants = {"sids": student.catalogue.sids, **teacher_leaves(artifacts)}
    return generators.make_experiment(
        config,
        artifacts,
        student.evaluation,
        init=generators.make_init(student.model, init_optimizer, student.catalogue),
        step=step,
        make_batches=lambda train: generators.make_pair_batches(
            config, train, student.exponents, constants
        ),
        rules=RULES,
    )
