"""A tiny BERT pair and its examples, for comparing ways to train it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BertConfig, BertLMHeadModel, BertModel, EncoderDecoderModel

from encdec_train.config import OptimConfig, OptimizerName, Schedule
from encdec_train.data.collate import pad_right
from encdec_train.data.plan import BatchSize, Ints, Plan
from encdec_train.data.preprocess import TextCodec

STEP_EXAMPLES = 8
VOCABULARY, START, EOS, PAD = 40, 2, 3, 0
CODEC = TextCodec(None, None, START, EOS, PAD, PAD)  # its tokenizers are for text, and there is none here


@dataclass(frozen=True)
class Setting:
    """What all splits of one comparison have in common.

    Attributes:
        dtype: Of weights and computation.
        label_smoothing: As in `OptimConfig`.
        max_grad_norm: As in `OptimConfig`; 0.05 clips every step.
        frozen: Whether the encoder's embeddings stay as they are.
        num_examples: Of the epoch, which has five steps of 8; 38 leave 6 to the last, 33 leave 1.
        equal_targets: Whether all targets have the same length.
    """

    dtype: torch.dtype = torch.float64
    label_smoothing: float = 0.1
    max_grad_norm: float | None = 0.05
    frozen: bool = True
    num_examples: int = 38
    equal_targets: bool = False


class Examples:
    """Random pairs, the same for the same setting; what the DataModule asks of an `EncodedSplit`."""

    def __init__(self, setting: Setting) -> None:
        draw = np.random.default_rng(0)
        lengths = np.stack([draw.integers(3, 11, setting.num_examples), draw.integers(2, 10, setting.num_examples)], 1)
        if setting.equal_targets:
            lengths[:, 1] = 6
        self._sources = [draw.integers(5, VOCABULARY, length) for length in lengths[:, 0]]
        self._targets = [np.append(draw.integers(5, VOCABULARY, length - 1), EOS) for length in lengths[:, 1]]
        self.plan = Plan(lengths, 11, BatchSize(STEP_EXAMPLES, None))

    def take(self, indices: Sequence[int] | Ints) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return sources and targets."""
        return [self._sources[i] for i in indices], [self._targets[i] for i in indices]

    def columns(self, indices: Sequence[int] | Ints) -> dict[str, torch.Tensor]:
        """Return one padded batch under the library's names."""
        sources, targets = self.take(indices)
        source_ids, source_mask = pad_right(sources, PAD)
        labels, mask = pad_right(targets, PAD)
        inputs = torch.cat([torch.full((len(labels), 1), START), labels[:, :-1]], dim=1)
        return {
            "input_ids": source_ids, "attention_mask": source_mask.long(), "decoder_input_ids": inputs,
            "decoder_attention_mask": mask.long(), "labels": labels.masked_fill(~mask, -100),
        }  # fmt: skip


def pair(setting: Setting) -> EncoderDecoderModel:
    """Build a BERT pair of two layers and hidden size 32, without dropout."""
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = BertModel(BertConfig(**shape), add_pooling_layer=False)
        decoder = BertLMHeadModel(BertConfig(**shape, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder).to(setting.dtype).train()
    model.config.pad_token_id, model.config.decoder_start_token_id = PAD, START
    if setting.frozen:
        model.encoder.embeddings.requires_grad_(False)
    return model


def optim(setting: Setting) -> OptimConfig:
    """AdamW at a constant rate."""
    return OptimConfig(
        name=OptimizerName.adamw, lr=2e-3, schedule=Schedule.constant, warmup_steps=0, weight_decay=0.1,
        betas=[0.9, 0.99], eps=1e-8, label_smoothing=setting.label_smoothing, max_grad_norm=setting.max_grad_norm,
        freeze=[], freeze_warm_steps=0, fresh_lr_factor=1.0, layer_decay=1.0, average_last=1, average_every_steps=None,
    )  # fmt: skip
