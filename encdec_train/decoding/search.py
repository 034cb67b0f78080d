"""The search for text: token lists in, token lists out. Here the engine is picked; `loop.py` is our own."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from encdec_train.data.collate import Tokens
from encdec_train.decoding import library
from encdec_train.decoding.decoder import Decoder, supported
from encdec_train.decoding.loop import Found, Loop
from encdec_train.decoding.settings import SearchSettings
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import json_sha256
from encdec_train.modeling.causal import check_room
from encdec_train.modeling.families import is_causal, max_positions
from encdec_train.modeling.linear import compute_type

__all__ = ["Engine", "Found", "SearchSettings", "decode"]

_NAME = "sources[{}]".format


class Engine:
    """A model that is ready to decode, with any settings: weights are those of the moment it is made.

    Args:
        model: An encoder-decoder model; its mode (train or eval) is as before after each search.
        own: Whether our own search is used where it knows the model, or the library's for all.

    Attributes:
        states: Where it is not None, it keeps what the encoder made of each source, by number: for further searches in
            the same sources, whose encoder is our own search's.
    """

    def __init__(self, model: Any, *, own: bool = True) -> None:  # noqa: ANN401 - any model of the library
        self._model, self.states = model, cast(MutableMapping[int, torch.Tensor] | None, None)
        self._decoder = Decoder(model) if own and supported(model) else None

    def fingerprint(self) -> str:
        """Hash the weights and what they are computed in; the same on every rank and device."""
        parts = []
        for name, p in self._model.named_parameters():
            whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[p.element_size()]
            parts.append([name, list(p.shape), int(p.detach().contiguous().view(whole).sum(dtype=torch.int64))])
        return json_sha256([parts, str(compute_type(next(self._model.parameters())))])

    def search(
        self,
        sources: Mapping[int, Tokens],
        settings: SearchSettings,
        name: Callable[[int], str] = _NAME,
    ) -> Iterator[Found]:
        """Search for every source once; yield each as it finishes. A source without tokens has no hypotheses.

        Args:
            sources: Encoder tokens by number, special tokens included.
            settings: How to search.
            name: Says which example a number is, for messages.

        Raises:
            ConfigError: When a source or the output would pass the model's positions (known_defects D14), or the
                settings do not fit the model.
            ModelError: When the logits of an example are not numbers.
        """
        self._check(sources, settings)
        yield from (Found(index, (), close=False) for index, source in sources.items() if not len(source))
        given = {index: source for index, source in sources.items() if len(source)}
        was_training = self._model.training
        self._model.eval()
        try:
            yield from self._searching(given, settings, name)
        finally:
            self._model.train(was_training)

    def _searching(
        self,
        sources: Mapping[int, Tokens],
        settings: SearchSettings,
        name: Callable[[int], str],
    ) -> Iterator[Found]:
        if self._decoder is None:
            return library.search(self._model, sources, settings, name)
        ids = self._model.generation_config
        ends = np.atleast_1d(ids.eos_token_id).tolist()
        return Loop(self._decoder, (ids.decoder_start_token_id, ends), settings, name, self.states)(sources)

    def _check(self, sources: Mapping[int, Tokens], settings: SearchSettings) -> None:
        if self._decoder is None:
            library.check(self._model, settings)
        elif settings.num_beams > self._decoder.vocab_size:
            reason = f"the vocabulary has {self._decoder.vocab_size} tokens"
            raise ConfigError(fault("decoding.num_beams", "no more than tokens", settings.num_beams, reason))
        longest = max(map(len, sources.values()), default=0)
        output = settings.max_new_tokens + len(settings.prefix_ids)
        if is_causal(self._model):
            check_room(self._model, longest, output)
            return
        wanted = {
            "task.max_source_tokens": (longest, self._model.encoder),
            "decoding.max_new_tokens": (output, self._model.decoder),
        }
        for key, (num_tokens, half) in wanted.items():
            positions = max_positions(half.config)
            if positions is not None and num_tokens > positions:
                raise ConfigError(fault(key, f"at most {positions}, the model's positions", num_tokens))


def decode(
    model: Any,  # noqa: ANN401 - any model of the library
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
        For each source the best tokens, without start, end and padding; an empty list when the model ends at once, or
        the source is empty.

    Raises:
        EncDecError: What `Engine.search` raises.
    """
    outputs: list[list[int]] = [[] for _ in sources]
    for found in Engine(model).search(dict(enumerate(sources)), settings):
        if found.hypotheses:
            outputs[found.index] = found.hypotheses[0].tokens
        if on_done is not None:
            on_done(1)
    return outputs
