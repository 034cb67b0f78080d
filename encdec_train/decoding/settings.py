"""How to search: every choice explicit, from the config, then the task, then what the checkpoint says."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil, floor
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from encdec_train.check import check_decoding
from encdec_train.config import DecodingConfig, PenaltyForm
from encdec_train.errors import ConfigError, fault

# their names in a generation_config.json; the library keeps, and does not read, those that are our own
_NAMES = {
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "length_penalty_form": "length_penalty_form",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_new_tokens",
    "min_length_ratio": "min_length_ratio",
    "max_length_ratio": "max_length_ratio",
    "prefix": "prefix",
}
_OWN = {"length_penalty_form": PenaltyForm.transformers, "min_length_ratio": 0.0, "max_length_ratio": None}


@dataclass(frozen=True)
class TokenRules:
    """Tokens that a checkpoint's generation settings force or forbid."""

    forced_bos: int | None = None  # the first token
    forced_eos: int | None = None  # the last token that the limit leaves room for
    suppressed: Sequence[int] = ()  # never
    begin_suppressed: Sequence[int] = ()  # not as the first token


@dataclass(frozen=True)
class SearchSettings:
    """How to search; every length is explicit (known_defects D15)."""

    num_beams: int  # hypotheses kept at each step; 1 is greedy
    length_penalty: float  # what it is to the score: `length_penalty_form`
    max_new_tokens: int  # the longest output, end token included, prefix not
    no_repeat_ngram: int  # no n-gram of this size occurs twice; 0 is off
    max_batch_tokens: int  # source + new tokens of all beams in one batch, padding counted
    length_penalty_form: PenaltyForm = PenaltyForm.transformers
    min_new_tokens: int = 0  # no end before
    min_length_ratio: float = 0.0  # the same, in tokens of the source
    max_length_ratio: float | None = None  # max_new_tokens, in tokens of the source
    repetition_penalty: float = 1.0  # tokens that were written are less likely by this factor
    temperature: float | None = None  # None seeks the most probable text; a number draws tokens at random
    top_k: int | None = None  # of which they are drawn
    top_p: float | None = None
    num_return_sequences: int = 1  # hypotheses that are returned
    prefix: str = ""  # what every output begins with
    prefix_ids: Sequence[int] = ()  # its tokens
    seed: int = 0  # of what is drawn
    rules: TokenRules = field(default_factory=TokenRules)

    @classmethod
    def of(
        cls,
        decoding: DecodingConfig,
        max_target_tokens: int | None,
        max_batch_tokens: int,
        exported: GenerationConfig | None = None,
        seed: int = 0,
    ) -> "SearchSettings":
        """Fill what the config leaves open: the limit with the task's, everything with the export's.

        Raises:
            ConfigError: When neither says how long an output may be, or what they say together cannot be done.
        """
        said = {f.name: getattr(decoding, f.name) for f in fields(decoding)}
        said["max_new_tokens"] = decoding.max_new_tokens or max_target_tokens
        usual = {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": None, "no_repeat_ngram": 0}
        theirs = {**usual, **_said(exported)}
        filled: dict[str, Any] = {**theirs, **{key: value for key, value in said.items() if value is not None}}
        if filled["max_new_tokens"] is None:
            reason = "the checkpoint states no limit"
            raise ConfigError(fault("decoding.max_new_tokens", "a number of tokens", None, reason))
        if faults := check_decoding(replace(decoding, **{key: filled.get(key) for key in said})):
            raise ConfigError(faults)
        return cls(**filled, max_batch_tokens=max_batch_tokens, seed=seed, rules=_rules(exported))

    @classmethod
    def of_library(cls, config: GenerationConfig, max_batch_tokens: int) -> "SearchSettings | None":
        """Translate the library's settings; None where they say what our own search does not have."""
        known = {*_NAMES.values(), "max_new_tokens", "max_length", "min_length", "num_return_sequences", "use_cache"}
        known |= {f"{name}_token_id" for name in ("decoder_start", "bos", "eos", "pad", "forced_bos", "forced_eos")}
        known |= {"suppress_tokens", "begin_suppress_tokens", "transformers_version", "_from_model_config"}
        said = {key for key, value in config.to_diff_dict().items() if value not in (None, False)}
        if said - known or not config.max_new_tokens:
            return None
        shortest = config.min_new_tokens or max((config.min_length or 0) - 1, 0)  # it counts the start token
        values = {**_said(config), "min_new_tokens": shortest, "num_return_sequences": config.num_return_sequences or 1}
        usual = {"num_beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0}
        return cls(**{**usual, **values}, max_batch_tokens=max_batch_tokens, rules=_rules(config))

    def limits(self, num_source_tokens: int) -> tuple[int, int]:
        """Return the fewest new tokens before an end and the most of all, for a source of a length."""
        longest = self.max_new_tokens
        if self.max_length_ratio is not None:
            longest = max(1, min(longest, floor(self.max_length_ratio * num_source_tokens)))
        shortest = max(self.min_new_tokens, ceil(self.min_length_ratio * num_source_tokens))
        return min(shortest, longest), longest

    def penalty(self, length: int) -> float:
        """Return what the log-probability of `length` new tokens, end included, is divided by.

        Source: `transformers` divides by length ** length_penalty; GNMT (Wu et al. 2016, arXiv 1609.08144, equation 14)
        by ((5 + length) / 6) ** alpha.
        """
        base = (5 + length) / 6 if self.length_penalty_form is PenaltyForm.gnmt else length
        return float(base**self.length_penalty)

    def generation_config(self, model: PreTrainedModel) -> GenerationConfig:
        """Say the same to the library, with the model's own start, end and pad."""
        ids: Any = model.generation_config
        said: dict[str, Any] = {theirs: getattr(self, ours) for ours, theirs in _NAMES.items() if ours not in _OWN}
        said["length_penalty"] = self.length_penalty if self.num_beams > 1 else 1.0  # else saving is refused
        said |= {name: getattr(self, name) for name, usual in _OWN.items() if getattr(self, name) != usual}
        if "length_penalty_form" in said:
            said["length_penalty_form"] = self.length_penalty_form.value
        if not self.prefix:
            del said["prefix"]
        drawn = {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p or 1.0}
        return GenerationConfig(
            **said,
            **(drawn if self.temperature is not None else {}),
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=self.num_return_sequences,
            do_sample=self.temperature is not None,
            early_stopping=False,
            forced_bos_token_id=self.rules.forced_bos,
            forced_eos_token_id=self.rules.forced_eos,
            suppress_tokens=list(self.rules.suppressed) or None,
            begin_suppress_tokens=list(self.rules.begin_suppressed) or None,
            decoder_start_token_id=ids.decoder_start_token_id,
            bos_token_id=ids.bos_token_id,
            eos_token_id=ids.eos_token_id,
            pad_token_id=ids.pad_token_id,
        )


def _said(exported: GenerationConfig | None) -> dict[str, Any]:
    """Read what a checkpoint's generation settings say, in our names."""
    if exported is None:
        return {}
    said = {ours: getattr(exported, theirs, None) for ours, theirs in _NAMES.items()}
    said["max_new_tokens"] = exported.max_new_tokens or exported.max_length
    if said["length_penalty_form"] is not None:
        said["length_penalty_form"] = PenaltyForm(said["length_penalty_form"])
    return {key: value for key, value in said.items() if value is not None}


def _rules(exported: GenerationConfig | None) -> TokenRules:
    if exported is None:
        return TokenRules()
    return TokenRules(
        exported.forced_bos_token_id,
        exported.forced_eos_token_id,
        tuple(exported.suppress_tokens or ()),
        tuple(exported.begin_suppress_tokens or ()),
    )
