"""`pipeline(...)`: the sequence-to-sequence pipelines that transformers had until v4 (known_defects D19)."""

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from encdec_train.decoding.decoder import supported
from encdec_train.decoding.search import Engine, SearchSettings
from encdec_train.errors import ConfigError, DataError, ModelError, fault
from encdec_train.modeling.checkpoints import quiet_library
from encdec_train.modeling.export import SEQ2SEQ_TYPES, Tokenizers, load
from encdec_train.modeling.families import is_causal

TASKS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}
OWN = ("batch_size", "truncation", "clean_up_tokenization_spaces", "return_tensors")  # not the library's `generate`'s
MAX_NEW_TOKENS = (
    256  # where neither checkpoint nor caller says it, as v4.50 and later had; `generate` stops at 20 (D15)
)
RESERVED = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}  # they count positions from pad + 1

Device = int | str | torch.device | None


class Seq2SeqPipeline:
    """Texts in, dicts out, in order; `pipeline` builds it."""

    def __init__(self, task: str, model: Any, tokenizers: Tokenizers, defaults: dict[str, Any]) -> None:  # noqa: ANN401
        self.model, (self.tokenizer, self.decoder_tokenizer) = model, tokenizers
        self._key, self._engine, self._versions = output_key(task), Engine(None), list[tuple[int, int]]()
        own = dict((getattr(model.config, "task_specific_params", None) or {}).get(task) or {})  # as T5 has them
        self._prefix = own.pop("prefix", None) or ""
        self._defaults = self._checked({**own, **defaults})

    def __call__(self, inputs: str | Iterable[str], **options: Any) -> Any:  # noqa: ANN401 - see Returns
        """Decode.

        Args:
            inputs: A text, several, or an iterable that is read a batch at a time.
            **options: `batch_size` (1), `truncation` (False), `clean_up_tokenization_spaces` (False),
                `return_tensors` (False: token ids instead of texts), and the arguments of the library's `generate`.

        Returns:
            For a text a list of dicts; for several a dict each, or a list of dicts each where more than one sequence
            is returned; for any other iterable an iterator of lists of dicts.

        Raises:
            EncDecError: One clear message; also for what is longer than the model's positions and not to be cut.
        """
        settings = {**self._defaults, **self._checked(options)}
        if isinstance(inputs, str):
            return next(self._answers([inputs], settings))
        if not isinstance(inputs, list | tuple):
            return self._answers(inputs, settings)
        answers = list(self._answers(inputs, settings))
        return [answer[0] for answer in answers] if all(len(answer) == 1 for answer in answers) else answers

    def _answers(self, inputs: Iterable[str], settings: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        rest, first = iter(inputs), 0
        own, said = {key: settings.get(key) for key in OWN}, {k: v for k, v in settings.items() if k not in OWN}
        while texts := list(islice(rest, own["batch_size"] or 1)):
            encoded = self._encode(texts, first, own["truncation"] or False)
            config, others = self._generation(dict(said))
            if (search := self._searchable(config, others, own)) is not None:
                yield from self._searched(encoded, search, own)
                first += len(texts)
                continue
            with quiet_library():  # it warns of each length that is said twice
                found = self.model.generate(**encoded.to(self.model.device), generation_config=config, **others)
            sequences = getattr(found, "sequences", found)
            for rows in sequences.reshape(len(texts), -1, sequences.shape[-1]).cpu():
                yield [self._record(row, own) for row in rows]
            first += len(texts)

    def _searchable(
        self, config: GenerationConfig, others: dict[str, Any], own: dict[str, Any]
    ) -> SearchSettings | None:
        """Return the settings of our own search, where it gives what the library would; else None."""
        ids, names = self.model.generation_config, ("decoder_start_token_id", "eos_token_id")
        usual = all(getattr(config, name) == getattr(ids, name) is not None for name in names)
        if others or own["return_tensors"] or not usual or not supported(self.model):
            return None
        return SearchSettings.of_library(config, 1)

    def _searched(self, encoded: Any, settings: SearchSettings, own: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:  # noqa: ANN401
        versions = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if versions != self._versions:  # else the weights that are packed are those of the model
            self._engine, self._versions = Engine(self.model), versions
        rows, masks = encoded["input_ids"].tolist(), encoded["attention_mask"].bool().tolist()
        sources = {
            index: [token for token, kept in zip(row, mask, strict=True) if kept]
            for index, (row, mask) in enumerate(zip(rows, masks, strict=True))
        }
        budget = len(sources) * settings.num_beams * (max(map(len, sources.values())) + settings.max_new_tokens)
        found = {one.index: one for one in self._engine.search(sources, replace(settings, max_batch_tokens=budget))}
        for index in sources:
            texts = [one.tokens for one in found[index].hypotheses] or [[]]
            yield [self._record(torch.tensor(tokens, dtype=torch.int64), own) for tokens in texts]

    def _record(self, row: torch.Tensor, own: dict[str, Any]) -> dict[str, Any]:
        if own["return_tensors"]:
            return {f"{self._key}_token_ids": row}
        clean = bool(own["clean_up_tokenization_spaces"])
        text = self.decoder_tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        return {f"{self._key}_text": text}

    def _encode(self, texts: Sequence[str], first: int, truncation: bool | str) -> Any:  # noqa: ANN401 - a BatchEncoding
        for index, text in enumerate(texts, start=first):
            if not isinstance(text, str):
                raise DataError(fault(f"inputs[{index}]", "a text", text, f"its type is {type(text).__name__}"))
        limit = positions(getattr(self.model.config, "encoder", self.model.config))
        cut = min(filter(None, (limit, self.tokenizer.model_max_length))) if truncation else None
        with quiet_library():
            encoded = self.tokenizer(
                [self._prefix + text for text in texts],
                padding=True, truncation=truncation, max_length=cut, return_tensors="pt",
            )  # fmt: skip
        encoded.pop("token_type_ids", None)
        lengths = encoded["attention_mask"].sum(1).tolist()
        if limit is not None and (longest := max(lengths)) > limit:
            key, remedy = f"inputs[{first + lengths.index(longest)}]", "Say truncation=True to cut it"
            raise DataError(fault(key, f"at most {limit} tokens, the model's positions", longest, remedy=remedy))
        return encoded

    def _generation(self, said: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """Put what was said over the checkpoint's settings, with an explicit length; return what else was said."""
        config: GenerationConfig = copy.deepcopy(said.pop("generation_config", None) or self.model.generation_config)
        if said.get("max_new_tokens") is None and said.get("max_length") is not None:
            said["max_new_tokens"] = said["max_length"] - 1  # the start token; else the checkpoint's own would win
        others: dict[str, Any] = config.update(**said)
        limit = positions(getattr(self.model.config, "decoder", self.model.config))
        if config.max_new_tokens is None:
            longest = config.max_length - 1 if config.max_length is not None else MAX_NEW_TOKENS
            config.max_new_tokens = min(longest, limit or longest)
        if limit is not None and config.max_new_tokens > limit:
            raise ConfigError(fault("max_new_tokens", f"at most {limit}, the model's positions", config.max_new_tokens))
        return config, others

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        known = {*OWN, *vars(GenerationConfig()), *inspect.signature(self.model.generate).parameters}
        for name in options.keys() - known:
            remedy = " ".join(f"Did you mean {near}" for near in get_close_matches(name, known, 1))
            raise ConfigError(fault(name, "an argument of a pipeline or of generate", options[name], remedy=remedy))
        return options


def pipeline(
    task: str,
    model: Any,  # noqa: ANN401 - a name or one of hundreds of classes
    tokenizer: Any = None,  # noqa: ANN401
    dtype: str | torch.dtype = "auto",
    device: Device = None,
    **defaults: Any,  # noqa: ANN401
) -> Seq2SeqPipeline:
    """Build what `transformers.pipeline` built until v4.

    Args:
        task: `text2text-generation`, `summarization`, `translation` or `translation_xx_to_yy`.
        model: A run folder, an export folder, a Hub id, or a model.
        tokenizer: A folder, a Hub id, a tokenizer, or a pair (encoder's, decoder's); the model's own for None.
        dtype: `auto` is the checkpoint's; else `float32`, `bfloat16`, `float16`.
        device: A GPU's number, -1 for the CPU, or a name such as `cuda:0`; a GPU where there is one for None.
        **defaults: What a call may say too: `batch_size`, `max_length`, `num_beams`, …

    Raises:
        EncDecError: One clear message.
    """
    output_key(task)
    place, dtype = _device(device), defaults.pop("torch_dtype", dtype)
    kind = None if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."), dtype)
    if not isinstance(kind, torch.dtype | None):
        raise ConfigError(fault("dtype", "auto, float32, bfloat16 or float16", dtype))
    if isinstance(model, str):
        model, found = load(model, SEQ2SEQ_TYPES)
        tokenizer = tokenizer or found
    if is_causal(model):
        raise ModelError(fault("model", "a sequence-to-sequence model", model.config.model_type, "it has no encoder"))
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    if tokenizer is None:
        raise ModelError(fault("tokenizer", "a tokenizer beside a model that is no name", None))
    pair = tokenizer if isinstance(tokenizer, tuple) else (tokenizer, tokenizer)
    return Seq2SeqPipeline(task, model.to(device=place, dtype=kind).eval(), pair, defaults)


def output_key(task: str) -> str:
    """Return what the keys of a task's outputs start with; raise a ConfigError when there is no such task."""
    key = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", task) else task)
    if key is None:
        raise ConfigError(fault("task", f"{', '.join(TASKS)} or translation_xx_to_yy", task))
    return key


def positions(config: Any) -> int | None:  # noqa: ANN401 - the config of any model
    """Return how many tokens a half's position embeddings reach, None where they are relative."""
    found = getattr(config, "max_position_embeddings", None)
    return int(found) - (config.pad_token_id + 1) * (config.model_type in RESERVED) if found is not None else None


def _device(device: Device) -> torch.device:
    if device is None:
        device = 0 if torch.cuda.is_available() else -1
    try:
        place = torch.device(("cpu" if device < 0 else f"cuda:{device}") if isinstance(device, int) else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(fault("device", "-1, cpu, or a GPU that torch sees", device, reason)) from error
    return place
