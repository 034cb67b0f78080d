"""From rows of text to rows of tokens: encoded once, cut to the limits, kept in a cache keyed by content."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encdec_train import console
from encdec_train.config import Overlong
from encdec_train.data import store, token_cache
from encdec_train.data.load import NUM_SHOWN_ROWS
from encdec_train.data.rows import Rows
from encdec_train.data.token_cache import Ids, TokenColumn, Tokens
from encdec_train.errors import ConfigError, DataError, ModelError, fault
from encdec_train.fingerprint import json_sha256

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

CACHE_FORMAT = 2  # part of every cache key: raise it when what is stored changes
_BATCH_ROWS = 1000  # texts in one call of the tokenizer, which uses every core for them
_BAR_FROM = 50_000  # pairs; fewer take seconds
_RELEASE_EVERY = 1 << 12  # examples taken: each maps 64 KiB around it, which counts as memory until it is let go of


@dataclass(frozen=True)
class TextCodec:
    """The two tokenizers, and the special tokens that go around a target."""

    source_tokenizer: "PreTrainedTokenizerBase"
    target_tokenizer: "PreTrainedTokenizerBase"
    decoder_start_id: int  # what the decoder reads first; never part of a target
    eos_id: int  # the last token of every target
    pad_id: int  # fills target rows
    source_pad_id: int  # fills source rows

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise with the tokenizer's own special tokens, at full length."""
        return [encoding.ids for encoding in self.source_backend.encode_batch_fast(list(texts))]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise into `tokens + eos`: the start token belongs to the decoder's input (known_defects D13)."""
        encodings = self.target_backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*encoding.ids, self.eos_id] for encoding in encodings]

    def decode(self, ids: list[int] | Ids) -> str:
        """Turn target tokens into text, without special tokens and without white space at either end."""
        return str(self.target_tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def cut_source(self, ids: list[int], limit: int) -> list[int]:
        """Drop tokens on the right down to `limit`, keeping the special tokens at the end."""
        return _cut(ids, limit, self._num_source_suffix)

    def cut_target(self, ids: list[int], limit: int) -> list[int]:
        """Drop tokens on the right down to `limit`, keeping eos."""
        return _cut(ids, limit, 1)

    @cached_property
    def num_source_specials(self) -> int:
        """Special tokens that every source has."""
        return int(self.source_backend.num_special_tokens_to_add(False))

    @cached_property
    def _num_source_suffix(self) -> int:
        mask = self.source_backend.encode("a").special_tokens_mask
        return next((count for count, special in enumerate(reversed(mask)) if not special), min(1, len(mask)))

    @cached_property
    def source_backend(self) -> "Tokenizer":
        """The tokenizer proper, which neither cuts nor pads."""
        return _backend(self.source_tokenizer)

    @cached_property
    def target_backend(self) -> "Tokenizer":
        """The tokenizer proper, which neither cuts nor pads."""
        return _backend(self.target_tokenizer)


@dataclass(frozen=True)
class Limits:
    """How long a pair may be, special tokens included, and what happens to a longer one."""

    max_source_tokens: int
    max_target_tokens: int
    overlong: Overlong


@dataclass(eq=False)
class EncodedSplit:
    """A split as the plan and the collator see it."""

    rows: Rows  # the texts, not cut
    tokens: Tokens
    source_ids: TokenColumn = field(init=False)  # tokens by example index
    target_ids: TokenColumn = field(init=False)  # `tokens + eos` by example index
    _num_taken: int = 0

    def __post_init__(self) -> None:
        self.source_ids, self.target_ids = (TokenColumn(self.tokens, f"{side}_ids") for side in ("source", "target"))
        self.num_truncated_sources, self.num_truncated_targets = self.tokens.num_truncated
        self.source_lengths, self.target_lengths = self.tokens.lengths.T  # after cutting, eos included, `[N]`

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Iterable[int]) -> tuple[list[Ids], list[Ids]]:
        """Return sources and targets of some examples, without copying them."""
        chosen = [int(index) for index in indices]
        self._num_taken += len(chosen)
        if self._num_taken >= _RELEASE_EVERY:
            self.tokens.release()
            self._num_taken = 0
        return [self.source_ids[index] for index in chosen], [self.target_ids[index] for index in chosen]


