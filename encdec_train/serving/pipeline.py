"""`pipeline(...)`: the sequence-to-sequence pipelines that transformers had until v4 (known_defects D19)."""

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from encdec_train.errors import ConfigError, DataError, ModelError, fault
from encdec_train.modeling.checkpoints import quiet_library
from encdec_train.modeling.export import load_seq2seq

TASKS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}
TRANSLATION = re.compile(r"translation_\w+_to_\w+")
OWN = ("batch_size", "truncation", "clean_up_tokenization_spaces", "return_tensors")  # not the library's `generate`'s
MAX_NEW_TOKENS = (
    256  # where neither checkpoint nor caller says it, as v4.50 and later had; `generate` stops at 20 (D15)
)
RESERVED = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}  # they count positions from pad + 1

Answer = list[dict[str, Any]]  # one text's: a dict for each returned sequence


class Seq2SeqPipeline:
    """Texts in, dicts out, in order.

    Args:
        task: One of `TASKS`, or `translation_xx_to_yy`.
        model: Any sequence-to-sequence model of transformers, on its device.
        tokenizers: The encoder's and the decoder's; often one and the same.
        defaults: What a call may say too; a call wins over it, it wins over the checkpoint's settings for the task.

    Raises:
        ConfigError: When the task or an argument is not known.
    """

    def __init__(
        self,
        task: str,
        model: Any,  # noqa: ANN401 - hundreds of classes
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
        defaults: dict[str, Any],
    ) -> None:
        self.task, self.model, (self.tokenizer, self.decoder_tokenizer) = task, model, tokenizers
        self._key = output_key(task)
        own = dict((getattr(model.config, "task_specific_params", None) or {}).get(task) or {})
        self._prefix = own.pop("prefix", None) or getattr(model.config, "prefix", None) or ""
        self._check_names(defaults)
        self._defaults = {**{key: value for key, value in own.items() if key in vars(GenerationConfig())}, **defaults}

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
            ConfigError: When an option is not known, or the output would pass the model's positions.
            DataError: When an input is no text, or longer than the model's positions and not to be cut.
        """
        self._check_names(options)
        settings = {**self._defaults, **options}
        if isinstance(inputs, str):
            return next(self._answers([inputs], settings))
        if not isinstance(inputs, list | tuple):
            return self._answers(inputs, settings)
        answers = list(self._answers(inputs, settings))
        return [answer[0] for answer in answers] if all(len(answer) == 1 for answer in answers) else answers

    def _answers(self, inputs: Iterable[str], settings: dict[str, Any]) -> Iterator[Answer]:
        rest, first = iter(inputs), 0
        size = settings.get("batch_size") or 1
        while batch := list(islice(rest, size)):
            yield from self._batch(batch, first, settings)
            first += len(batch)

    def _batch(self, texts: Sequence[str], first: int, settings: dict[str, Any]) -> Iterator[Answer]:
        encoded = self._encode(texts, first, settings.get("truncation") or False)
        arguments = {key: value for key, value in settings.items() if key not in OWN}
        arguments["generation_config"] = self._generation(arguments)
        with quiet_library():  # it warns of each length that is said twice
            found = self.model.generate(**encoded.to(self.model.device), **arguments)
        sequences = getattr(found, "sequences", found)
        for rows in sequences.reshape(len(texts), -1, sequences.shape[-1]).cpu():
            yield [self._record(row, settings) for row in rows]

    def _record(self, row: torch.Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        if settings.get("return_tensors"):
            return {f"{self._key}_token_ids": row}
        clean = bool(settings.get("clean_up_tokenization_spaces"))
        text = self.decoder_tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        return {f"{self._key}_text": text}

    def _encode(self, texts: Sequence[str], first: int, truncation: bool | str) -> Any:  # noqa: ANN401 - a BatchEncoding
        for index, text in enumerate(texts, start=first):
            if not isinstance(text, str):
                raise DataError(fault(f"inputs[{index}]", "a text", text, f"its type is {type(text).__name__}"))
        limit = positions(getattr(self.model.config, "encoder", self.model.config))
        cut = min(filter(None, (limit, self.tokenizer.model_max_length)))
        options = {"truncation": truncation, "max_length": cut} if truncation else {}
        texts = [self._prefix + text for text in texts]
        with quiet_library():
            encoded = self.tokenizer(texts, padding=True, return_tensors="pt", **options)
        encoded.pop("token_type_ids", None)
        lengths = encoded["attention_mask"].sum(1).tolist()
        if limit is not None and max(lengths) > limit:
            index = first + lengths.index(max(lengths))
            reason = "the model has no more positions"
            remedy = "Say truncation=True to cut it"
            raise DataError(fault(f"inputs[{index}]", f"at most {limit} tokens", max(lengths), reason, remedy))
        return encoded

    def _generation(self, arguments: dict[str, Any]) -> GenerationConfig:
        """Take what `GenerationConfig` knows out of the arguments, with an explicit length."""
        config: GenerationConfig = copy.deepcopy(
            arguments.pop("generation_config", None) or self.model.generation_config
        )
        said = {key: arguments.pop(key) for key in list(arguments) if hasattr(config, key)}
        limit = positions(getattr(self.model.config, "decoder", self.model.config))
        if said.get("max_new_tokens") is None and said.get("max_length") is not None:
            said["max_new_tokens"] = said["max_length"] - 1  # the start token; else the checkpoint's own would win
        config.update(**said)
        if config.max_new_tokens is None:
            longest = config.max_length - 1 if config.max_length is not None else MAX_NEW_TOKENS
            config.max_new_tokens = min(longest, limit or longest) if "max_length" not in said else longest
        if limit is not None and config.max_new_tokens > limit:
            raise ConfigError(fault("max_new_tokens", f"at most {limit}, the model's positions", config.max_new_tokens))
        return config

    def _check_names(self, options: dict[str, Any]) -> None:
        known = {*OWN, *vars(GenerationConfig()), *inspect.signature(self.model.generate).parameters}
        for name in options.keys() - known:
            near = get_close_matches(name, known, 1)
            remedy = f"Did you mean {near[0]}" if near else ""
            raise ConfigError(fault(name, "an argument of a pipeline or of generate", options[name], remedy=remedy))


def pipeline(
    task: str,
    model: Any,  # noqa: ANN401 - a name or one of hundreds of classes
    tokenizer: Any = None,  # noqa: ANN401
    dtype: "str | torch.dtype" = "auto",
    device: "int | str | torch.device | None" = None,
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
        ConfigError: When an argument cannot be used.
        ModelError: When there is no such checkpoint, or it is no sequence-to-sequence model.
    """
    output_key(task)
    place, kind = _device(device), _dtype(defaults.pop("torch_dtype", dtype))
    found: Any = None
    if isinstance(model, str):
        model, found = load_seq2seq(model)
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    tokenizers = tokenizer or found
    if tokenizers is None:
        raise ModelError(fault("tokenizer", "a tokenizer beside a model that is no name", None))
    pair = tokenizers if isinstance(tokenizers, tuple) else (tokenizers, tokenizers)
    return Seq2SeqPipeline(task, model.to(device=place, dtype=kind).eval(), pair, defaults)


