"""What is examined, and one training step of it read back."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import EncoderDecoderModel

from encdec_train.batch import MicroBatch
from encdec_train.config import TrainConfig
from encdec_train.data.collate import collate
from encdec_train.data.preprocess import EncodedSplit, TextCodec
from encdec_train.decoding.search import SearchSettings
from encdec_train.errors import ConfigError, fault
from encdec_train.modeling import families
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.precision import autocast
from encdec_train.session import Session, device_type, find_splits, local_model, open_session, search_of, warm_start

NUM_READ = 1000  # pairs of the training split that the examples are taken from
NUM_EXAMPLES = 16  # of them, the shortest, go through the model
MAX_TOKENS = 16  # of a source or target; what is longer is cut: the head over the vocabulary takes most of the time
NUM_LAYERS = 2  # of each half are left in a crop
NUM_FEW = 4  # examples for what is computed in float64, and for the training step
PAST = 2  # columns of padding that a check adds


class Status(Enum):
    """What a check says."""

    ok = "ok"
    warning = "warning"
    fail = "FAIL"
    not_run = "not run"


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it where it is not ok."""

    status: Status
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, wrong: object, found: str, remedy: str, status: Status = Status.fail) -> "Finding":
        """Judge: `status` with its remedy where something is `wrong`, else ok."""
        return cls(status, found, remedy) if wrong else cls(Status.ok, found)


@dataclass(frozen=True)
class Step:
    """What was read back inside one training step."""

    losses: tuple[float, float]  # of two forwards with different seeds
    asleep: Sequence[str]  # modules that were not in train mode
    gradients: dict[str, float | None]  # norms by name of the trainable parameters; None: it took no part
    computed: set[torch.dtype]  # what linear layers put out
    kernels: dict[str, int]  # calls of each attention kernel in a forward


