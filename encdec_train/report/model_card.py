"""The model card: `README.md` of an export, with the Hub's front matter and a snippet that loads the folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encdec_train.config import Init, Share, TrainConfig, spelled

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?")
_HUB_METRIC = {"sacrebleu_uncased": "sacrebleu", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge",
               "rougeLsum": "rouge", "sari_legacy": "sari", "sari_t2t": "sari"}  # fmt: skip

_PROMPT = """A prompt is the source and the end token: `source + tokenizer.eos_token`. This folder's tokenizer writes
that token itself, keeps it where it cuts, and pads on the left. The output is what is generated behind it, up to the
next end token.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its id on the Hub
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)

texts = ["A source text."]
inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
outputs = model.generate(**inputs)[:, inputs.input_ids.shape[1]:]
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))
```"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card says besides the config. Folders and files are shown by the last part of their path."""

    name: str  # of the run
    config: TrainConfig
    num_parameters: int  # distinct ones
    steps: int  # optimizer steps of these weights
    num_examples: Mapping[str, int]  # pairs by split
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]  # as in `metrics.json`: split, metric, value and the rest
    has_decoder_tokenizer: bool  # whether `decoder_tokenizer/` exists
    versions: Mapping[str, str | None]  # of libraries; None where one is not installed


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
    kind = "decoder-only" if facts.config.model.encoder is None else "encoder-decoder"
    tags = [kind, "warm-start", facts.config.task.name]
    values: dict[str, Any] = {"library_name": "transformers", "tags": tags}
    if bases:
        values["base_model"] = bases
    if metrics:
        values["metrics"] = list(metrics)
        values["model-index"] = [{"name": facts.name, "results": [_result(facts, split) for split in facts.scores]}]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _result(facts: CardFacts, split: str) -> dict[str, Any]:
    scores, task = facts.scores[split], facts.config.task.name
    return {
        "task": {"type": "text2text-generation", "name": task},
        "dataset": {"type": task, "name": _file(facts, split) or task, "split": split},
        "metrics": [
            {"type": _HUB_METRIC.get(name, name), "name": name, "value": round(found["value"], 2)}
            for name, found in scores.items()
        ],
    }


def _origin(facts: CardFacts) -> str:
    warm, model, task = _warm_halves(facts), facts.config.model, facts.config.task.name
    encoder, decoder = f"`{_short(model.encoder or '')}`", f"`{_short(model.decoder)}`"
    alone = model.encoder is None
    started = {
        Init.both: f"warm-started from {encoder} (encoder) and {decoder} (decoder)",
        Init.encoder: f"with its encoder warm-started from {encoder} and a decoder from random weights",
        Init.decoder: f"with its decoder warm-started from {decoder} and an encoder from random weights",
        Init.none: "from random weights",
    }[model.init]
    started = f"warm-started from {decoder}" if warm and alone else started
    named = {
        Share.all: "All parameters but the cross-attention are shared by the halves",
        Share.embeddings: "The halves share their embeddings",
    }
    what = f"The halves share {spelled(model.share)}" if isinstance(model.share, list) else named.get(model.share, "")
    shared = f" {what}; the files hold them twice." if what else ""
    fresh = " The cross-attention starts from random weights." if warm and not alone else ""
    kind = "decoder-only" if alone else "sequence-to-sequence"
    return (
        f"A {kind} model {started}, fine-tuned on `{task}`: {facts.num_parameters:,} distinct "
        f"parameters.{shared}{fresh} The method is that of [Rothe, Narayan and Severyn (2020)]"
        "(https://arxiv.org/abs/1907.12461)."
    )


def _usage(facts: CardFacts) -> str:
    max_source_tokens = facts.config.task.max_source_tokens
    if facts.config.model.encoder is None:
        return f"{_PROMPT}\n\n{_decoding(facts)}"
    subfolder = ', subfolder="decoder_tokenizer"' if facts.has_decoder_tokenizer else ""
    return f"""```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # this folder, or its id on the Hub
model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
decoder_tokenizer = AutoTokenizer.from_pretrained(folder{subfolder})

texts = ["A source text."]
inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length={max_source_tokens})
outputs = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
print(decoder_tokenizer.batch_decode(outputs, skip_special_tokens=True))
```

{_decoding(facts)}"""


def _decoding(facts: CardFacts) -> str:
    decoding = facts.config.decoding
    return f"""Beam search with {decoding.num_beams} beams, length penalty {decoding.length_penalty:g} and at most \
{_longest_output(facts)} tokens is in `generation_config.json`; `generate` needs no further argument."""


def _data(facts: CardFacts) -> str:
    files = {split: _file(facts, split) for split in facts.num_examples}
    rows = [[split, f"{n:,}", f"`{files[split]}`" if files[split] else ""] for split, n in facts.num_examples.items()]
    return _table(["split", "pairs", "file"], rows)


def _file(facts: CardFacts, split: str) -> str:
    name = getattr(facts.config.task, f"{split}_file", None)
    return _short(name) if name else ""


def _longest_output(facts: CardFacts) -> int:
    return facts.config.decoding.max_new_tokens or facts.config.task.limits[1]


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
    longest_source, longest_target = facts.config.task.limits
    return "\n".join([
        f"- Sources longer than {longest_source} tokens are cut; outputs end at {_longest_output(facts)}. "
        f"Training targets had at most {longest_target}.",
        "- It writes what resembles its training targets. Names, numbers and facts can be wrong: check them.",
        "- It knows the languages, domains and biases of its checkpoints and of its training data, and no others.",
        "- The scores above are of one training run.",
    ])  # fmt: skip


def _recipe(facts: CardFacts) -> str:
    installed = ", ".join(f"{name} {version}" for name, version in facts.versions.items() if version)
    text = f"{facts.steps:,} optimizer steps. The run's config, manifest and report lie beside the export's folder."
    return f"{text} Made with {installed}." if installed else text


def _warm_halves(facts: CardFacts) -> list[str]:
    model = facts.config.model
    halves = {Init.encoder: model.encoder, Init.decoder: model.decoder}
    return [name for half, name in halves.items() if name is not None and model.init in {Init.both, half}]


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
