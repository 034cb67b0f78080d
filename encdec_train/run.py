"""READ FIRST: one run from top to bottom. `train` is the story; what it calls follows in the order of the story."""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from encdec_train import console, distributed, startup
from encdec_train.atomic import write_json
from encdec_train.cluster import launch, requeue
from encdec_train.config import Baseline, Init, Schedule, TrackerName, TrainConfig, to_dict, to_yaml
from encdec_train.data.sources import SplitSource
from encdec_train.errors import ConfigError, StoppedError, fault
from encdec_train.evaluation import Scores, score_table, score_tests, test_splits, text_baseline
from encdec_train.folder import RunFolder, identify, open_folder
from encdec_train.session import (
    Session,
    device_type,
    find_splits,
    local_model,
    micro_tokens,
    open_session,
    run_fingerprints,
    search_of,
    warm_start,
)
from encdec_train.training.stop import StopWish

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel

    from encdec_train.data.plan import Plan
    from encdec_train.modeling.warm_start import WarmStart
    from encdec_train.tracking.tracker import Tracker
    from encdec_train.training.validation import Validator

Preflight = Callable[[TrainConfig, Session, "EncoderDecoderModel"], None]  # `doctor.preflight`; siblings do not import
NUM_SHOWN = 5  # predictions on the console
EXAMPLE = 300  # characters of a source in the command that is shown
CLIP = 160  # characters of each


@dataclass(frozen=True)
class Run:
    """One run while it is made."""

    config: TrainConfig  # everything, with the demo's checkpoint resolved to its folder
    folder: RunFolder  # where it is written
    session: Session  # what it has loaded
    planned: "tuple[Plan, int]"  # the global batches, and the number of steps
    tracker: "Tracker"  # who is told besides
    wish: StopWish  # what it was asked by a signal


def train(config: TrainConfig, preflight: Preflight | None = None) -> Path:
    """Train, decode, score, export and report; go on where an earlier start of the same run stopped.

    Args:
        config: Everything.
        preflight: Examines what a new run would start with, before anything is written; raises where it is not well.

    Returns:
        The run's folder.

    Raises:
        EncDecError: One clear message; what was there before is still there.
    """
    wish = StopWish()
    with wish, requeue.answering(lambda: wish.noted):
        launch.join(config.trainer)
        if distributed.rank() > 0:
            console.silence()
        wish.obey()
        return make_once(config, wish, preflight)


def make_once(config: TrainConfig, wish: StopWish, preflight: Preflight | None = None) -> Path:
    """Make the run, where it is not made yet; one process, or the ranks of one run, can at a time."""
    startup.begin()
    folder, sources = find_folder(config)
    folder.check_identity()
    startup.mark("command")
    if folder.is_finished():
        console.say(folder.finished_message(config))
        return folder.path
    from encdec_train.training.watchdog import Watch

    main = distributed.rank() == 0
    with folder.lock() if main else nullcontext():
        folder.check_identity()  # again: another process may have made it while this one came here
        if not folder.is_finished():
            if main:
                requeue.check_progress(folder.path, folder.last_step())
            ranks = config.trainer.devices * config.trainer.num_nodes
            with Watch(folder.path, ranks, config.trainer.stall_seconds):
                make(config, folder, sources, wish, preflight)
    return folder.path


def find_folder(config: TrainConfig) -> tuple[RunFolder, Mapping[str, SplitSource]]:
    """Find a run's data and name its folder; nothing is loaded or created."""
    sources = find_splits(config)
    if "train" not in sources:
        raise ConfigError(
            fault("task.train_file", "a file of pairs", None, f"task={config.task.name} has nothing to train on")
        )
    data = {name: split.fingerprint for name, split in sources.items()}
    return open_folder(config, identify(config, data, run_fingerprints(config))), sources