@dataclass(eq=False)
class Patient:
    """What is examined."""

    model: EncoderDecoderModel  # as it would be trained
    codec: TextCodec
    sources: Sequence[Sequence[int]]  # tokens of a few examples
    targets: Sequence[Sequence[int]]  # their `tokens + eos`
    texts: Sequence[str]  # their targets, not cut
    micro: MicroBatch  # the same examples, collated
    search: SearchSettings
    config: TrainConfig
    cut: tuple[int, int, int] = (0, 0, 1)  # sources and targets that were cut, of so many pairs
    split: EncodedSplit | None = None  # the pairs that were read

    @property
    def halves(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        """Both halves with their names; twice a model without an encoder."""
        return families.sides(self.model)

    @cached_property
    def exact(self) -> Any:  # noqa: ANN401 - a pair, with attributes the library does not declare
        """The first layers without dropout in float64, where what changes nothing changes no digit of a loss."""
        return cropped(self.model).double().eval()

    @cached_property
    def few(self) -> MicroBatch:
        """The first examples, each with padding."""
        source_ids_BS, source_mask_BS, decoder_ids_BT, target_mask_BT = (
            F.pad(value[:NUM_FEW], (0, PAST)) for value in vars(self.micro).values() if value.ndim > 1
        )
        labels_N = self.micro.labels_N[: int(target_mask_BT.sum())]
        return MicroBatch(source_ids_BS, source_mask_BS, decoder_ids_BT, target_mask_BT, labels_N)

    @torch.no_grad()
    def loss(self, **changes: torch.Tensor) -> float:
        """Return the loss sum of `few` with some of its tensors changed."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # XGLM's attention makes a tensor of its own
        try:
            return float(loss_sum(self.exact, replace(self.few, **changes)))
        finally:
            torch.set_default_dtype(default)

    @cached_property
    def step(self) -> Step:
        """Make a training step, but for the update, and read back what it did."""
        computed, asleep = set(), [name for name, module in self.model.named_modules() if not module.training]
        linear = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        hooks = [one.register_forward_hook(lambda _, __, out: computed.add(out.dtype)) for one in linear]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), autocast(self.config.trainer.precision, self.model.device.type):
            torch.manual_seed(0)
            first = loss_sum(self.model, self.few)
            torch.manual_seed(1)
            with torch.no_grad(), Operators() as operators:
                second = loss_sum(self.model, self.few)
        for hook in hooks:
            hook.remove()
        first.backward()
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        gradients = {name: None if p.grad is None else float(p.grad.norm()) for name, p in trained}
        self.model.zero_grad(set_to_none=True)
        kernels = {name: count for name, count in operators.calls.items() if name.startswith("_scaled_dot_product")}
        if operators.calls["_safe_softmax"]:  # of SDPA alone, where no fused kernel takes the case, as dropout on a CPU
            kernels["math"] = operators.calls["_safe_softmax"]
        return Step((first.item(), second.item()), asleep, gradients, computed, kernels)


def cropped(model: EncoderDecoderModel) -> Any:  # noqa: ANN401 - a pair, with attributes the library does not declare
    """Copy the model with its first layers only; what is shared stays shared, and the others are never copied."""
    memo: dict[int, Any] = {}
    for _, half in families.sides(model):
        layers = families.layers(half)[1]
        memo[id(layers)] = nn.ModuleList(copy.deepcopy(layer, memo) for layer in layers[:NUM_LAYERS])
    crop = copy.deepcopy(model, memo)
    for _, half in families.sides(crop):
        half.config.num_hidden_layers = min(NUM_LAYERS, half.config.num_hidden_layers)
    return crop


class Operators(TorchDispatchMode):
    """Counts what torch really runs, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.calls[func._opname] += 1
        return func(*args, **(kwargs or {}))


def admit(config: TrainConfig) -> Patient:
    """Load what is examined, as `train` does, with the first pairs of the training split.

    Raises:
        EncDecError: When a run could not start either.
    """
    device = device_type(config.trainer.accelerator)
    task = replace(config.task, num_train_examples=min(NUM_READ, config.task.num_train_examples or NUM_READ))
    config = replace(config, task=task, model=local_model(config))
    sources = {name: one for name, one in find_splits(config).items() if name == "train"}
    if not sources:
        reason = f"task={task.name} has nothing to train on"
        raise ConfigError(fault("task.train_file", "a file of pairs", None, reason))
    session = open_session(config, {name: one.load() for name, one in sources.items()}, sources)
    model: Any = warm_start(config, session, config.model.init).model
    return patient_of(config, session, model.to(device))


def patient_of(config: TrainConfig, session: Session, model: Any) -> Patient:  # noqa: ANN401 - a pair, or a decoder alone
    """Take a loaded model with the shortest of the first examples that it would be trained on."""
    codec, split = session.codec, session.splits["train"]
    limit = min(MAX_TOKENS, *(families.max_positions(half.config) or MAX_TOKENS for _, half in families.sides(model)))
    texts, ids, targets = _short(split, codec, limit - PAST)
    micro = collate(ids, targets, codec.decoder_start_id, (codec.source_pad_id, codec.pad_id)).to(model.device)
    cut = (split.num_truncated_sources, split.num_truncated_targets, len(split))
    return Patient(model, codec, ids, targets, texts, micro, search_of(config), config, cut, split)


def _short(split: EncodedSplit, codec: TextCodec, limit: int) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Take the shortest pairs with sources of their own: texts of the targets, and tokens cut to `limit`."""
    order = (split.source_lengths[:NUM_READ] + split.target_lengths[:NUM_READ]).argsort(kind="stable").tolist()
    chosen: dict[tuple[int, ...], tuple[str, list[int]]] = {}
    for index in order:
        source = codec.cut_source(split.source_ids[index].tolist(), limit)
        target = codec.cut_target(split.target_ids[index].tolist(), limit)
        chosen.setdefault(tuple(source), (split.rows.targets[index], target))
        if len(chosen) == NUM_EXAMPLES:
            break
    texts, targets = zip(*chosen.values(), strict=True)
    return list(texts), [list(source) for source in chosen], list(targets)