def output_key(task: str) -> str:
    """Return what the keys of a task's outputs start with.

    Raises:
        ConfigError: When there is no such task.
    """
    key = TASKS.get("translation" if TRANSLATION.fullmatch(task) else task)
    if key is None:
        raise ConfigError(fault("task", f"{', '.join(TASKS)} or translation_xx_to_yy", task))
    return key


def positions(config: Any) -> int | None:  # noqa: ANN401 - the config of any model
    """Return how many tokens a half's position embeddings reach, None where they are relative."""
    found = getattr(config, "max_position_embeddings", None)
    if found is None:
        return None
    return int(found) - (int(config.pad_token_id) + 1 if config.model_type in RESERVED else 0)


def _device(device: "int | str | torch.device | None") -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(("cpu" if device < 0 else f"cuda:{device}") if isinstance(device, int) else device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(fault("device", "a number, cpu or cuda:0", device, reason)) from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(fault("device", "-1 or cpu", device, f"torch sees {torch.cuda.device_count()} GPUs"))
    return place


def _dtype(dtype: "str | torch.dtype") -> torch.dtype | None:
    found = None if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."), 0)
    if found is not None and not isinstance(found, torch.dtype):
        raise ConfigError(fault("dtype", "auto, float32, bfloat16 or float16", dtype))
    return found