def codec_fingerprint(codec: TextCodec) -> str:
    """Hash what the tokenizers do and the special tokens, not where they were loaded from.

    A tokenizer's own truncation and padding do not count: they are switched off here, and the library changes them
    whenever the tokenizer is called.
    """
    tokenizers = []
    for tokenizer in (codec.source_tokenizer, codec.target_tokenizer):
        state = json.loads(_backend(tokenizer).to_str())
        tokenizers.append([state, sorted(tokenizer.all_special_ids), tokenizer.split_special_tokens])
    return json_sha256([tokenizers, codec.decoder_start_id, codec.eos_id, codec.pad_id, codec.source_pad_id])


def split_key(rows: str, codec: str, limits: Limits) -> str:
    """Name the cache of one split: what was read, with what, cut to what, by which version of the tokenizers library.

    Args:
        rows: What tells these rows from all others.
        codec: From `codec_fingerprint`.
        limits: A refusal counts too, since it proves that nothing was cut.
    """
    sizes = [limits.max_source_tokens, limits.max_target_tokens, limits.overlong.value]
    return json_sha256([CACHE_FORMAT, version("tokenizers"), rows, codec, sizes])


def encode_split(
    rows: Rows, codec: TextCodec, limits: Limits, *, name: str, cache_dir: Path | None, cache_key: str | None
) -> EncodedSplit:
    """Tokenise a split, or map it from the cache; what is damaged there is built again.

    Limits are applied after tokenising; a text that is cut keeps its final special token. The tokens lie in
    `<cache_dir>/tokens/<cache_key>`, the key from `split_key`; where one of them is None, nothing is stored.

    Raises:
        ConfigError: The source limit leaves no room for a token, or the cache cannot be written.
        DataError: A text is longer than its limit and `overlong` refuses it, or has no token but special ones.
        ModelError: A tokenizer is not a fast one.
    """
    import pyarrow as pa

    if cache_dir is None or cache_key is None:
        batches: list[pa.RecordBatch] = []
        lengths, cut = _encoded(rows, codec, limits, name, batches.append)
        return EncodedSplit(rows, Tokens(pa.Table.from_batches(batches, _schema()), lengths, cut))

    def build(folder: Path) -> store.Facts:
        with pa.OSFile(str(folder / token_cache.TOKENS), "wb") as sink, pa.ipc.new_file(sink, _schema()) as writer:
            lengths, cut = _encoded(rows, codec, limits, name, writer.write_batch)
        np.save(folder / token_cache.LENGTHS, lengths)
        return {"rows": len(lengths), "truncated": cut}

    folder = cache_dir / "tokens" / cache_key
    return EncodedSplit(rows, Tokens.mapped(folder, store.obtain(folder, build)))


