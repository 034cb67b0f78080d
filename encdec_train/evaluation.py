"""Decoding and scoring: of a run's test splits, of its baselines, and the verbs `evaluate` and `score`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from encdec_train import console, distributed
from encdec_train.atomic import write_json
from encdec_train.cluster import launch
from encdec_train.config import Baseline, EvaluateConfig, ScoreConfig, TaskConfig, TrainConfig, to_dict
from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.fingerprint import json_sha256
from encdec_train.folder import refuse_links
from encdec_train.session import Session, device_type, find_splits, open_export, search_of
from encdec_train.tasks import TASKS

if TYPE_CHECKING:
    import torch
    from transformers import EncoderDecoderModel

    from encdec_train.data.load import Rows
    from encdec_train.data.preprocess import EncodedSplit, TextCodec
    from encdec_train.session import Exported

Scores = dict[str, Any]

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"'”’)\]]*(?=\s)|$)", re.MULTILINE)


def test_splits(config: TrainConfig, session: Session) -> list[str]:
    """Name the splits that are decoded and scored at the end."""
    return [name for name in TASKS[config.task.name].test_splits if name in session.splits]


def score_tests(config: TrainConfig, session: Session, model: "EncoderDecoderModel", folder: Path | None) -> Scores:
    """Decode and score every test split; every rank must call it. Predictions are written where there is a folder.

    In float32 whatever the run was trained in: the export is float32, and whoever loads it gets these predictions.

    Returns:
        For each split its metrics.
    """
    from encdec_train.decoding.predictions import predict, predict_file, read_predictions
    from encdec_train.decoding.search import Engine

    search = search_of(config)
    cast("torch.nn.Module", model).to(device_type(config.trainer.accelerator))
    engine, scores = Engine(model), Scores()
    for name in test_splits(config, session):
        split, label = session.splits[name], f"decode {name}"
        if folder is not None:
            predict_file(folder / f"{name}.jsonl", engine, split, session.codec, search, label)
            texts = read_predictions(folder / f"{name}.jsonl")[1]
        else:
            texts = predict(engine, split, range(len(split)), session.codec, search, label)
        say_lengths(name, texts, split.rows.references)
        scores[name] = scored(texts, split.rows, config)
    return scores


def say_lengths(split: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Say how long outputs are, and how many are empty: they score like any other, but nobody expects them."""
    from encdec_train.metrics.score import describe

    facts = describe(texts, references, None)
    empty = f"; {facts['empty_hypotheses']:.0f} of {len(texts):,} are empty" if facts["empty_hypotheses"] else ""
    words = f"{facts['mean_length']:.1f} words an output, {facts['length_ratio']:.2f} of the references'"
    console.say(f"{split}: {words}{empty}")


def text_baseline(kind: Baseline, config: TrainConfig, session: Session) -> Scores:
    """Score texts that need no model as if they were the output, on every test split."""

    def texts(rows: "Rows") -> Sequence[str]:
        if kind is Baseline.ceiling:
            firsts = [several[0] for several in rows.references]
            return round_trip(firsts, session.codec, config.decoding.max_new_tokens or config.task.limits[1])
        return rows.sources if kind is Baseline.copy else [lead(text) for text in rows.sources]

    splits = {name: session.splits[name].rows for name in test_splits(config, session)}
    return {name: scored(texts(rows), rows, config) for name, rows in splits.items()}


def round_trip(texts: Sequence[str], codec: "TextCodec", limit: int) -> list[str]:
    """Return what is left of texts that a decoder wrote without a fault: tokenised, cut as targets are, and decoded."""
    return [codec.decode(codec.cut_target(ids, limit)[:-1]) for ids in codec.encode_targets(texts)]


def lead(text: str) -> str:
    """Return the first three sentences, a line each as ROUGE-Lsum wants them.

    One ends with its line, or at `.`, `!` or `?` (and what closes there) before white space: "Mr. Smith" is two.
    """
    return "\n".join(found[0] for found in islice(_SENTENCE.finditer(text), 3))


def scored(texts: Sequence[str], rows: "Rows", config: TrainConfig | EvaluateConfig | ScoreConfig) -> Scores:
    """Score texts with the metrics of a config's task, by name; sources count as missing where one is empty."""
    from encdec_train.metrics.score import score as score_texts

    sources = rows.sources if all(rows.sources) else None
    seed = 0 if isinstance(config, TrainConfig) else config.seed  # of the bootstrap: the same whatever was trained
    return score_texts(texts, rows.references, sources, config.task.metrics, seed)