def make(
    config: TrainConfig,
    folder: RunFolder,
    sources: Mapping[str, SplitSource],
    wish: StopWish,
    preflight: Preflight | None = None,
) -> None:
    """Do everything that takes time. Training continues where an earlier start stopped; what follows is done again."""
    from encdec_train.report.audit import write_audit
    from encdec_train.tracking import Outcome
    from encdec_train.tracking import start as start_tracker

    device_type(config.trainer.accelerator)
    startup.mark("torch")
    rows = {name: source.load() for name, source in sources.items()}
    startup.mark("rows")
    config = replace(config, model=local_model(config))
    startup.mark("checkpoint files")
    session = open_session(config, rows, sources)
    startup.mark("tokens")
    plan = planned(config, session)  # what cannot be planned is said before anything is written
    started = warm_start(config, session, config.model.init)
    startup.mark("model")
    if preflight and not folder.manifest():  # ranks need not agree: the first writes that file only where all is well
        preflight(config, session, started.model)
    startup.mark("checks")
    main = distributed.rank() == 0
    if main:
        describe_start(config, folder, session, started, sources)
        write_audit(folder.path, session.splits, session.codec)
    kind = config.tracking.kind if main else TrackerName.none
    with wish.patiently():  # or a signal would leave the tracker's service behind
        tracker = start_tracker(kind, config.tracking, folder.path, folder.run_id, to_dict(config))
    startup.mark("files and tracker")
    run, scores, outcome = Run(config, folder, session, plan, tracker, wish), Scores(), Outcome.failed
    try:
        wish.obey()
        step = fit(run, started, folder.path)
        startup.end()
        scores = score_tests(config, session, started.model, folder.path / "predictions")
        distributed.moved(None)  # what follows is rank 0's alone, and may take as long as it likes
        if main:
            export(run, started, scores, step)
            write_json(folder.metrics, scores)  # what exists is kept whatever becomes of the baselines
            tracker.log_export(folder.export, scores)
        baselines = score_baselines(run)
        outcome = Outcome.finished
    except (StoppedError, KeyboardInterrupt):
        outcome = Outcome.stopped
        raise
    finally:
        distributed.moved(None)
        with wish.patiently():
            tracker.finish(flat(scores), outcome)
    if main:
        finish(run, scores, baselines)