@dataclass
class _Side:
    """One side of a split on its way through the tokenizer."""

    name: str  # source or target
    encode: Callable[[Sequence[str]], list[list[int]]]
    cut: Callable[[list[int], int], list[int]]
    limit: int
    empty_tokens: set[int]  # a text of only these says nothing
    lengths: list[Ids] = field(default_factory=list)  # of each batch
    num_overlong: int = 0
    first_overlong: tuple[int, int] = (0, 0)  # index, length
    empty: list[int] = field(default_factory=list)

    def add(self, start: int, texts: Sequence[str]) -> "pa.ListArray":
        """Tokenise the texts from index `start` on."""
        import pyarrow as pa

        ids = self.encode(texts)
        for index, tokens in enumerate(ids):
            if len(tokens) > self.limit:
                self.first_overlong = self.first_overlong if self.num_overlong else (start + index, len(tokens))
                self.num_overlong += 1
                ids[index] = self.cut(tokens, self.limit)
            if self.empty_tokens.issuperset(ids[index]):
                self.empty.append(start + index)
        self.lengths.append(np.fromiter(map(len, ids), np.int32, count=len(ids)))
        offsets = np.append(np.int32(0), np.cumsum(self.lengths[-1], dtype=np.int32))
        values = np.fromiter(chain.from_iterable(ids), np.int32, count=int(offsets[-1]))
        return pa.ListArray.from_arrays(offsets, values)

    def faults(self, split: str, ids: Sequence[str], overlong: Overlong) -> list[str]:
        """Say which rows cannot be used."""
        reason = "no token is left of it but special ones"
        shown = [f"{split}:example {ids[index]!r}:{self.name}" for index in self.empty[:NUM_SHOWN_ROWS]]
        found = [fault(place, "a text", None, reason) for place in shown]
        if len(self.empty) > NUM_SHOWN_ROWS:
            found.append(f"{split}: {len(self.empty) - NUM_SHOWN_ROWS} more {self.name}s without tokens.")
        if overlong is Overlong.refuse and self.num_overlong:
            index, length = self.first_overlong
            key = f"task.max_{self.name}_tokens"
            reason = f"{split} has {self.num_overlong} {self.name}(s) above it, the first is example {ids[index]!r}"
            remedy = f"Raise {key}, or set task.overlong=truncate"
            found.append(fault(key, f"at most {self.limit} tokens", length, reason, remedy))
        return found


def _encoded(
    rows: Rows, codec: TextCodec, limits: Limits, name: str, write: "Callable[[pa.RecordBatch], object]"
) -> tuple[Ids, tuple[int, int]]:
    """Tokenise all rows; return their lengths, `[N, 2]`, and how many sources and targets were cut."""
    import pyarrow as pa

    least = codec.num_source_specials + 1
    if limits.max_source_tokens < least:
        reason = f"{least - 1} of them are special tokens"
        raise ConfigError(fault("task.max_source_tokens", f"{least} or more", limits.max_source_tokens, reason))
    specials = _specials(codec.source_tokenizer, codec.source_pad_id)
    source = _Side("source", codec.encode_sources, codec.cut_source, limits.max_source_tokens, specials)
    specials = _specials(codec.target_tokenizer, codec.eos_id, codec.pad_id)
    target = _Side("target", codec.encode_targets, codec.cut_target, limits.max_target_tokens, specials)
    with console.progress(len(rows), f"tokenise {name}") if len(rows) >= _BAR_FROM else nullcontext() as bar:
        for start in range(0, len(rows), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            columns = [source.add(start, rows.sources[part]), target.add(start, rows.targets[part])]
            write(pa.record_batch(columns, schema=_schema()))
            if bar is not None:
                bar.advance(len(columns[0]))
    faults = [text for side in (source, target) for text in side.faults(name, rows.ids, limits.overlong)]
    if faults:
        raise DataError("\n".join(faults))
    lengths = np.stack([np.concatenate([np.zeros(0, np.int32), *side.lengths]) for side in (source, target)], axis=1)
    return lengths, (source.num_overlong, target.num_overlong)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema({f"{side}_ids": pa.list_(pa.int32()) for side in ("source", "target")})


def _cut(ids: list[int], limit: int, num_kept: int) -> list[int]:
    return ids if len(ids) <= limit else ids[: limit - num_kept] + ids[len(ids) - num_kept :]


def _specials(tokenizer: "PreTrainedTokenizerBase", *more: int) -> set[int]:
    """Return the tokens that carry no text. An unknown word does: it stays one token of its text."""
    names = ("cls", "sep", "pad", "bos", "eos", "mask")
    return {*more, *(token for name in names if (token := getattr(tokenizer, f"{name}_token_id")) is not None)}


def _backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """Copy the tokenizer proper, without the truncation and padding that its file may ask for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(fault(type(tokenizer).__name__, "a fast tokenizer", None, "it has no tokenizers backend"))
    plain: Tokenizer = deepcopy(backend)
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = tokenizer.split_special_tokens
    return plain
