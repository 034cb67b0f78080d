"""Validation: the loss of the whole split, and the scores of a fixed part of it, decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import EncoderDecoderModel

from encdec_train import distributed
from encdec_train.data.collate import collate
from encdec_train.data.plan import BatchSize, plan_epoch, split_batch
from encdec_train.data.preprocess import EncodedSplit, TextCodec
from encdec_train.decoding.predictions import predict
from encdec_train.decoding.search import Engine, SearchSettings
from encdec_train.metrics import METRICS
from encdec_train.modeling.loss import loss_sum
from encdec_train.training.module import Seq2SeqModule

SUBSET_SEED = 0  # of the examples that are decoded: the same ones in every run, so that curves can be compared


@dataclass(frozen=True)
class Validation:
    """What one validation found."""

    values: Mapping[str, float]  # `loss` (token mean in nats, no label smoothing) and the metrics' values
    examples: Sequence[Mapping[str, str]]  # source, prediction and reference of the decoded ones


class Validator:
    """Validates a module on one split; `num_decoded` examples are decoded, a random part fixed for all runs."""

    def __init__(
        self,
        split: EncodedSplit,
        codec: TextCodec,
        search: SearchSettings,
        metrics: Sequence[str],
        num_decoded: int,
        max_micro_tokens: int,
    ) -> None:
        self._split, self._codec, self._search, self._metrics = split, codec, search, metrics
        self._max_micro_tokens = max_micro_tokens
        self._lengths = np.stack([split.source_lengths, split.target_lengths], axis=1)
        everything = BatchSize(examples=max(len(split), 1), target_tokens=None)
        shuffled = plan_epoch(self._lengths, SUBSET_SEED, 0, everything)[0]
        self._decoded = sorted(int(index) for index in shuffled[:num_decoded])

    def __call__(self, module: Seq2SeqModule) -> Validation:
        """Validate; every rank must call it."""
        with module.whole_model() as model, module.autocast():
            values = {"loss": self._loss(model.eval())}
            texts = predict(Engine(model), self._split, self._decoded, self._codec, self._search, "validate")
            model.train()
        rows = self._split.rows
        references = [rows.references[index] for index in self._decoded]
        sources = [rows.sources[index] for index in self._decoded]
        if texts:
            tables = {name: METRICS[name].statistics(texts, references, sources) for name in self._metrics}
            values |= {name: METRICS[name].value(table.sum(axis=0)) for name, table in tables.items()}
        examples = [
            {"source": source, "prediction": text, "reference": several[0]}
            for source, text, several in zip(sources, texts, references, strict=True)
        ]
        return Validation(values, examples)

    @torch.no_grad()
    def _loss(self, model: EncoderDecoderModel) -> float:
        rank, ranks = distributed.rank(), distributed.world_size()
        everything = np.arange(len(self._split))
        pads = (self._codec.source_pad_id, self._codec.pad_id)
        total = torch.zeros(2, dtype=torch.float64, device=model.device)
        for indices in split_batch(everything, self._lengths, self._max_micro_tokens, ranks)[rank]:
            distributed.moved("the loss of a validation")
            micro = collate(*self._split.take(indices), self._codec.decoder_start_id, pads).to(model.device)
            total += torch.stack(
                [loss_sum(model, micro, pack=True).double(), torch.tensor(len(micro.labels_N)).to(total)]
            )
        distributed.moved("the loss of a validation", waits=True)
        summed, tokens = distributed.all_sum(total).tolist()
        return float(summed / tokens)
