"""The typed configuration: what each key is, its unit and its range.

Values live in `conf/*.yaml`; none has a default here. `compose.py` fills these classes, `check.py` says what clashes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any


class Overlong(Enum):
    """What happens to a pair that is longer than the task's limits."""

    truncate = "truncate"
    refuse = "refuse"


class Baseline(Enum):
    """A comparison that a run makes for itself: floors, and the ceiling that tokenizer and target limit leave."""

    copy = "copy"  # the source
    lead3 = "lead3"  # its first three sentences
    ceiling = "ceiling"  # the first reference, through the decoder's tokenizer and the target limit
    random = "random"  # the same model from random weights, trained


class Share(Enum):
    """Which parameters encoder and decoder have in common (cross-attention is always the decoder's own)."""

    none = "none"
    embeddings = "embeddings"
    all = "all"


class Group(Enum):
    """A kind of parameters that both halves have."""

    embeddings = "embeddings"  # of words, positions and token types, with their norm
    word_embeddings = "word_embeddings"  # the matrix alone, which halves of different architecture can share
    self_attention = "self_attention"
    feed_forward = "feed_forward"
    layer_norm = "layer_norm"


class Parts(Enum):
    """What a warm-started half takes from its checkpoint; the rest starts from random weights."""

    all = "all"
    embeddings = "embeddings"
    all_but_embeddings = "all_but_embeddings"


class Init(Enum):
    """Which halves start from their checkpoint; the others start from random weights of the same shape."""

    both = "both"
    encoder = "encoder"
    decoder = "decoder"
    none = "none"


class Order(Enum):
    """How examples are drawn into global batches."""

    random = "random"
    length_pooled = "length_pooled"


class LastBatch(Enum):
    """What happens to the examples left over at the end of an epoch."""

    ragged = "ragged"
    drop = "drop"


class OptimizerName(Enum):
    """The optimizers on offer."""

    adamw = "adamw"
    adam = "adam"


class Schedule(Enum):
    """The shape of the learning rate after warm-up; `linear` and `cosine` reach zero just after the last step."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    inverse_sqrt = "inverse_sqrt"


class Accelerator(Enum):
    """Where tensors live; `auto` takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Precision(Enum):
    """What is computed in; weights and optimizer state are float32 in both."""

    fp32 = "fp32"
    bf16 = "bf16"


class TrackerName(Enum):
    """Where curves and scores are shown besides `metrics.jsonl`; `auto` is wandb when it is configured, else none."""

    auto = "auto"
    wandb = "wandb"
    tensorboard = "tensorboard"
    csv = "csv"
    none = "none"


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


def _within(low: float, high: float | None = None, *, below: float | None = None) -> Any:  # noqa: ANN401 - dataclasses.field
    return field(metadata={"low": low, "high": high, "below": below})


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
    metrics: list[str]
    max_source_tokens: int | None = _within(2)  # special tokens included; null (not to train): the export's
    max_target_tokens: int | None = _within(2)  # the end token included
    overlong: Overlong
    revision: str | None  # pins a data set of the Hub
    num_train_examples: int | None = _within(1)  # the first so many; null: all
    num_validation_examples: int | None = _within(1)
    num_test_examples: int | None = _within(1)
    train_fraction: float = _within(1e-6, 1)  # of the training rows, drawn at random
    fraction_seed: int = _within(0, 2**32 - 1)  # of that draw; not the run's, so that all seeds see the same rows
    subset: str | None  # of DiscoFuse: wikipedia, sport, or balanced, which is in files only
    wmt_year: int | None = _within(2014, 2019)
    language_pair: str | None  # of WMT: source and target, such as en-de

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
    encoder_layers: list[int | str] | None  # of the checkpoint, counted from 1, such as [9,10,13-18]; null: all
    decoder_layers: list[int | str] | None
    dropout: float | None = _within(0, below=1)  # null: what the checkpoint says
    attention_dropout: float | None = _within(0, below=1)

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

    batch_examples: int | None = _within(1)  # of the global batch
    batch_target_tokens: int | None = _within(1)  # of the global batch, without padding
    max_micro_tokens: int | str  # source + target of a micro-batch with padding, or `auto`
    order: Order
    last_batch: LastBatch
    num_workers: int = _within(0)  # processes that collate


