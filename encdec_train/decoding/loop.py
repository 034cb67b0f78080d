"""Our own search: greedy, beams, sampling, for the decoders that `decoder.py` knows.

Each example is searched as if it were alone, by the rules of the library's `generate` (early_stopping=False): which 2 x
beams candidates are looked at, when a text counts as finished, when no beam can become better. What differs is the
work: finished examples leave the batch and waiting ones take their place, and nothing is copied that does not change.

Legend: `beams.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from encdec_train.data.collate import Tokens, pad_right
from encdec_train.decoding.beams import Beams, best, chosen
from encdec_train.decoding.cache import Cache
from encdec_train.decoding.constraints import Constraints
from encdec_train.decoding.decoder import Decoder
from encdec_train.decoding.settings import SearchSettings
from encdec_train.errors import ModelError, fault

NEVER = -1e9  # a score that no text has; the library's, so that sums round as they do there
CLOSE = 1e-5  # scores that differ by less may change their order with the order of a sum
REFILL = 0.125  # of the batch has finished: waiting ones enter, or it shrinks; measured in docs/results/decoding.md
GROWTH = 1.25  # room for so many times what a batch has: it grows; not studied


@dataclass(frozen=True)
class Hypothesis:
    """One output."""

    tokens: list[int]  # without start, end and padding
    score: float  # that it is ranked by: its log-probability over the length penalty


@dataclass(frozen=True)
class Found:
    """What became of one example."""

    index: int
    hypotheses: Sequence[Hypothesis]  # the best first; none where no token could follow
    close: bool  # a choice was made between scores less than CLOSE apart: in another batch it may be another


class Loop:
    """Searches with one model and one setting.

    Args:
        decoder: The model.
        ids: Its start token, and the tokens that end an output.
        settings: How to search.
        name: Says which example a number is, for messages.
        states: What the encoder made of an example, by number: taken from here, or put here, where it is given.
    """

    def __init__(
        self,
        decoder: Decoder,
        ids: tuple[int, Sequence[int]],
        settings: SearchSettings,
        name: Callable[[int], str] = "sources[{}]".format,
        states: MutableMapping[int, torch.Tensor] | None = None,
    ) -> None:
        self._decoder, self._settings, self._name, self._states = decoder, settings, name, states
        self._prompt = [ids[0], *settings.prefix_ids]
        self._eos = torch.tensor(ids[1], device=decoder.device)
        self._constraints = Constraints(settings, len(self._prompt), self._eos)
        drawn = settings.temperature is not None
        self._beams = settings.num_beams > 1
        self._width = settings.num_return_sequences if drawn else settings.num_beams
        longest = settings.max_new_tokens + 1
        self._penalty = torch.tensor([1.0, *(settings.penalty(n) for n in range(1, longest))], device=decoder.device)

    @torch.no_grad()
    def __call__(self, sources: Mapping[int, Tokens]) -> Iterator[Found]:
        """Yield examples as they finish.

        Args:
            sources: Encoder tokens by the example's number.

        Raises:
            ModelError: The logits are not numbers; the message names the example.
        """
        waiting = sorted(sources, key=lambda index: (len(sources[index]), -index))  # the longest is taken first
        batch: Beams | None = None
        while batch := self._refilled(batch, waiting, sources):
            self._step(batch)
            yield from self._finished(batch)

    def _refilled(self, batch: Beams | None, waiting: list[int], sources: Mapping[int, Tokens]) -> Beams | None:
        """Let waiting examples take the rows of finished ones, when enough have finished; None: nobody is left."""
        num = len(batch.index) if batch else 0
        dead = (~batch.live).nonzero()[:, 0] if batch else torch.zeros(0, dtype=torch.int64)
        if num and len(dead) < REFILL * num:
            return batch
        num_live = num - len(dead)
        room = self._room(sources[waiting[-1]]) if waiting else 0
        rows = room if room >= GROWTH * num or not num_live else num
        entering = min(max(rows, num_live) - num_live, len(waiting))
        new = self._enter({index: sources[index] for index in [waiting.pop() for _ in range(entering)]})
        if batch is None or not num_live:
            return new
        if entering > len(dead):
            batch.extend(num_live + entering)
            dead = torch.cat([dead, torch.arange(num, num_live + entering)])
        if new:
            batch.put(dead[:entering], new)
        batch.close_ranks(dead[entering:])
        return batch

    def _room(self, source: Tokens) -> int:
        """Return how many examples the token budget has room for, this one the longest."""
        return max(self._settings.max_batch_tokens // (self._width * (len(source) + self._settings.max_new_tokens)), 1)

    def _enter(self, sources: Mapping[int, Tokens]) -> Beams | None:
        """Encode examples and read the prompt but for its last token; None without any."""
        if not sources:
            return None
        num, width, device = len(sources), self._width, self._decoder.device
        limits = [self._settings.limits(len(source)) for source in sources.values()]
        total = len(self._prompt) + self._settings.max_new_tokens
        scores = torch.zeros(num, width, device=device)
        if self._beams:
            scores[:, 1:] = NEVER  # so that the first tokens are those of one beam
        ids = torch.zeros(num, width, total, dtype=torch.int64, device=device)
        no = torch.zeros(num, dtype=torch.bool, device=device)
        ids[:, :, : len(self._prompt)] = torch.tensor(self._prompt, device=device)
        batch = Beams(
            list(sources),
            torch.zeros(num, dtype=torch.int64),
            torch.tensor(limits),
            torch.ones(num, dtype=torch.bool),
            ids,
            scores,
            ids.clone(),
            torch.full((num, width), NEVER, device=device),
            torch.zeros(num, width, dtype=torch.int64, device=device),
            no,
            self._draws(list(sources), total),
            no,
            no,
            self._cache(sources),
        )
        for place, token in enumerate(self._prompt[:-1]):
            self._decoder.step(torch.full((num, 1), token, device=device), torch.full((num,), place), batch.cache)
        return batch

    def _cache(self, sources: Mapping[int, Tokens]) -> Cache:
        device, kept = self._decoder.device, self._states
        ids, mask = pad_right(list(sources.values()), self._decoder.source_pad_id)
        mask = mask.to(device)
        if kept is not None and kept.keys() >= sources.keys():
            states = torch.nn.utils.rnn.pad_sequence([kept[index] for index in sources], batch_first=True)
        else:
            states = self._decoder.encode(ids.to(device), mask)
        if kept is not None:
            for row, (index, source) in enumerate(sources.items()):
                kept.setdefault(index, states[row, : len(source)].clone())
        return self._decoder.cache(states, mask, self._width)

    def _draws(self, indices: Sequence[int], total: int) -> torch.Tensor:
        """Return uniform numbers that depend on the seed and the example's number, and on nothing else."""
        if self._settings.temperature is None:
            return torch.zeros(len(indices), 0)
        rows = []
        for index in indices:
            generator = np.random.default_rng([self._settings.seed, index])
            rows.append(torch.from_numpy(generator.random((self._width, total), dtype=np.float32)))
        return torch.stack(rows).to(self._decoder.device)

    def _step(self, batch: Beams) -> None:
        """Choose the next token of every beam and take note of what has finished."""
        places = batch.steps + len(self._prompt) - 1
        tokens = batch.ids.gather(2, _at(batch, places))[:, :, 0]
        logits = self._decoder.step(tokens, places, batch.cache)
        (self._choose_beams if self._beams else self._choose_each)(batch, logits)
        batch.steps += batch.live

    def _choose_each(self, batch: Beams, logits_NWV: torch.Tensor) -> None:
        """Let every row go on by itself, with its most probable token or with one that is drawn."""
        scores = self._constraints(batch.ids, logits_NWV, batch.steps, batch.limits.T)
        places = batch.steps + len(self._prompt)
        drawn = self._settings.temperature is not None
        if drawn:
            odds = scores.float().softmax(-1).expand(-1, self._width, -1).cumsum(-1)
            draw = batch.draws.gather(2, _at(batch, places)) * odds[..., -1:]
            token = torch.searchsorted(odds, draw, right=True)[..., 0].clamp(max=odds.shape[-1] - 1)
        else:
            first, tokens = best(scores, 2)
            token = tokens[..., 0]
            batch.broken = first[:, 0, 0].isnan()
            batch.close = batch.close | ((first[:, 0, 0] - first[:, 0, 1]) < CLOSE)
        running = batch.done_length == 0
        gained = functional.log_softmax(logits_NWV, -1).expand(-1, self._width, -1).gather(2, token[..., None])[..., 0]
        if drawn:
            batch.broken = gained[:, 0].isnan()
        batch.scores = torch.where(running, batch.scores + gained, batch.scores)
        batch.ids.scatter_(2, _at(batch, places), token[..., None])
        new = (batch.steps + 1).to(token.device)[:, None]
        ends = running & (torch.isin(token, self._eos) | (new == batch.limits[:, 1].to(token.device)[:, None]))
        batch.done_length = torch.where(ends, new, batch.done_length)
        batch.done_scores = torch.where(ends, batch.scores / self._penalty[new], batch.done_scores)
        batch.done_ids = batch.ids
        batch.over = (batch.done_length > 0).all(1)

    def _choose_beams(self, batch: Beams, logits_NWV: torch.Tensor) -> None:
        """Do one step of the library's beam search."""
        width, device = self._width, logits_NWV.device
        scores = functional.log_softmax(logits_NWV, -1)
        scores = self._constraints(batch.ids, scores, batch.steps, batch.limits.T)
        keep = (1 + len(self._eos)) * width
        each, tokens = best(scores, min(keep, scores.shape[-1]))  # of each beam, then of all
        found, places = (each + batch.scores[:, :, None]).flatten(1).topk(keep, -1)
        parents, token = places // each.shape[-1], tokens.flatten(1).gather(1, places)
        batch.broken = found[:, 0].isnan()

        new = (batch.steps + 1).to(device)
        ends = torch.isin(token, self._eos) | (new == batch.limits[:, 1].to(device))[:, None]
        ids = chosen(batch.ids, parents)
        ids.scatter_(2, (new + len(self._prompt) - 1)[:, None, None].expand(-1, keep, 1), token[..., None])
        batch.scores, order = (found + ends * NEVER).topk(width, -1)
        batch.ids = chosen(ids, order)
        batch.cache.choose(parents.gather(1, order))

        penalty = self._penalty[new][:, None]
        counts = ends & (torch.arange(keep, device=device) < width)  # no text below the beams' number finishes
        pool = torch.cat([batch.done_scores, found / penalty + ~counts * NEVER], 1)
        batch.done_scores, order = pool.topk(width, -1)
        batch.done_ids = chosen(torch.cat([batch.done_ids, ids], 1), order)
        lengths = torch.cat([batch.done_length, torch.where(counts, new[:, None], 0)], 1)
        batch.done_length = lengths.gather(1, order)

        worst = torch.where(batch.done_length > 0, batch.done_scores[:, -1:], NEVER)
        improves = (batch.scores[:, :1] / penalty > worst).any(1)
        batch.over = ~improves | ends.all(1) | found[:, 0].isneginf()
        gaps = found[:, :-1] - found[:, 1:]
        batch.close = batch.close | ((gaps < CLOSE) & (found[:, 1:] > NEVER / 2)).any(1)

    def _finished(self, batch: Beams) -> Iterator[Found]:
        """Yield what has just finished, and count it out."""
        over, broken, close = torch.stack([batch.over, batch.broken, batch.close]).tolist()  # the step's one wait
        for row, index in enumerate(batch.index):
            if not batch.live[row] or not (over[row] or broken[row]):
                continue
            if broken[row]:
                reason = "the model's weights or its numbers are damaged"
                raise ModelError(fault(self._name(index), "logits that are numbers", "nan", reason))
            batch.finish(row)
            yield self._result(batch, row, close[row])

    def _result(self, batch: Beams, row: int, close: bool) -> Found:  # noqa: FBT001
        hypotheses = []
        lengths, scores = batch.done_length[row].tolist(), batch.done_scores[row].tolist()
        for beam in range(self._settings.num_return_sequences):
            if lengths[beam] == 0:
                continue
            end = len(self._prompt) + lengths[beam]
            tokens = batch.done_ids[row, beam, 1:end].tolist()
            if tokens[-1] in self._eos.tolist():
                tokens.pop()
            hypotheses.append(Hypothesis(tokens, scores[beam]))
        if not self._beams:
            hypotheses.sort(key=lambda found: -found.score)
        return Found(batch.index[row], hypotheses, close)


def _at(batch: Beams, places: torch.Tensor) -> torch.Tensor:
    """Turn a place of each example into an index of all its beams, `[N, W, 1]`."""
    there = places.to(batch.ids.device, non_blocking=True)
    return there[:, None, None].expand(-1, batch.ids.shape[1], 1)
