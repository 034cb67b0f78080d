"""The typed configuration: what each key is, its unit and its range.

Values live in `conf/*.yaml`; none has a default here. `compose.py` fills these classes, `check.py` says what clashes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from encdec_train.choices import Accelerator as Accelerator
from encdec_train.choices import BadRecords as BadRecords
from encdec_train.choices import Baseline as Baseline
from encdec_train.choices import CrossInit as CrossInit
from encdec_train.choices import Group as Group
from encdec_train.choices import Init as Init
from encdec_train.choices import LastBatch as LastBatch
from encdec_train.choices import OptimizerName as OptimizerName
from encdec_train.choices import Order as Order
from encdec_train.choices import Overlong as Overlong
from encdec_train.choices import Parts as Parts
from encdec_train.choices import Precision as Precision
from encdec_train.choices import Schedule as Schedule
from encdec_train.choices import Share as Share
from encdec_train.choices import TrackerName as TrackerName
from encdec_train.config_decoding import DecodingConfig as DecodingConfig
from encdec_train.config_decoding import PenaltyForm as PenaltyForm
from encdec_train.config_decoding import SweepConfig as SweepConfig
from encdec_train.config_decoding import within as within


def shared_groups(share: list[Group] | Share) -> set[Group]:
    """Return the groups of parameters that a value of `model.share` stands for."""
    named = {Share.none: set[Group](), Share.embeddings: {Group.embeddings}, Share.all: set(Group)}
    return named[share] if isinstance(share, Share) else set(share)


def spelled(share: list[Group] | Share) -> str:
    """Write a value of `model.share`."""
    return share.value if isinstance(share, Share) else ", ".join(group.value for group in share)


def layer_numbers(items: list[int | str] | None) -> list[int] | None:
    """Spell a list of layers out: `[9, "13-15"]` is 9, 13, 14, 15.

    Raises:
        ValueError: When an item is neither a number nor a range of them.
    """
    if items is None:
        return None
    ends = [str(item).partition("-")[::2] for item in items]
    return [number for first, last in ends for number in range(int(first), int(last or first) + 1)]


@dataclass(kw_only=True)
class RunConfig:
    """Where a run lives."""

    name: str | None  # the folder below output_dir; null: task, model and 6 hex digits of the identity
    output_dir: str
    cache_dir: str  # token caches and the demo's own checkpoint
    baselines: list[Baseline]  # scored beside the model, on every test split


@dataclass(kw_only=True)
class TaskConfig:
    """What is learnt, from which rows, and how it is scored."""

    name: str
    train_file: str | None
    validation_file: str | None
    test_file: str | None
    source_column: str
    target_column: str
    reverse: bool  # swap source and target after reading
    bad_records: BadRecords  # of training and validation files
    metrics: list[str]
    max_source_tokens: int | None = within(2)  # special tokens included; null (not to train): the export's
    max_target_tokens: int | None = within(2)  # the end token included
    overlong: Overlong
    revision: str | None  # pins a data set of the Hub
    num_train_examples: int | None = within(1)  # the first so many; null: all
    num_validation_examples: int | None = within(1)
    num_test_examples: int | None = within(1)
    train_fraction: float = within(1e-6, 1)  # of the training rows, drawn at random
    fraction_seed: int = within(0, 2**32 - 1)  # of that draw; not the run's, so that all seeds see the same rows
    subset: str | None  # of WMT: source and target, as in en-de; of DiscoFuse: wikipedia, sport, balanced (files only)
    wmt_year: int | None = within(2014, 2019)

    @property
    def files(self) -> bool:
        """Tell whether rows are read from files of the user's; then they are all there is."""
        return any(file is not None for file in (self.train_file, self.validation_file, self.test_file))

    @property
    def limits(self) -> tuple[int, int]:
        """Return the source and target limits in tokens; `check` has seen that a config to train with has them."""
        return self.max_source_tokens or 0, self.max_target_tokens or 0


@dataclass(kw_only=True)
class ModelConfig:
    """Which checkpoints the model is warm-started from."""

    name: str
    encoder: str | None  # a folder, a Hub id, or `demo`; null: the decoder alone reads the source too, as a prefix
    decoder: str
    encoder_revision: str | None
    decoder_revision: str | None
    share: list[Group] | Share
    init: Init
    init_parts: Parts
    init_cross_attention: CrossInit
    encoder_layers: list[int | str] | None  # of the checkpoint, counted from 1, such as [9,10,13-18]; null: all
    decoder_layers: list[int | str] | None
    dropout: float | None = within(0, below=1)  # null: what the checkpoint says
    attention_dropout: float | None = within(0, below=1)

    @property
    def sources(self) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
        """Return name and revision of the encoder's and the decoder's checkpoint; twice one of the decoder alone."""
        if self.encoder is None:
            return (self.decoder, self.decoder_revision), (self.decoder, self.decoder_revision)
        same = self.decoder == self.encoder and self.decoder_revision is None
        decoder_revision = self.encoder_revision if same else self.decoder_revision
        return (self.encoder, self.encoder_revision), (self.decoder, decoder_revision)

    @property
    def layers(self) -> tuple[list[int] | None, list[int] | None]:
        """Return the numbers of the encoder's and the decoder's layers."""
        return layer_numbers(self.encoder_layers), layer_numbers(self.decoder_layers)


