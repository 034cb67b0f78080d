"""A batch small enough to be read, and what a plain implementation makes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.data.collate import collate
from encdec_train.decoding.search import SearchSettings
from encdec_train.modeling.export import export

# [CLS] the cat sat on the mat [SEP] and shorter ones; targets are tokens + [SEP]
SOURCES = [[2, 5, 7, 10, 13, 5, 16, 3], [2, 6, 8, 3], [2, 9, 11, 3], [2, 5, 5, 5, 5, 3],
           [2, 31, 3], [2, 20, 21, 22, 23, 24, 25, 3], [2, 5, 7, 3], [2, 6, 3]]  # fmt: skip
TARGETS = [[5, 7, 3], [8, 6, 9, 10, 3], [3], [11, 3], [12, 13, 14, 3], [15, 3], [5, 5, 5, 5, 5, 5, 3], [6, 7, 3]]


@pytest.fixture
def eight() -> MicroBatch:
    """Eight examples of unequal lengths in one micro-batch; 27 labels."""
    return collate(SOURCES, TARGETS, 2, (0, 0))


@pytest.fixture
def pieces() -> Callable[[int], list[MicroBatch]]:
    """The same eight examples in so many micro-batches."""

    def cut(number: int) -> list[MicroBatch]:
        size = len(SOURCES) // number
        starts = range(0, len(SOURCES), size)
        return [collate(SOURCES[i : i + size], TARGETS[i : i + size], 2, (0, 0)) for i in starts]

    return cut


@pytest.fixture
def plain_sum() -> Callable[[Any, MicroBatch], torch.Tensor]:
    """The summed loss by the library's own forward, with explicit masks, logits picked out one by one."""

    def compute(model: Any, micro: MicroBatch) -> torch.Tensor:
        logits = model(
            input_ids=micro.source_ids_BS,
            attention_mask=micro.source_mask_BS.long(),
            decoder_input_ids=micro.decoder_ids_BT,
            decoder_attention_mask=micro.target_mask_BT.long(),
        ).logits
        at = micro.target_mask_BT.nonzero().tolist()
        rows = [logits[b, t] for b, t in at]
        return sum(row.exp().sum().log() - row[label] for row, label in zip(rows, micro.labels_N.tolist(), strict=True))

    return compute


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change keys of a JSON file: `edit_json(path, key=value)`; None removes the key."""

    def edit(path: Path, **changes: Any) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


@pytest.fixture
def exported(tiny_source: Any, tmp_path: Path) -> Callable[..., Path]:
    """Export a model of the tiny BERT: `exported(model, settings, decoder_tokenizer=None)`."""

    def write(model: Any, settings: SearchSettings, decoder_tokenizer: Any = None) -> Path:
        tokenizers = (tiny_source.tokenizer, decoder_tokenizer or tiny_source.tokenizer)
        export(model, tmp_path / "export", tokenizers, settings.generation_config(model), (16, 12), "# A card\n")
        return tmp_path / "export"

    return write
