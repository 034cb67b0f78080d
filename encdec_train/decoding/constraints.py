"""What an output must and must not be: the library's own logits processors, and lengths by example."""

import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from encdec_train.decoding.settings import SearchSettings


class Constraints:
    """Changes the scores of next tokens, in the order that the library has.

    Args:
        settings: What is wanted.
        num_prompt_tokens: Start token and prefix.
        eos_ids: The tokens that end an output.
    """

    def __init__(self, settings: SearchSettings, num_prompt_tokens: int, eos_ids: torch.Tensor) -> None:
        rules, self._num_prompt, self._eos_ids = settings.rules, num_prompt_tokens, eos_ids
        self._forced_eos, device = rules.forced_eos, str(eos_ids.device)
        self._lengths = settings.min_new_tokens > 0 or settings.min_length_ratio > 0
        self._before, self._after = list[LogitsProcessor](), list[LogitsProcessor]()
        if settings.repetition_penalty != 1:
            self._before.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.no_repeat_ngram:
            self._before.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram))
        if rules.forced_bos is not None:
            self._after.append(ForcedBOSTokenLogitsProcessor(rules.forced_bos))
        self._last = list[LogitsProcessor]()
        if rules.suppressed:
            self._last.append(SuppressTokensLogitsProcessor(list(rules.suppressed), device))
        if rules.begin_suppressed:
            first = num_prompt_tokens + (num_prompt_tokens == 1 and rules.forced_bos is not None)
            self._last.append(SuppressTokensAtBeginLogitsProcessor(list(rules.begin_suppressed), first, device))
        if settings.temperature is not None:
            self._last.append(TemperatureLogitsWarper(float(settings.temperature)))
            if settings.top_k:
                self._last.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p is not None and settings.top_p < 1:
                self._last.append(TopPLogitsWarper(settings.top_p))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to change."""
        return not (self._lengths or self._before or self._after or self._last or self._forced_eos is not None)

    def __call__(
        self, ids_NWT: torch.Tensor, scores_NWV: torch.Tensor, steps_N: torch.Tensor, limits_2N: torch.Tensor
    ) -> torch.Tensor:
        """Return the changed scores.

        Args:
            ids_NWT: What was written, from the start token on; beyond `num_prompt_tokens + step` it does not matter.
            scores_NWV: Of each next token.
            steps_N: How many tokens each example has written, on the CPU.
            limits_2N: The fewest and the most tokens of each, on the CPU.
        """
        if self.idle:
            return scores_NWV
        scores = self._processed(self._before, ids_NWT, scores_NWV, steps_N)
        if self._lengths and (early := steps_N < limits_2N[0]).any():
            rows = early.nonzero()[:, 0].to(scores.device)
            scores = scores.clone()
            scores[rows[:, None], :, self._eos_ids] = -torch.inf
        scores = self._processed(self._after, ids_NWT, scores, steps_N)
        if self._forced_eos is not None and (last := steps_N == limits_2N[1] - 1).any():
            scores = scores.clone()
            rows = last.nonzero()[:, 0].to(scores.device)
            scores[rows] = -torch.inf
            scores[rows, :, self._forced_eos] = 0
        return self._processed(self._last, ids_NWT, scores, steps_N)

    def _processed(
        self, processors: list[LogitsProcessor], ids: torch.Tensor, scores: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Apply processors to examples of one length at a time, as they expect it."""
        if not processors:
            return scores
        found, width = torch.empty_like(scores), scores.shape[1]
        for step in steps.unique().tolist():
            rows = (steps == step).nonzero()[:, 0].to(scores.device)
            written = ids[rows, :width, : self._num_prompt + step].flatten(0, 1)
            part = scores[rows].flatten(0, 1)
            for processor in processors:
                part = processor(written, part)
            found[rows] = part.unflatten(0, (-1, width))
        return found
