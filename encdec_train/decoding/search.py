"""The search for text: token lists in, token lists out, in the caller's order.

The interface is ours; the search itself is the library's `generate`. Sources are decoded longest first, in batches cut
by a token budget, so that little of a batch is padding.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import EncoderDecoderModel, GenerationConfig

from encdec_train.config import DecodingConfig
from encdec_train.data.collate import Tokens, pad_right
from encdec_train.errors import ConfigError, fault
from encdec_train.modeling.causal import check_room, continuations
from encdec_train.modeling.families import is_causal, max_positions


@dataclass(frozen=True)
class SearchSettings:
    """How to search; every length is explicit (known_defects D15)."""

    num_beams: int  # hypotheses kept at each step; 1 is greedy
    length_penalty: float  # scores are divided by `length ** length_penalty`
    max_new_tokens: int  # the longest output, end token included
    no_repeat_ngram: int  # no n-gram of this size occurs twice; 0 is off
    max_batch_tokens: int  # source + new tokens of all beams in one batch, padding counted

    @classmethod
    def of(
        cls,
        decoding: DecodingConfig,
        max_target_tokens: int | None,
        max_batch_tokens: int,
        exported: GenerationConfig | None = None,
    ) -> "SearchSettings":
        """Fill what the config leaves open: the limit with the task's, everything with the export's.

        Raises:
            ConfigError: When neither says how long an output may be.
        """
        values = {
            "num_beams": decoding.num_beams,
            "length_penalty": decoding.length_penalty,
            "max_new_tokens": decoding.max_new_tokens or max_target_tokens,
            "no_repeat_ngram": decoding.no_repeat_ngram,
        }
        defaults = {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": None, "no_repeat_ngram": 0}
        theirs = {**defaults, **_said(exported)}
        filled: dict[str, Any] = {key: theirs[key] if value is None else value for key, value in values.items()}
        if filled["max_new_tokens"] is None:
            reason = "the checkpoint states no limit"
            raise ConfigError(fault("decoding.max_new_tokens", "a number of tokens", None, reason))
        return cls(**filled, max_batch_tokens=max_batch_tokens)

    def generation_config(self, model: EncoderDecoderModel) -> GenerationConfig:
        """Say the same to the library, with the model's own start, end and pad."""
        ids = model.generation_config
        return GenerationConfig(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty if self.num_beams > 1 else 1.0,  # else saving is refused
            max_new_tokens=self.max_new_tokens,
            no_repeat_ngram_size=self.no_repeat_ngram,
            do_sample=False,
            early_stopping=False,
            decoder_start_token_id=ids.decoder_start_token_id,
            bos_token_id=ids.bos_token_id,
            eos_token_id=ids.eos_token_id,
            pad_token_id=ids.pad_token_id,
        )


def _said(exported: GenerationConfig | None) -> dict[str, Any]:
    """Read what a checkpoint's generation settings say, in our names."""
    if exported is None:
        return {}
    names = {"num_beams": "num_beams", "length_penalty": "length_penalty", "no_repeat_ngram": "no_repeat_ngram_size"}
    said = {ours: getattr(exported, theirs, None) for ours, theirs in names.items()}
    said["max_new_tokens"] = exported.max_new_tokens or exported.max_length
    return {key: value for key, value in said.items() if value is not None}


def decode(
    model: EncoderDecoderModel,
    sources: Sequence[Tokens],
    settings: SearchSettings,
    on_done: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Decode every source once.

    Args:
        model: The pair; its mode (train or eval) is restored afterwards.
        sources: Encoder tokens of each example, special tokens included.
        settings: How to search.
        on_done: Told the number of examples finished since it was last called.

    Returns:
        For each source its tokens, without start, end and padding; an empty list when the model ends at once.

    Raises:
        ConfigError: When a source or the output would pass the model's positions (known_defects D14).
    """
    _check_positions(model, sources, settings)
    outputs: list[list[int]] = [[] for _ in sources]
    was_training = model.training
    model.eval()
    try:
        for batch in _batches([len(source) for source in sources], settings):
            for index, tokens in zip(batch, _generate(model, [sources[i] for i in batch], settings), strict=True):
                outputs[index] = tokens
            if on_done is not None:
                on_done(len(batch))
    finally:
        model.train(was_training)
    return outputs


def _check_positions(model: EncoderDecoderModel, sources: Sequence[Tokens], settings: SearchSettings) -> None:
    longest = max(map(len, sources), default=0)
    if is_causal(model):
        check_room(model, longest, settings.max_new_tokens)
        return
    wanted = {
        "task.max_source_tokens": (longest, model.encoder),
        "decoding.max_new_tokens": (settings.max_new_tokens, model.decoder),
    }
    for key, (num_tokens, half) in wanted.items():
        positions = max_positions(half.config)
        if positions is not None and num_tokens > positions:
            raise ConfigError(fault(key, f"at most {positions}, the model's positions", num_tokens))


def _batches(lengths: Sequence[int], settings: SearchSettings) -> Iterator[npt.NDArray[np.int64]]:
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        row = settings.num_beams * (lengths[order[start]] + settings.max_new_tokens)
        rows = max(settings.max_batch_tokens // row, 1)
        yield order[start : start + rows]
        start += rows


@torch.no_grad()
def _generate(model: EncoderDecoderModel, sources: Sequence[Tokens], settings: SearchSettings) -> Iterator[list[int]]:
    config = settings.generation_config(model)
    if is_causal(model):
        yield from continuations(model, sources, config)
        return
    ids_BS, mask_BS = pad_right(sources, int(model.encoder.config.pad_token_id or 0))  # of the encoder's vocabulary
    device = model.device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_length.*")
        found_BT = cast(Any, model).generate(
            input_ids=ids_BS.to(device), attention_mask=mask_BS.long().to(device), generation_config=config
        )
    for row in found_BT[:, 1:].tolist():
        end = row.index(config.eos_token_id) if config.eos_token_id in row else len(row)
        yield row[:end]