def describe_start(
    config: TrainConfig,
    folder: RunFolder,
    session: Session,
    started: "WarmStart",
    sources: Mapping[str, SplitSource],
) -> None:
    """Write `config.yaml` and `manifest.json`, which keeps the first start as it was and lists those that went on."""
    from encdec_train.report.manifest import start, write_manifest

    halves = {half.name: {key: value for key, value in vars(half).items() if key != "name"} for half in started.halves}
    splits = {
        name: {
            "examples": len(split),
            "truncated_sources": split.num_truncated_sources,
            "truncated_targets": split.num_truncated_targets,
            "set_aside": len(split.rows.set_aside),
        }
        for name, split in session.splits.items()
    }
    parameters = {"distinct": started.total, "shared": started.shared, **halves}
    named = zip(("encoder", "decoder"), config.model.sources, session.halves, strict=True)
    origins = {
        "checkpoints": {half: {"name": name, "revision": source.revision} for half, (name, _), source in named},
        "data": {name: dict(source.origin) for name, source in sources.items() if source.origin},
    }
    extra = {"identity": folder.identity, "finished": False, "splits": splits, "parameters": parameters}
    before = folder.manifest()
    again = {"started_again": [*before.get("started_again", []), start()]} if before else {}
    write_manifest(folder.path, {**origins, **before, **extra, **again})  # first: it says whose folder this is
    (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def planned(config: TrainConfig, session: Session) -> tuple["Plan", int]:
    """Plan the global batches, and count the steps of the whole run.

    Raises:
        ConfigError: When the training split does not fill a batch, or warm-up would not end within the run.
    """
    from encdec_train.data.plan import BatchSize, Plan

    data, trainer, optim, split = config.data, config.trainer, config.optim, session.splits["train"]
    size = BatchSize(data.batch_examples, data.batch_target_tokens, data.order, data.last_batch)
    plan = Plan(split.tokens.lengths, config.seed, size)
    total = trainer.max_steps or plan.num_steps(trainer.max_epochs or 1)
    if optim.warmup_steps is not None and optim.warmup_steps >= total and optim.schedule is not Schedule.constant:
        reason = f"trainer.max_epochs={trainer.max_epochs} makes {total} steps"
        raise ConfigError(fault("optim.warmup_steps", f"below {total}", optim.warmup_steps, reason))
    return plan, total


def fit(run: Run, started: "WarmStart", root: Path, *, quiet: bool = False) -> int:
    """Train, from the newest whole checkpoint where there is one, and load the weights of the best validation.

    Args:
        run: The run.
        started: The model.
        root: `checkpoints/` and `metrics.jsonl` are written here.
        quiet: No tracker (a baseline).

    Returns:
        The step whose weights the model now has.
    """
    from encdec_train.data.datamodule import Seq2SeqDataModule
    from encdec_train.modeling.families import sides
    from encdec_train.training import checkpoint
    from encdec_train.training.budget import auto_budget
    from encdec_train.training.callbacks import EveryStep, final_weights
    from encdec_train.training.memory import MemoryLimits
    from encdec_train.training.metrics_log import MetricsLog
    from encdec_train.training.module import Seq2SeqModule
    from encdec_train.training.optim import averaged_steps, fresh_names
    from encdec_train.training.trainer import fit as fit_lightning

    config, session, checkpoints = run.config, run.session, root / "checkpoints"
    data, trainer, split = config.data, config.trainer, session.splits["train"]
    plan, total = run.planned
    if trainer.gradient_checkpointing:
        for _, half in sides(started.model):
            half.activation_checkpointing_enable({"use_reentrant": False})
    resumed = checkpoint.newest(checkpoints)
    done = resumed.step if resumed else 0
    if resumed is not None:
        checkpoint.restore_weights(started.model, resumed)
        console.say(f"going on after step {done} of {total}")

    log = MetricsLog(root / "metrics.jsonl" if distributed.rank() == 0 else None, None if quiet else run.tracker, done)
    averaged = averaged_steps(total, config.optim)
    every_step = EveryStep(trainer, checkpoints, log, validator(run), (total, averaged), resumed)
    every_step.identity = run.folder.identity
    todo = 0 if every_step.is_over else total - done
    del resumed  # its tensors are let go of when they are in the model
    if todo or trainer.devices * trainer.num_nodes > 1:  # several ranks find one another there, also to decode
        fresh = fresh_names(started)
        module = Seq2SeqModule(started.model, config.optim, total, config.seed, trainer.precision, fresh)
        module.stop_wish = run.wish
        made_for = [data.max_micro_tokens, trainer.devices, trainer.num_nodes, device_type(trainer.accelerator)]
        if not trainer.sharding:  # whose ranks cannot split a micro-batch alone
            module.limits = MemoryLimits(root / "memory" / f"rank{distributed.rank()}.jsonl", made_for)
        budget = partial(auto_budget, module, trainer, plan.lengths, run.folder, Path(config.run.cache_dir))
        tokens = data.max_micro_tokens if isinstance(data.max_micro_tokens, int) else budget
        loader = Seq2SeqDataModule(split, session.codec, plan, tokens, (done, done + todo), data.num_workers)
        startup.mark("checkpoint and libraries")
        fit_lightning(module, loader, every_step, trainer)
    return final_weights(started.model, checkpoints, every_step.progress, averaged) or every_step.step


def validator(run: Run) -> "Validator | None":
    """Make what validates, where the task has a validation split."""
    from encdec_train.metrics import expand
    from encdec_train.training.validation import Validator

    config, split = run.config, run.session.splits.get("validation")
    if split is None:
        return None
    budget = micro_tokens(config.data.max_micro_tokens, device_type(config.trainer.accelerator))
    search, metrics = search_of(config), expand(config.task.metrics)
    return Validator(split, run.session.codec, search, metrics, config.trainer.decoded_examples, budget)


def export(run: Run, started: "WarmStart", scores: Scores, step: int) -> None:
    """Write the vanilla Hugging Face folder."""
    from encdec_train.modeling.export import export as export_model
    from encdec_train.report.manifest import versions
    from encdec_train.report.model_card import CardFacts, model_card

    config, codec = run.config, run.session.codec
    tokenizers = (codec.source_tokenizer, codec.target_tokenizer)
    num_examples = {name: len(split) for name, split in run.session.splits.items()}
    two = codec.source_tokenizer is not codec.target_tokenizer
    facts = CardFacts(run.folder.path.name, config, started.total, step, num_examples, scores, two, versions())
    generation = search_of(config).generation_config(started.model)
    export_model(started.model.cpu(), run.folder.export, tokenizers, generation, config.task.limits, model_card(facts))


def score_baselines(run: Run) -> dict[str, Scores]:
    """Score what the run is compared with: floors, ceiling, and the same model from random weights."""
    config, found = run.config, dict[str, Scores]()
    if not test_splits(config, run.session):
        return found
    for kind in dict.fromkeys(config.run.baselines):
        if kind is not Baseline.random:
            found[kind.value] = text_baseline(kind, config, run.session)
    if Baseline.random in config.run.baselines and config.model.init is not Init.none:
        console.say("\nbaseline: the same model from random weights, the same data and steps")
        started = warm_start(config, run.session, Init.none)
        fit(run, started, run.folder.path / "baseline_random", quiet=True)
        found["random"] = score_tests(config, run.session, started.model, None)
    return found


def finish(run: Run, scores: Scores, baselines: Mapping[str, Scores]) -> None:
    """Write scores and report, mark the run as finished, and tell what came out."""
    from encdec_train.report.html import write_report
    from encdec_train.report.manifest import write_manifest
    from encdec_train.training.memory import peak_gib

    folder = run.folder
    write_json(folder.metrics, {**scores, **({"baselines": baselines} if baselines else {})})
    write_report(folder.path)
    peak = round(peak_gib(device_type(run.config.trainer.accelerator)), 2)
    measured = {"peak_memory_gib": peak} | ({"startup_seconds": parts} if (parts := startup.seconds()) else {})
    write_manifest(folder.path, {**folder.manifest(), **measured, "finished": True})
    console.say(f"peak memory of rank 0: {peak} GiB")
    shutil.rmtree(folder.path / "baseline_random" / "checkpoints", ignore_errors=True)  # last: they save the next start
    announce(run, scores, baselines)


def announce(run: Run, scores: Scores, baselines: Mapping[str, Scores]) -> None:
    """Say scores, samples, where everything lies, and what to type next."""
    from encdec_train.decoding.predictions import read_predictions

    path, export_folder = run.folder.path, run.folder.export
    if scores:
        console.say("\n" + score_table(scores, baselines))
    for split in list(scores)[:1]:
        rows, texts = read_predictions(path / "predictions" / f"{split}.jsonl")
        for source, text, references in list(zip(rows.sources, texts, rows.references, strict=True))[:NUM_SHOWN]:
            mark = "=" if text in references else "≠"
            console.say(f"\n  source      {clipped(source)}\n  prediction  {clipped(text)}")
            console.say(f"{mark} reference   {clipped(references[0])}")
    auto_class = "AutoModelForCausalLM" if run.config.model.encoder is None else "AutoModelForSeq2SeqLM"
    places = {
        "report.html": "curves, scores, samples: open it in a browser",
        "export/": f"a plain Hugging Face model: {auto_class}.from_pretrained(...)",
        "metrics.json": "the scores, with signatures and intervals",
        "predictions/": "what was decoded, by example",
        "metrics.jsonl": "the curves",
        "checkpoints/": "for this command to go on from",
    }
    console.say(f"\n{path}")
    for name, what in places.items():
        if (path / name).exists():
            console.say(f"  {name:<15}{what}")
    console.say("\nnext:")
    example = shorten(run.session.splits["train"].rows.sources[0], EXAMPLE, placeholder="") or "A sentence."
    console.say(f"  echo {shlex.quote(example)} | {command()} generate checkpoint={shlex.quote(str(export_folder))}")
    if run.config.task.name == "demo":
        console.say("and with files of your own, of rows with a source and a target:")
        console.say(
            f"  {command()} train task=files task.train_file=train.jsonl task.validation_file=validation.jsonl \\"
        )
        console.say("    task.test_file=test.jsonl model.encoder=google-bert/bert-base-uncased")


def command() -> str:
    """Return how this program can be started from here."""
    if shutil.which("encdec"):
        return "encdec"
    return sys.argv[0] if Path(sys.argv[0]).name == "encdec" else "python -m encdec_train"


def clipped(text: str) -> str:
    """Shorten a text to a line of the console."""
    line = " ".join(text.split())
    return line if len(line) <= CLIP else line[: CLIP - 1] + "…"


def flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """Name every score `<split>/<metric>`, and the ends of its interval, for trackers."""
    named = {f"{split}/{name}": found for split, metrics in scores.items() for name, found in metrics.items()}
    values = {name: found["value"] for name, found in named.items()}
    for at, end in enumerate(("low", "high")):
        values |= {f"{name}/ci95_{end}": found["ci95"][at] for name, found in named.items()}
    return values