@dataclass(kw_only=True)
class DataConfig:
    """What an optimizer step sees, and in which pieces a device computes it."""

    batch_examples: int | None = within(1)  # of the global batch
    batch_target_tokens: int | None = within(1)  # of the global batch, without padding
    max_micro_tokens: int | str  # source + target of a micro-batch with padding, or `auto`
    order: Order
    last_batch: LastBatch
    num_workers: int = within(0)  # processes that collate


@dataclass(kw_only=True)
class OptimConfig:
    """How weights are updated."""

    name: OptimizerName
    lr: float = within(0)  # at the end of warm-up
    schedule: Schedule
    warmup_steps: int | None = within(0)  # null: a tenth of the run's steps
    weight_decay: float = within(0)  # not on biases and layer norms
    betas: list[float]  # Adam's two
    eps: float = within(0)
    label_smoothing: float = within(0, below=1)
    max_grad_norm: float | None = within(0)  # of the global gradient; null: no clipping
    freeze: list[str]  # parameters that stay as they are, by name with `*`, as in `encoder.*`
    freeze_warm_steps: int = within(0)  # so long only what the checkpoints lack learns
    fresh_lr_factor: float = within(0)  # of the learning rate, for what the checkpoints lack
    layer_decay: float = within(0, 1)  # of the learning rate, a layer further from the output
    average_last: int = within(1)  # points whose mean weights are taken in the end; 1: the best validation's
    average_every_steps: int | None = within(1)  # between those points, the last one being the last step


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, where, and how often things are looked at. One step is one update of the weights."""

    max_steps: int | None = within(1)
    max_epochs: int | None = within(1)
    devices: int = within(1)  # a node
    num_nodes: int = within(1)
    accelerator: Accelerator
    precision: Precision
    sharding: bool  # weights, gradients and optimizer state in parts over the ranks, for models that do not fit
    gradient_checkpointing: bool  # compute activations again instead of keeping them: less memory
    validate_every_steps: int | None = within(1)
    checkpoint_every_steps: int | None = within(1)  # besides each validation and the last step
    log_every_steps: int = within(1)
    keep_last: int = within(1)  # checkpoints; the best one is kept besides
    best_metric: str  # `loss` or a metric of the task
    patience_validations: int | None = within(1)  # validations without a better best_metric before the run stops
    decoded_examples: int = within(0)  # of the validation split, at each validation; 0: its loss only
    profile: bool  # trace a few steps, into the run's folder
    stall_seconds: int | None = within(5)  # so long no rank gets on before the run is ended; null: it is never


@dataclass(kw_only=True)
class TrackingConfig:
    """Who else is told. Keys and passwords are read from the environment and never from here."""

    kind: TrackerName
    project: str
    group: str | None
    tags: list[str]


@dataclass(kw_only=True)
class BundleConfig:
    """What stands for the network."""

    path: str | None  # a folder that `encdec bundle` writes; null: none, and what is missing is downloaded


@dataclass(kw_only=True)
class TrainConfig:
    """Everything `encdec train` reads."""

    seed: int = within(0, 2**32 - 1)
    run: RunConfig
    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    decoding: DecodingConfig
    tracking: TrackingConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class ReportConfig:
    """Everything `encdec report` reads."""

    runs: list[str]
    split: str


@dataclass(kw_only=True)
class EvaluateConfig:
    """Everything `encdec evaluate` reads."""

    checkpoint: str  # a run folder, an export folder or a Hub id
    split: str
    seed: int = within(0, 2**32 - 1)  # of the bootstrap, and of what is drawn
    run: RunConfig
    task: TaskConfig
    data: DataConfig
    trainer: TrainerConfig
    decoding: DecodingConfig
    bundle: BundleConfig
    sweep: SweepConfig


@dataclass(kw_only=True)
class GenerateConfig:
    """Everything `encdec generate` reads."""

    checkpoint: str
    seed: int = within(0, 2**32 - 1)  # of what is drawn, where decoding.temperature is a number
    input: str  # a file, or `-` for standard input: records where its first line that is not blank is a JSON object
    output: str
    task: TaskConfig
    data: DataConfig
    trainer: TrainerConfig
    decoding: DecodingConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class ScoreConfig:
    """Everything `encdec score` reads."""

    predictions: str
    split: str  # of the task's rows, where it has any: predictions are joined to them
    seed: int = within(0, 2**32 - 1)  # of the bootstrap
    run: RunConfig
    task: TaskConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class CompareConfig:
    """Everything `encdec compare` reads."""

    a: str | list[str]  # a folder of `train` or `evaluate`, a prediction file, or several: seeds of one config
    b: str | list[str]
    split: str
    seed: int = within(0, 2**32 - 1)
    task: TaskConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class VerifyConfig:
    """Everything `encdec verify` reads."""

    bundle: BundleConfig


def to_dict(config: object) -> dict[str, Any]:
    """Turn a config or section into plain values, fit for YAML, JSON and hashing."""

    def plain(value: object) -> Any:  # noqa: ANN401 - a leaf's own type
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.value if isinstance(value, Enum) else value

    return dict(plain(config))


def to_yaml(config: object) -> str:
    """Write a config as the YAML of `config.yaml`."""
    import yaml

    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


AnyConfig = TrainConfig | EvaluateConfig | GenerateConfig | ScoreConfig | CompareConfig | ReportConfig | VerifyConfig


def leaves(section: object, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield full key, value and metadata of every leaf of a config or section."""
    for f in fields(section) if is_dataclass(section) else ():
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f.metadata