def evaluate(config: EvaluateConfig) -> Path:
    """Decode a split with a finished model and score it, into a run folder of its own; several ranks share the work.

    Returns:
        The folder, with `predictions/<split>.jsonl` and `metrics.json`.

    Raises:
        EncDecError: One clear message. A rank that is lost or hangs is named by the others.
    """
    launch.join_step()
    if distributed.rank() > 0:
        console.silence()
    sources = find_splits(config)
    if config.split not in sources:
        raise ConfigError(_missing_split(config.task, config.split, list(sources)))
    what = [to_dict(part) for part in (config.task, config.decoding)] + [config.trainer.precision.value]
    key = json_sha256([config.checkpoint, config.split, config.seed, what, sources[config.split].fingerprint])[:6]
    folder = Path(config.run.output_dir) / (config.run.name or f"evaluate-{config.task.name}-{key}")
    refuse_links(folder)
    if (folder / "manifest.json").is_file():
        reason = f"{folder} is a training run, whose scores this would replace"
        raise ConfigError(fault("run.name", "a new name", config.run.name, reason))
    from encdec_train.decoding.predictions import predict_file, read_predictions
    from encdec_train.training.watchdog import Watch

    rows, path = sources[config.split].load(), folder / "predictions" / f"{config.split}.jsonl"
    ranks, limit = distributed.launched_tasks() or 1, config.trainer.stall_seconds
    with Watch(folder, ranks, limit) if ranks > 1 else nullcontext(), distributed.joined(limit):
        if settings := config.sweep.settings:
            tune(config, rows, settings, folder / "sweep.json")
            return folder
        found, split = encoded(config, rows)
        with found.precision():
            predict_file(path, found.engine, split, found.codec, found.search, f"decode {config.split}")
    if distributed.rank() == 0:
        texts = read_predictions(path)[1]
        say_lengths(config.split, texts, rows.references)
        scores = {config.split: scored(texts, rows, config)}
        write_json(folder / "metrics.json", scores)
        console.say(score_table(scores))
        console.say(f"\npredictions and scores: {folder}")
    return folder


def tune(config: EvaluateConfig, rows: "Rows", settings: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Decode with every setting, encoding once, and write and say which one scores best; every rank must call it.

    Raises:
        ConfigError: On the test split: a score on what was tuned on says nothing.
    """
    from encdec_train.decoding.predictions import predict
    from encdec_train.metrics import expand

    metrics = expand(config.task.metrics)
    metric = metrics[0]
    if config.split in TASKS[config.task.name].test_splits:
        raise ConfigError(fault("split", "validation", config.split, "settings that are tuned on a test tell no score"))
    found, split = encoded(config, rows)
    found.engine.states, table = {}, []
    for number, values in enumerate(settings, start=1):
        decoding = replace(config.decoding, **values)
        search, started = search_of(replace(config, decoding=decoding), found.model.generation_config), monotonic()
        label = f"[{number}/{len(settings)}] {' '.join(f'{key}={value}' for key, value in values.items())}"
        with found.precision():
            texts = predict(found.engine, split, range(len(rows)), found.codec, search, label)
        distributed.moved(None)  # scoring may take as long as it likes
        scores = {name: one["value"] for name, one in scored(texts, rows, config).items()}
        table.append({**values, "scores": scores, "seconds": round(monotonic() - started, 2)})
    best = max(table, key=lambda row: row["scores"][metric])
    chosen = {key: best[key] for key in settings[0]}
    if distributed.rank() == 0:
        write_json(path, {"split": config.split, "metric": metric, "chosen": chosen, "settings": table})
        lines = [[*(str(row[key]) for key in chosen), *(f"{row['scores'][name]:.2f}" for name in metrics),
                  f"{row['seconds']:.1f}", "chosen" if row is best else ""] for row in table]  # fmt: skip
        console.say(console.table(lines, [*chosen, *metrics, "seconds", ""]))
        console.say(f"\n{' '.join(f'decoding.{key}={value}' for key, value in chosen.items())}\n{path}")


def encoded(config: EvaluateConfig, rows: "Rows") -> "tuple[Exported, EncodedSplit]":
    """Load a finished model, and tokenise rows as it wants them."""
    from encdec_train.data.preprocess import Limits, encode_split

    found, task = open_export(config), config.task
    limits = Limits(found.max_source_tokens, task.max_target_tokens or found.search.max_new_tokens, task.overlong)
    return found, encode_split(rows, found.codec, limits, name=config.split, cache_dir=None, cache_key=None)


def _missing_split(task: TaskConfig, split: str, names: Sequence[str]) -> str:
    key = f"{split}_file"
    if (task.files or task.name == "files") and hasattr(task, key):
        return fault(f"task.{key}", "a file of pairs", "null", f"split={split} reads it")
    return fault("split", f"one of {', '.join(names) or 'train, validation, test'}", split)


def score(config: ScoreConfig) -> Scores:
    """Score a prediction file and return what stands under a split's key of `metrics.json`.

    Predictions are joined to the rows of `split` where the task has rows; else the file brings its own references.

    Raises:
        EncDecError: The task has other splits only, or the file cannot be used or lacks what a metric compares with.
    """
    from encdec_train.decoding.predictions import read_predictions

    splits = find_splits(config)
    if splits and config.split not in splits:
        raise ConfigError(_missing_split(config.task, config.split, list(splits)))
    rows, texts = read_predictions(Path(config.predictions), splits[config.split].load() if splits else None)
    if empty := sum(not text.strip() for text in texts):
        console.say(f"{empty:,} of {len(texts):,} predictions are empty")
    try:
        return scored(texts, rows, config)
    except DataError as error:
        where = f"example {rows.ids[rows.sources.index('')]!r}: " if "" in rows.sources else ""
        raise DataError(f"{config.predictions}: {where}{error}") from error


def score_table(scores: Mapping[str, Scores], baselines: Mapping[str, Mapping[str, Scores]] | None = None) -> str:
    """Lay out scores with their intervals, a block of rows a split, the baselines beside."""
    beside = baselines or {}
    header = ["split", "metric", "score", "95% interval", *beside]
    rows = []
    for split, metrics in scores.items():
        for name, found in metrics.items():
            low, high = found["ci95"]
            others = [f"{base[split][name]['value']:.2f}" for base in beside.values()]
            rows.append([split, name, f"{found['value']:.2f}", f"{low:.2f} to {high:.2f}", *others])
    return console.table(rows, header)
