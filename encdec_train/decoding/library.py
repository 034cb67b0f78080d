"""The search by the library's `generate`, for every architecture that our own does not know."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor, PreTrainedModel

from encdec_train.check import NGRAMS_OF_PREFIX
from encdec_train.config import PenaltyForm
from encdec_train.data.collate import Tokens, pad_right
from encdec_train.decoding.loop import Found, Hypothesis
from encdec_train.decoding.settings import SearchSettings
from encdec_train.errors import ConfigError, ModelError, fault
from encdec_train.modeling.causal import prompts
from encdec_train.modeling.families import is_causal


def check(model: PreTrainedModel, settings: SearchSettings) -> None:
    """Refuse what `generate` has no word for.

    Raises:
        ConfigError: When there is something.
    """
    kind = getattr(getattr(model, "decoder", model).config, "model_type", "this")
    reason = f"the library's generate decodes {kind}, and has no such setting"
    wanted: dict[str, tuple[bool, object, str]] = {
        "length_penalty_form": (settings.length_penalty_form is PenaltyForm.gnmt, "transformers", reason),
        "max_length_ratio": (settings.max_length_ratio is not None, None, reason),
        "min_length_ratio": (settings.min_length_ratio > 0, 0, reason),
    }
    if is_causal(model):
        wanted["no_repeat_ngram"] = (settings.no_repeat_ngram > 0, 0, NGRAMS_OF_PREFIX)
        wanted["repetition_penalty"] = (
            settings.repetition_penalty != 1,
            1,
            "the source's tokens would count as written",
        )
    faults = [
        fault(f"decoding.{key}", str(usual), getattr(settings, key), why)
        for key, (is_wanted, usual, why) in wanted.items()
        if is_wanted
    ]
    if faults:
        raise ConfigError(faults)


@torch.no_grad()
def search(
    model: PreTrainedModel, sources: Mapping[int, Tokens], settings: SearchSettings, name: Callable[[int], str]
) -> Iterator[Found]:
    """Yield what `Loop` yields, a batch at a time; how close choices were is not known.

    What is drawn depends on the seed and on who is in the batch; torch's random state stays as it was.
    """
    indices, devices = list(sources), [model.device] if model.device.type == "cuda" else []
    for batch in batches([len(sources[index]) for index in indices], settings):
        chosen = {indices[position]: sources[indices[position]] for position in batch}
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.default_rng([settings.seed, *chosen]).integers(1 << 63)))
            found = list(_generate(model, chosen, settings, _Numbers(list(map(name, chosen)))))
        yield from found


class _Numbers(LogitsProcessor):
    """Looks for scores that are no numbers, which the library would go on with."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._broken = names, torch.zeros((), dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._broken = self._broken.to(scores.device) | scores.isnan().any(-1).view(len(self._names), -1).any(-1)
        return scores

    def check(self, reason: str) -> None:
        """Name the first example whose scores were no numbers.

        Raises:
            ModelError: There is one.
        """
        if bool(self._broken.any()):
            broken = self._names[int(self._broken.byte().argmax())]
            raise ModelError(fault(broken, "logits that are numbers", "nan", reason))


def batches(lengths: Sequence[int], settings: SearchSettings) -> Iterator[npt.NDArray[np.int64]]:
    """Cut sources into batches under the token budget, the longest first."""
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    width, start = max(settings.num_beams, settings.num_return_sequences), 0
    while start < len(order):
        row = width * (lengths[order[start]] + settings.max_new_tokens)
        rows = max(settings.max_batch_tokens // row, 1)
        yield order[start : start + rows]
        start += rows


def _generate(
    model: Any,  # noqa: ANN401 - any model of the library
    sources: Mapping[int, Tokens],
    settings: SearchSettings,
    numbers: _Numbers,
) -> Iterator[Found]:
    config = settings.generation_config(model)
    config.return_dict_in_generate, config.output_scores = True, settings.num_beams > 1
    prefix = list(settings.prefix_ids)
    if is_causal(model):
        ids_BS, mask_BS = prompts([[*source, *prefix] for source in sources.values()], config.pad_token_id)
        begun, start = {}, ids_BS.shape[1] - len(prefix)
    else:
        ids_BS, mask_BS = pad_right(list(sources.values()), int(model.encoder.config.pad_token_id or 0))
        prompt = torch.tensor([[config.decoder_start_token_id, *prefix]], device=model.device)
        begun, start = {"decoder_input_ids": prompt.expand(len(sources), -1)}, 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_length.*")
        try:
            found = model.generate(
                input_ids=ids_BS.to(model.device),
                attention_mask=mask_BS.long().to(model.device),
                generation_config=config,
                logits_processor=[numbers],
                **begun,
            )
        except RuntimeError as error:
            numbers.check(str(error))
            raise
    numbers.check("the model's weights or its numbers are damaged")
    rows = found.sequences[:, start:].unflatten(0, (len(sources), -1)).tolist()
    scores = getattr(found, "sequences_scores", None)
    ranked = scores.view(len(sources), -1).tolist() if scores is not None else [[0.0] * len(row) for row in rows]
    ends = np.atleast_1d(config.eos_token_id).tolist()
    for index, several, values in zip(sources, rows, ranked, strict=True):
        texts = [_until(row, ends, len(prefix)) for row in several]
        yield Found(index, [Hypothesis(*one) for one in zip(texts, values, strict=True)], close=False)


def _until(row: list[int], ends: Sequence[int], first: int) -> list[int]:
    """Cut a row at its first end after the prompt."""
    return row[: next((place for place in range(first, len(row)) if row[place] in ends), len(row))]