@dataclass(kw_only=True)
class OptimConfig:
    """How weights are updated."""

    name: OptimizerName
    lr: float = _within(0)  # at the end of warm-up
    schedule: Schedule
    warmup_steps: int | None = _within(0)  # null: a tenth of the run's steps
    weight_decay: float = _within(0)  # not on biases and layer norms
    beta1: float = _within(0, below=1)
    beta2: float = _within(0, below=1)
    eps: float = _within(0)
    label_smoothing: float = _within(0, below=1)
    max_grad_norm: float | None = _within(0)  # of the global gradient; null: no clipping
    freeze: list[str]  # parameters that stay as they are, by name with `*`, as in `encoder.*`
    freeze_warm_steps: int = _within(0)  # so long only what was initialised at random learns
    fresh_lr_factor: float = _within(0)  # of the learning rate, for what was initialised at random
    layer_decay: float = _within(0, 1)  # of the learning rate, a layer further from the output
    average_last: int = _within(1)  # points whose mean weights are taken in the end; 1: the best validation's
    average_every_steps: int | None = _within(1)  # between those points, the last one being the last step


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, where, and how often things are looked at. One step is one update of the weights."""

    max_steps: int | None = _within(1)
    max_epochs: int | None = _within(1)
    devices: int = _within(1)  # a node
    num_nodes: int = _within(1)
    accelerator: Accelerator
    precision: Precision
    gradient_checkpointing: bool  # compute activations again instead of keeping them: less memory
    validate_every_steps: int | None = _within(1)
    checkpoint_every_steps: int | None = _within(1)  # besides each validation and the last step
    log_every_steps: int = _within(1)
    keep_last: int = _within(1)  # checkpoints; the best one is kept besides
    best_metric: str  # `loss` or a metric of the task
    patience_validations: int | None = _within(1)  # validations without a better best_metric before the run stops
    decoded_examples: int = _within(0)  # of the validation split, at each validation; 0: its loss only
    stall_seconds: int | None = _within(5)  # so long no rank gets on before the run is ended; null: it is never
    max_skipped_steps: int = _within(0)  # updates left out because the gradient was not finite, before the run stops


@dataclass(kw_only=True)
class DecodingConfig:
    """How text is searched for. Null keeps what the export says, so it is no value to train with."""

    num_beams: int | None = _within(1)
    length_penalty: float | None  # score / length ** length_penalty, as in transformers
    max_new_tokens: int | None = _within(1)  # null to train with: the task's target limit
    no_repeat_ngram: int | None = _within(0)


@dataclass(kw_only=True)
class TrackingConfig:
    """Who else is told. Keys and passwords are read from the environment and never from here."""

    kind: TrackerName
    project: str
    entity: str | None
    group: str | None
    tags: list[str]


@dataclass(kw_only=True)
class BundleConfig:
    """What stands for the network."""

    path: str | None  # a folder that `encdec bundle` writes; null: none, and what is missing is downloaded


@dataclass(kw_only=True)
class TrainConfig:
    """Everything `encdec train` reads."""

    seed: int = _within(0, 2**32 - 1)
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
class EvaluateConfig:
    """Everything `encdec evaluate` reads."""

    checkpoint: str  # a run folder, an export folder or a Hub id
    split: str
    seed: int = _within(0, 2**32 - 1)  # of the bootstrap
    run: RunConfig
    task: TaskConfig
    data: DataConfig
    trainer: TrainerConfig
    decoding: DecodingConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class GenerateConfig:
    """Everything `encdec generate` reads."""

    checkpoint: str
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
    seed: int = _within(0, 2**32 - 1)  # of the bootstrap
    run: RunConfig
    task: TaskConfig
    bundle: BundleConfig


@dataclass(kw_only=True)
class CompareConfig:
    """Everything `encdec compare` reads."""

    a: str | list[str]  # a folder of `train` or `evaluate`, a prediction file, or several: seeds of one config
    b: str | list[str]
    split: str
    num_examples: int = _within(0)  # shown of those that changed most, in each direction
    seed: int = _within(0, 2**32 - 1)
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


AnyConfig = TrainConfig | EvaluateConfig | GenerateConfig | ScoreConfig | CompareConfig | VerifyConfig


def leaves(section: object, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield full key, value and metadata of every leaf of a config or section."""
    for f in fields(section) if is_dataclass(section) else ():
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f.metadata
