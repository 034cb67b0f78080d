"""The closed choices of the configuration: a key with one of these takes its names and nothing else."""

from enum import Enum


class Overlong(Enum):
    """What happens to a pair that is longer than the task's limits."""

    truncate = "truncate"
    refuse = "refuse"


class BadRecords(Enum):
    """What happens to a record that cannot be used; those of a test split are always refused."""

    refuse = "refuse"
    skip = "skip"  # set aside and listed, up to a bound; the rest is used


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


class CrossInit(Enum):
    """What the decoder's cross-attention starts from where its checkpoint has none."""

    fresh = "fresh"  # random weights: what the paper's variants mean
    self_attention = "self_attention"  # a copy of the same layer's own


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
