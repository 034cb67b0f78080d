"""Pretrain a tiny BERT with a WordPiece vocabulary of its own on plain text, by masked-language modelling.

The demo's checkpoint is made here, since nothing may be downloaded. The folder it leaves is a vanilla checkpoint.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import atomic
from encdec_train.fingerprint import json_sha256

if TYPE_CHECKING:
    import torch
    from transformers import BertForMaskedLM, PreTrainedTokenizerBase

FORMAT = 1  # part of the fingerprint: raise it when the same settings give another checkpoint
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, MASK, FIRST_WORD = SPECIAL.index("[PAD]"), SPECIAL.index("[MASK]"), len(SPECIAL)
POOL_BATCHES = 20  # passages are sorted by length within pools of so many batches: little padding, still mixed

Learner = Callable[[int, int, float], None]


@dataclass(frozen=True)
class PretrainSettings:
    """The shape of the checkpoint and how it is learnt; tuned for two CPU cores and a minute or two."""

    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    intermediate_size: int = 512
    max_positions: int = 128
    vocab_size: int = 3000  # at most; the demo's 800 words are whole at 1,772 pieces
    steps: int = 1800
    batch: int = 64  # passages
    lr: float = 2e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    mask_rate: float = 0.3  # share of the tokens that are to be guessed
    kept: float = 0.4  # share of those that are shown as they are; an encoder's states then say what stands where
    replaced: float = 0.1  # share of those that are shown as another token; the rest as [MASK]
    seed: int = 0


def fingerprint(settings: PretrainSettings) -> str:
    """Name what the settings give; the text is the caller's to add."""
    return json_sha256([FORMAT, asdict(settings)])


def pretrain_mlm(text_file: Path, folder: Path, settings: PretrainSettings, on_step: Learner | None = None) -> None:
    """Learn a vocabulary and a BertForMaskedLM from text, and save both; torch's random state stays as it was.

    Args:
        text_file: A passage a line.
        folder: Where the checkpoint appears, whole, when it is done.
        settings: The shape and the schedule.
        on_step: Told step, number of steps and loss.
    """
    import torch

    passages = [line for line in text_file.read_text(encoding="utf-8").split("\n") if line]
    tokenizer = build_tokenizer(passages, settings)
    ids: list[list[int]] = tokenizer(passages, truncation=True, max_length=settings.max_positions)["input_ids"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build_model(len(tokenizer), settings)
        _learn(model, ids, settings, on_step)
    _save(model, tokenizer, folder)


def build_tokenizer(passages: Sequence[str], settings: PretrainSettings) -> "PreTrainedTokenizerBase":
    """Learn a cased WordPiece vocabulary from passages."""
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import BertTokenizer

    split = BertPreTokenizer().pre_tokenize_str
    words = Counter(word for passage in passages for word, _ in split(passage))
    vocabulary = {piece: index for index, piece in enumerate(wordpieces(words, settings.vocab_size))}
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(
        vocab=vocabulary, do_lower_case=False, model_max_length=settings.max_positions
    )
    return tokenizer


def build_model(vocab_size: int, settings: PretrainSettings) -> "BertForMaskedLM":
    """Build the model from random weights, without dropout: a minute of learning is too short to overfit."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            intermediate_size=settings.intermediate_size,
            max_position_embeddings=settings.max_positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
        )
    )


def wordpieces(words: Counter[str], size: int) -> list[str]:
    """Merge characters into pieces until the vocabulary is full; ties go to the pair that sorts first.

    Our own, because the vocabulary must be the same on every platform for the cached checkpoint to be one.
    """
    spelt = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in words}
    vocabulary = dict.fromkeys(SPECIAL)
    vocabulary.update(dict.fromkeys(sorted({piece for pieces in spelt.values() for piece in pieces})))
    while len(vocabulary) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelt.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        vocabulary[best[0] + best[1].removeprefix("##")] = None
        spelt = {word: _merged(pieces, best) for word, pieces in spelt.items()}
    return list(vocabulary)


def _merged(pieces: list[str], best: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == best:
            merged[-1] += piece.removeprefix("##")
        else:
            merged.append(piece)
    return merged


def _learn(model: "BertForMaskedLM", ids: list[list[int]], settings: PretrainSettings, on_step: Learner | None) -> None:
    import torch

    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "betas": (0.9, 0.98)}
    optimizer = torch.optim.AdamW(model.parameters(), **options)  # type: ignore[arg-type]
    warmup = max(int(settings.steps * settings.warmup), 1)
    model.train()
    for step, rows in zip(range(settings.steps), _batches(ids, settings), strict=False):
        left = (settings.steps - step) / max(settings.steps - warmup, 1)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min((step + 1) / warmup, left)
        loss = _masked_loss(model, rows, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, settings.steps, float(loss.detach()))


def _batches(ids: list[list[int]], settings: PretrainSettings) -> Iterator[list[list[int]]]:
    """Yield batches for ever, each of passages of about one length."""
    generator = random.Random(settings.seed)
    size, pool = settings.batch, settings.batch * POOL_BATCHES
    while True:
        order = sorted(range(len(ids)), key=lambda _: generator.random())
        pools = [sorted(order[i : i + pool], key=lambda j: len(ids[j])) for i in range(0, len(order), pool)]
        batches = [chosen[i : i + size] for chosen in pools for i in range(0, len(chosen), size)]
        for batch in sorted(batches, key=lambda _: generator.random()):
            yield [ids[j] for j in batch]


def _masked_loss(model: "BertForMaskedLM", rows: list[list[int]], settings: PretrainSettings) -> "torch.Tensor":
    """Hide a share of the tokens and return the mean loss of guessing them; only they go through the head."""
    import torch
    from torch.nn.functional import cross_entropy

    longest = max(map(len, rows))
    ids_BS = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    hidden_BS = (torch.rand(ids_BS.shape) < settings.mask_rate) & (ids_BS >= FIRST_WORD)
    hidden_BS[0, 1] = True  # at least one, so that the mean exists
    fate_BS = torch.rand(ids_BS.shape)
    shown_BS = torch.where(hidden_BS & (fate_BS >= settings.replaced + settings.kept), MASK, ids_BS)
    other_BS = torch.randint(FIRST_WORD, int(model.config.vocab_size), ids_BS.shape)
    shown_BS = torch.where(hidden_BS & (fate_BS < settings.replaced), other_BS, shown_BS)
    states_BSH: Any = model.bert(shown_BS, attention_mask=ids_BS != PAD).last_hidden_state
    return cross_entropy(model.cls(states_BSH[hidden_BS]), ids_BS[hidden_BS])


def _save(model: "BertForMaskedLM", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    from encdec_train.modeling.checkpoints import quiet_library

    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    with quiet_library():
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    atomic.install(beside, folder, replace=False)  # another process's checkpoint is the same and may be in use
