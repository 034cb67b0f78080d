"""The part of the typed configuration that says how text is searched for; `config.py` has the rest."""

from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from typing import Any


class PenaltyForm(Enum):
    """What `decoding.length_penalty` is to the score of a text: what its log-probability is divided by."""

    transformers = "transformers"  # length ** length_penalty
    gnmt = "gnmt"  # ((5 + length) / 6) ** length_penalty, the alpha of Wu et al. 2016


def within(low: float, high: float | None = None, *, below: float | None = None) -> Any:  # noqa: ANN401 - dataclasses.field
    """Declare a number with its range; `below` is not in it."""
    return field(metadata={"low": low, "high": high, "below": below})


@dataclass(kw_only=True)
class DecodingConfig:
    """How text is searched for. Null keeps what the export says, so it is no value to train with."""

    num_beams: int | None = within(1)
    length_penalty: float | None  # its meaning: length_penalty_form
    length_penalty_form: PenaltyForm | None
    max_new_tokens: int | None = within(1)  # null to train with: the task's target limit
    min_new_tokens: int | None = within(0)  # no end before
    max_length_ratio: float | None = within(0)  # new tokens to source tokens, special ones included, at most
    min_length_ratio: float | None = within(0)
    no_repeat_ngram: int | None = within(0)
    repetition_penalty: float | None = within(1)  # tokens that were written are less likely by this factor
    temperature: float | None = within(0)  # null: the most probable text; a number: tokens are drawn at random
    top_k: int | None = within(1)  # they are drawn of so many
    top_p: float | None = within(0, 1)  # or of those that have this probability together
    num_return_sequences: int | None = within(1)  # hypotheses an example; more than one: under `nbest`
    prefix: str | None  # what every output begins with


@dataclass(kw_only=True)
class SweepConfig:
    """Decoding settings that are tried, each with each, to choose the best on a split that is not the test's."""

    num_beams: list[int]  # nothing: what decoding says
    length_penalty: list[float]
    max_length_ratio: list[float]

    @property
    def settings(self) -> list[dict[str, int | float]]:
        """Return every combination; none where nothing is swept."""
        swept: dict[str, Any] = {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
        swept |= {"max_length_ratio": self.max_length_ratio}
        lists = {key: values for key, values in swept.items() if values}
        return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())] if lists else []
