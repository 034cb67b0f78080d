import re
from dataclasses import replace

import pytest

from encdec_train.compose import compose
from encdec_train.config import Init, Share
from encdec_train.report.model_card import CardFacts, model_card

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
CONFIG = compose("train", [
    "task=files", "task.train_file='/home/somebody/secret project/train.jsonl.gz'",
    "task.max_source_tokens=128", "task.max_target_tokens=100", "model.encoder=google-bert/bert-base-cased",
    "decoding.num_beams=4", "decoding.length_penalty=1.0", "decoding.max_new_tokens=90",
])  # fmt: skip
FACTS = CardFacts(
    name="wikisplit-bert2bert-3fa9c1",
    config=replace(CONFIG, task=replace(CONFIG.task, name="wikisplit")),
    num_parameters=247_363_386,
    steps=1500,
    num_examples={"train": 989_944, "test": 5000},
    scores={
        "test": {
            "sacrebleu": {"value": 31.2345, "signature": SIGNATURE, "ci95": [30.4, 32.03]},
            "rougeLsum": {"value": 50.0, "signature": "r", "ci95": None},
            "rouge1": {"value": 60.0, "signature": "r", "ci95": [59.0, 61.0]},
        }
    },
    has_decoder_tokenizer=False,
    versions={"torch": "2.13.0", "nothing": None},
)


def started_from(**changes):
    """Change the model section of the facts."""
    return replace(FACTS, config=replace(FACTS.config, model=replace(FACTS.config.model, **changes)))


def front_matter(card):
    from huggingface_hub import ModelCard

    return ModelCard(card).data


def test_front_matter_is_what_the_hub_reads():
    data = front_matter(model_card(FACTS))
    assert data.to_dict()["library_name"] == "transformers"
    assert data.tags == ["encoder-decoder", "warm-start", "wikisplit"]
    assert data.base_model == ["google-bert/bert-base-cased"]
    assert data.metrics == ["sacrebleu", "rouge"]
    found = [(r.dataset_split, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results]
    assert found == [
        ("test", "sacrebleu", "sacrebleu", 31.23),
        ("test", "rouge", "rougeLsum", 50.0),
        ("test", "rouge", "rouge1", 60.0),
    ]


def test_the_text_has_the_numbers_and_no_path_of_anybody():
    card = model_card(FACTS)
    for text in (
        "# wikisplit-bert2bert-3fa9c1\n",
        "warm-started from `google-bert/bert-base-cased` (encoder) and `google-bert/bert-base-cased` (decoder)",
        "247,363,386 distinct parameters",
        "| train | 989,944 | `train.jsonl.gz` |",
        "| test | 5,000 |  |",
        f"| test | sacrebleu | 31.23 | 30.40 to 32.03 | `{SIGNATURE.replace('|', chr(92) + '|')}` |",
        "| test | rougeLsum | 50.00 |  | `r` |",
        "4 beams, length penalty 1 and at most 90 tokens",
        "longer than 128 tokens are cut; outputs end at 90. Training targets had at most 100.",
        "1,500 optimizer steps.",
        "Made with torch 2.13.0.",
    ):
        assert text in card
    assert "somebody" not in card


@pytest.mark.parametrize(
    ("change", "text", "base_model"),
    [
        (
            {"init": Init.encoder},
            "encoder warm-started from `google-bert/bert-base-cased` and a decoder from",
            1,
        ),
        ({"init": Init.decoder, "decoder": "gpt2"}, "decoder warm-started from `gpt2` and an encoder from random", 1),
        ({"init": Init.both, "decoder": "gpt2"}, "(encoder) and `gpt2` (decoder)", 2),
        ({"init": Init.none}, "A sequence-to-sequence model from random weights, fine-tuned", 0),
        (
            {"encoder": "/data/my bert", "decoder": "/data/my bert"},
            "from `my bert` (encoder) and `my bert` (decoder)",
            0,
        ),
        ({"share": Share.all}, "All parameters but the cross-attention are shared", 1),
        ({"share": Share.embeddings}, "share their embeddings", 1),
    ],
)
def test_where_the_weights_are_from(change, text, base_model):
    card = model_card(started_from(**change))
    assert text in card
    assert len(front_matter(card).base_model or []) == base_model


def test_a_folder_is_not_taken_for_an_id_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "cache" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = model_card(started_from(encoder="cache/bert", decoder="cache/bert"))
    assert front_matter(card).base_model is None
    assert "`bert`" in card


def test_without_scores():
    card = model_card(replace(FACTS, scores={}))
    assert "This model was not scored." in card
    assert front_matter(card).eval_results is None


@pytest.fixture(scope="module")
def tiny_export(tmp_path_factory):
    """Give an exported pair of tiny BERTs with two tokenizers."""
    from transformers import BertConfig, BertTokenizerFast, EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig

    folder = tmp_path_factory.mktemp("export")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "source", "text", "."]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    size = {"vocab_size": len(words), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 128}  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    EncoderDecoderModel(config).save_pretrained(folder)
    settings = {"decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 3, "num_beams": 4, "max_new_tokens": 5}
    GenerationConfig(**settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "decoder_tokenizer")
    return folder


@pytest.mark.parametrize("has_decoder_tokenizer", [False, True])
def test_the_snippet_runs(tiny_export, has_decoder_tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(tiny_export)
    card = model_card(replace(FACTS, has_decoder_tokenizer=has_decoder_tokenizer))
    assert ('decoder_tokenizer")' in card) is has_decoder_tokenizer
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    assert scope["outputs"].shape[0] == 1
    assert (
        capsys.readouterr().out
        == f"{scope['decoder_tokenizer'].batch_decode(scope['outputs'], skip_special_tokens=True)}\n"
    )
