"""The model card: `README.md` of an export, with the Hub's front matter and a snippet that loads the folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?")
_HUB_METRIC = {"sacrebleu_uncased": "sacrebleu", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge",
               "rougeLsum": "rouge", "sari_legacy": "sari", "sari_t2t": "sari"}  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """What a model card says.

    Attributes:
        name: The run's name.
        task: The task's name.
        encoder: The checkpoint that the encoder started from: a Hub id or a folder (shown by its last part only).
        decoder: The decoder's.
        init: Which halves started from their checkpoint: `both`, `encoder`, `decoder` or `none`.
        share: Which parameters the halves share: `none`, `embeddings` or `all`.
        num_parameters: Distinct parameters.
        steps: Optimizer steps of these weights.
        num_examples: Pairs by split.
        data_files: File by split, where the data came from files (shown by name only).
        max_source_tokens: Longest source in training, special tokens included.
        max_target_tokens: Longest target.
        num_beams: Of the scores and of the exported generation settings.
        length_penalty: Likewise.
        max_new_tokens: Likewise, the end token included.
        scores: As in `metrics.json`: split, metric, then `value`, `signature` and `ci95`.
        has_decoder_tokenizer: Whether `decoder_tokenizer/` exists.
        versions: Library versions.
    """

    name: str
    task: str
    encoder: str
    decoder: str
    init: str
    share: str
    num_parameters: int
    steps: int
    num_examples: Mapping[str, int]
    data_files: Mapping[str, str]
    max_source_tokens: int
    max_target_tokens: int
    num_beams: int
    length_penalty: float
    max_new_tokens: int
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    has_decoder_tokenizer: bool
    versions: Mapping[str, str | None] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """Write the card as Markdown with YAML front matter."""
    sections = [
        f"---\n{_front_matter(facts)}---\n\n# {facts.name}\n\n{_origin(facts)}",
        f"## Use\n\n{_usage(facts)}",
        f"## Data\n\n{_data(facts)}",
        f"## Scores\n\n{_scores(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## How it was made\n\n{_recipe(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    import yaml

    bases = [half for half in dict.fromkeys(_warm_halves(facts)) if _is_hub_id(half)]
    metrics = dict.fromkeys(_HUB_METRIC.get(name, name) for split in facts.scores.values() for name in split)
    values: dict[str, Any] = {"library_name": "transformers", "tags": ["encoder-decoder", "warm-start", facts.task]}
    if bases:
        values["base_model"] = bases
    if metrics:
        values["metrics"] = list(metrics)
        values["model-index"] = [{"name": facts.name, "results": [_result(facts, split) for split in facts.scores]}]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _result(facts: CardFacts, split: str) -> dict[str, Any]:
    scores = facts.scores[split]
    return {
        "task": {"type": "text2text-generation", "name": facts.task},
        "dataset": {"type": facts.task, "name": _short(facts.data_files.get(split, facts.task)), "split": split},
        "metrics": [
            {"type": _HUB_METRIC.get(name, name), "name": name, "value": round(found["value"], 2)}
            for name, found in scores.items()
        ],
    }


def _origin(facts: CardFacts) -> str:
    warm = _warm_halves(facts)
    started = {
        "both": f"warm-started from `{_short(facts.encoder)}` (encoder) and `{_short(facts.decoder)}` (decoder)",
        "encoder": f"with its encoder warm-started from `{_short(facts.encoder)}` and a decoder from random weights",
        "decoder": f"with its decoder warm-started from `{_short(facts.decoder)}` and an encoder from random weights",
    }.get(facts.init, "from random weights")
    shared = {
        "all": " All parameters but the cross-attention are shared by the halves; the files hold them twice.",
        "embeddings": " The halves share their embeddings; the files hold them twice.",
    }.get(facts.share, "")
    fresh = " The cross-attention starts from random weights." if warm else ""
    return (
        f"A sequence-to-sequence model {started}, fine-tuned on `{facts.task}`: {facts.num_parameters:,} distinct "
        f"parameters.{shared}{fresh} The method is that of [Rothe, Narayan and Severyn (2020)]"
        "(https://arxiv.org/abs/1907.12461)."
    )


def _usage(facts: CardFacts) -> str:
    subfolder = ', subfolder="decoder_tokenizer"' if facts.has_decoder_tokenizer else ""
    return f"""```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # this folder, or its id on the Hub
model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
decoder_tokenizer = AutoTokenizer.from_pretrained(folder{subfolder})

texts = ["A source text."]
inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length={facts.max_source_tokens})
outputs = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
print(decoder_tokenizer.batch_decode(outputs, skip_special_tokens=True))
```

Beam search with {facts.num_beams} beams, length penalty {facts.length_penalty:g} and at most \
{facts.max_new_tokens} tokens is in `generation_config.json`; `generate` needs no further argument."""


def _data(facts: CardFacts) -> str:
    rows = [
        [split, f"{count:,}", f"`{_short(facts.data_files[split])}`" if split in facts.data_files else ""]
        for split, count in facts.num_examples.items()
    ]
    return _table(["split", "pairs", "file"], rows)


def _scores(facts: CardFacts) -> str:
    rows = [
        [split, name, f"{found['value']:.2f}", _interval(found.get("ci95")), f"`{found.get('signature', '')}`"]
        for split, metrics in facts.scores.items()
        for name, found in metrics.items()
    ]
    if not rows:
        return "This model was not scored."
    note = "On 0-100. The interval is over the examples of the test set, not over training runs."
    return f"{note}\n\n{_table(['split', 'metric', 'score', '95% interval', 'signature'], rows)}"


def _limits(facts: CardFacts) -> str:
    return "\n".join([
        f"- Sources longer than {facts.max_source_tokens} tokens are cut; outputs end at {facts.max_new_tokens}. "
        f"Training targets had at most {facts.max_target_tokens}.",
        "- It writes what resembles its training targets. Names, numbers and facts can be wrong: check them.",
        "- It knows the languages, domains and biases of its checkpoints and of its training data, and no others.",
        "- The scores above are of one training run.",
    ])  # fmt: skip


def _recipe(facts: CardFacts) -> str:
    installed = ", ".join(f"{name} {version}" for name, version in facts.versions.items() if version)
    text = f"{facts.steps:,} optimizer steps. The run's config, manifest and report lie beside the export's folder."
    return f"{text} Made with {installed}." if installed else text


def _warm_halves(facts: CardFacts) -> list[str]:
    halves = {"encoder": facts.encoder, "decoder": facts.decoder}
    return [name for half, name in halves.items() if facts.init in {"both", half}]


def _is_hub_id(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists() and len(name) <= 96


def _short(name: str) -> str:
    """Name a file or folder by its last part: where it lay on somebody's machine is nobody's business."""
    is_path = Path(name).is_absolute() or name.startswith(("~", ".")) or Path(name).exists() or name.count("/") > 1
    return Path(name).name if is_path else name


def _interval(ci95: Any) -> str:  # noqa: ANN401 - from JSON
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if ci95 else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
