"""The verbs as Python functions: overrides as strings, one clear exception on bad input."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train.compose import compose, quoted
from encdec_train.errors import DataError, fault

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel, PreTrainedTokenizerBase

    from encdec_train.config import GenerateConfig
    from encdec_train.serving.generate import Generator
    from encdec_train.serving.pipeline import Seq2SeqPipeline


def train(*overrides: str) -> Path:
    """Make a run, as `encdec train` does with the same `key=value`; returns the run's folder.

    Raises:
        EncDecError: One clear message.
    """
    from encdec_train.doctor import preflight
    from encdec_train.run import train

    return train(compose("train", overrides), preflight)


def evaluate(*overrides: str) -> Path:
    """Decode and score a split, as `encdec evaluate` does; returns the folder of the result."""
    from encdec_train import evaluation

    return evaluation.evaluate(compose("evaluate", overrides))


def score(*overrides: str) -> dict[str, Any]:
    """Score a prediction file, as `encdec score` does; returns metric -> value, signature, ci95."""
    from encdec_train import evaluation

    return evaluation.score(compose("score", overrides))


def compare(*overrides: str) -> dict[str, Any]:
    """Compare two runs, as `encdec compare` does; returns what it prints as JSON."""
    from encdec_train import comparison

    return comparison.compare(compose("compare", overrides))


def bundle(*overrides: str) -> Path:
    """Collect what a run reads, as `encdec bundle` does; returns the folder, `bundle.path`."""
    from encdec_train import session

    return session.make_bundle(compose("bundle", overrides))


def verify(*overrides: str) -> None:
    """Compare every file of a bundle with its SHA-256, as `encdec verify` does."""
    from encdec_train.cluster import bundle as bundles

    bundles.say_verified(compose("verify", overrides))


def generate(texts: Iterable[str], checkpoint: str, *overrides: str) -> Iterator[str]:
    """Yield an output for each text, in order.

    Args:
        texts: What to read.
        checkpoint: A run folder, an export folder or a Hub id.
        *overrides: `key=value`, such as `decoding.num_beams=1`.

    Raises:
        EncDecError: One clear message, before the first text is read.
    """
    if isinstance(texts, str):
        raise DataError(fault("texts", "several texts", texts, "one would be read letter by letter", "Give a list"))
    generator = build_generator(compose("generate", [f"checkpoint={quoted(checkpoint)}", *overrides]))
    return _outputs(generator, texts)


def _outputs(generator: "Generator", texts: Iterable[str]) -> Iterator[str]:
    from encdec_train.serving.generate import CHUNK

    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == CHUNK:
            yield from generator(chunk)
            chunk = []
    yield from generator(chunk)


def generate_stream(config: "GenerateConfig") -> None:
    """Make `encdec generate`: from `input` to `output`, a line for a line.

    Raises:
        EncDecError: One clear message.
    """
    from encdec_train import console
    from encdec_train.serving.generate import open_input, open_output, stream

    with open_input(config.input) as lines, open_output(config.output) as write:
        generator = build_generator(config)
        piped = config.input == "-"  # it has no name that says what it is
        records = piped or config.input.removesuffix(".gz").endswith((".jsonl", ".json"))
        count = stream(generator, lines, write, config.task.source_column if records else None, look=piped)
    cut = generator.num_truncated
    empty = f", {generator.num_empty:,} empty" if generator.num_empty else ""
    said = f", {cut:,} cut at {generator.max_source_tokens} tokens" if cut else ""
    console.say(f"{count:,} lines{said}{empty}")


def load(folder: str) -> "tuple[EncoderDecoderModel, tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]]":
    """Load an export with its two tokenizers (often one and the same), in eval mode."""
    from encdec_train.modeling.export import load as load_export

    return load_export(folder)


def pipeline(task: str, model: Any, tokenizer: Any = None, **options: Any) -> "Seq2SeqPipeline":  # noqa: ANN401
    """Build what `transformers.pipeline` built until v4 for three tasks; see `serving.pipeline.pipeline`."""
    from encdec_train.serving.pipeline import pipeline as build_pipeline

    return build_pipeline(task, model, tokenizer, **options)


def warm_start(encoder: str, decoder: str | None = None, **options: Any) -> "EncoderDecoderModel":  # noqa: ANN401
    """Build a plain `EncoderDecoderModel` from two checkpoints; see `modeling.warm_start.warm_start`."""
    from encdec_train.modeling.warm_start import warm_start as build_model

    return build_model(encoder, decoder, **options)


def build_generator(config: "GenerateConfig") -> "Generator":
    """Load what `generate` needs, on its device, with the export's own settings where the config leaves them open."""
    from encdec_train.serving.generate import Generator
    from encdec_train.session import open_export

    found = open_export(config)
    return Generator(found.engine, found.codec, found.search, found.max_source_tokens, found.precision)
