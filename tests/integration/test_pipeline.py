"""What users of transformers v4 had, and the snippets of its page "Encoder Decoder Models" (known_defects D19, D20)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.layouts import GENERATION, VOCABULARY, write_bert2bert_of_2020, write_t5
from hub.server import Hub
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import encdec_train
from encdec_train.errors import ConfigError, DataError, ModelError
from encdec_train.serving.pipeline import Seq2SeqPipeline, _device, positions

pytest_plugins = ("hub.fixture",)

CNN = "patrickvonplaten/bert2bert_cnn_daily_mail"
BERT = "google-bert/bert-base-uncased"
TEXTS = ["the cat sat on the mat .", "a dog", "because she flew over the old house , it ran and ran", "it", "he sat !"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint in the layout of 2020."""
    return write_bert2bert_of_2020(tmp_path_factory.mktemp("old") / "bert2bert")


@pytest.fixture(scope="module")
def summarizer(old: Path) -> Seq2SeqPipeline:
    return encdec_train.pipeline("summarization", str(old), device="cpu")


@pytest.fixture(scope="module")
def by_hand(old: Path) -> Callable[..., list[list[str]]]:
    """Decode with the library alone, a text at a time, every setting said."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(old).eval(), AutoTokenizer.from_pretrained(old)

    def decode(texts: list[str], **settings: Any) -> list[list[str]]:
        found = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            rows = model.generate(ids, **{**GENERATION, "early_stopping": True, **settings})
            found.append(tokenizer.batch_decode(rows, skip_special_tokens=True))
        return found

    return decode


def test_the_pipeline_snippet(hub: Hub, old: Path, by_hand: Callable[..., Any]) -> None:
    hub.add(CNN, old)
    summarizer = encdec_train.pipeline("summarization", model=CNN, dtype="auto", device=-1)
    assert summarizer(TEXTS[0]) == [{"summary_text": by_hand(TEXTS[:1])[0][0]}]


def test_the_model_and_tokenizer_snippet(hub: Hub, old: Path, by_hand: Callable[..., Any]) -> None:
    hub.add(CNN, old)
    tokenizer = AutoTokenizer.from_pretrained(CNN)
    model = AutoModelForSeq2SeqLM.from_pretrained(CNN, dtype="auto")
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    ids = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_length=50)
    assert [tokenizer.decode(ids[0], skip_special_tokens=True)] == by_hand(TEXTS[:1], max_length=50)[0]


def test_the_warm_start_snippet_and_its_loss(hub: Hub, tiny_bert: Path) -> None:
    from transformers import EncoderDecoderModel

    hub.add(BERT, tiny_bert)
    tokenizer = AutoTokenizer.from_pretrained(BERT)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(BERT, BERT)
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    labels = tokenizer(TEXTS[1], return_tensors="pt").input_ids
    output = model.eval()(input_ids=ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0], labels[0])
    assert output.loss.item() == pytest.approx(expected.item())

    ours = encdec_train.warm_start(BERT)
    assert type(ours) is EncoderDecoderModel
    assert torch.equal(ours.encoder.embeddings.word_embeddings.weight, model.encoder.embeddings.word_embeddings.weight)
    assert ours.generation_config.decoder_start_token_id == tokenizer.cls_token_id


def test_the_config_snippet() -> None:
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    halves = BertConfig(vocab_size=50, **tiny), BertConfig(vocab_size=60, **tiny)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    assert (config.decoder.is_decoder, config.decoder.add_cross_attention) == (True, True)
    model = EncoderDecoderModel(config=config)
    assert model(input_ids=torch.ones(1, 3).long(), decoder_input_ids=torch.ones(1, 2).long()).logits.shape == (
        1,
        2,
        60,
    )


@pytest.mark.parametrize("head", [True, False], ids=["head in the file", "head only tied"])
def test_the_layout_of_2020_loads_whole(head: bool, tmp_path: Path, old: Path) -> None:
    model, (source, target) = encdec_train.load(str(write_bert2bert_of_2020(tmp_path / "m", head=head)))
    said = model.generation_config
    assert {key: getattr(said, key) for key in GENERATION} == GENERATION
    assert (said.decoder_start_token_id, said.eos_token_id, said.pad_token_id, said.early_stopping) == (2, 3, 0, True)
    assert source is target
    assert source(TEXTS[0]).input_ids == [2, *map(VOCABULARY.index, TEXTS[0].split()), 3]
    decoder = model.decoder
    assert torch.equal(decoder.cls.predictions.decoder.weight, decoder.bert.embeddings.word_embeddings.weight)


def test_encdec_generate_reads_it_too(old: Path, by_hand: Callable[..., Any]) -> None:
    wanted = [found[0] for found in by_hand(TEXTS[:2], min_length=0, early_stopping=False, max_new_tokens=14)]
    assert list(encdec_train.generate(TEXTS[:2], str(old))) == wanted


@pytest.mark.parametrize(
    ("task", "key"),
    [("summarization", "summary"), ("text2text-generation", "generated"), ("translation", "translation"),
     ("translation_en_to_de", "translation")],
)  # fmt: skip
def test_each_task_has_its_documented_key(task: str, key: str, old: Path) -> None:
    pipe = encdec_train.pipeline(task, str(old), device="cpu", max_length=5, num_beams=1)
    [answer] = pipe(TEXTS[0])
    assert list(answer) == [f"{key}_text"]
    [tokens] = pipe(TEXTS[0], return_tensors=True)
    assert list(tokens) == [f"{key}_token_ids"]
    assert tokens[f"{key}_token_ids"][0] == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_list_in_batches_is_each_text_alone(
    batch_size: int, summarizer: Seq2SeqPipeline, by_hand: Callable[..., Any]
) -> None:
    wanted = [{"summary_text": found[0]} for found in by_hand(TEXTS)]
    assert len({answer["summary_text"] for answer in wanted}) > 2
    assert summarizer(TEXTS, batch_size=batch_size) == wanted
    assert summarizer([]) == []


def test_an_iterator_is_read_a_batch_at_a_time(summarizer: Seq2SeqPipeline) -> None:
    read: list[str] = []

    def texts() -> Any:
        for text in TEXTS:
            read.append(text)
            yield text

    answers = summarizer(texts(), batch_size=2)
    assert read == []
    assert next(answers) == summarizer(TEXTS[0])
    assert read == TEXTS[:2]
    assert [answer[0] for answer in answers] == summarizer(TEXTS[1:])


SETTINGS: list[dict[str, Any]] = [
    {"max_length": 9, "min_length": 0},
    {"max_length": 30},
    {"max_new_tokens": 4, "min_length": 0},
    {"num_beams": 1, "no_repeat_ngram_size": 2},
    {"num_return_sequences": 3},
    {"num_beams": 2, "length_penalty": 0.1, "min_length": 12},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generation_arguments_arrive(
    settings: dict[str, Any], summarizer: Seq2SeqPipeline, by_hand: Callable[..., Any]
) -> None:
    wanted = [[{"summary_text": text} for text in found] for found in by_hand(TEXTS[:2], **settings)]
    assert summarizer(TEXTS[:2], **settings) == ([found[0] for found in wanted] if len(wanted[0]) == 1 else wanted)
    assert summarizer(TEXTS[0], **settings) == wanted[0]


def test_a_call_wins_over_the_pipeline_and_that_over_the_checkpoint(old: Path) -> None:
    pipe = encdec_train.pipeline("summarization", str(old), device="cpu", max_length=8, min_length=8, num_beams=1)
    lengths = [
        len(pipe(TEXTS[0], return_tensors=True, **call)[0]["summary_token_ids"])
        for call in ({}, {"max_length": 11, "min_length": 11})
    ]
    assert lengths == [8, 11]


def test_sampling_follows_the_seed(summarizer: Seq2SeqPipeline) -> None:
    def sample(seed: int) -> Any:
        torch.manual_seed(seed)
        return summarizer(TEXTS[0], do_sample=True, num_beams=1, num_return_sequences=4, temperature=5.0)

    first = sample(1)
    assert len({answer["summary_text"] for answer in first}) > 1
    assert sample(1) == first != sample(2)


def test_a_long_text_is_refused_or_cut(summarizer: Seq2SeqPipeline, by_hand: Callable[..., Any]) -> None:
    long = "cat " * 100
    with pytest.raises(
        DataError,
        match=r"^inputs\[1\]: expected at most 64 tokens, the model's positions, got 102\. Say truncation=True",
    ):
        summarizer([TEXTS[0], long], batch_size=2)
    assert summarizer(long, truncation=True)[0]["summary_text"] == by_hand(["cat " * 62])[0][0]


def test_a_pair_of_tokenizers_is_used_on_its_sides(old: Path) -> None:
    model, (source, _) = encdec_train.load(str(old))
    plain = encdec_train.pipeline("translation", model, source, device="cpu")

    class Loud:
        def decode(self, row: Any, **options: Any) -> str:
            return source.decode(row, **options).upper()

    loud = encdec_train.pipeline("translation", model, (source, Loud()), device="cpu")
    assert loud(TEXTS[0])[0]["translation_text"] == plain(TEXTS[0])[0]["translation_text"].upper()


def test_our_own_export_with_two_tokenizers_through_the_hub(
    hub: Hub, finished: Path, encdec: Callable[..., Any]
) -> None:
    export = finished / "out" / "run" / "export"
    texts = ["the cat sat", "a dog ran"]
    wanted = list(encdec_train.generate(texts, str(export), "trainer.accelerator=cpu"))
    tokenizer = AutoTokenizer.from_pretrained(export)
    tokenizer.save_pretrained(export / "decoder_tokenizer")
    hub.add("owner/fused", export)
    pipe = encdec_train.pipeline("text2text-generation", "owner/fused", device="cpu")
    assert pipe.decoder_tokenizer is not pipe.tokenizer
    assert [answer["generated_text"] for answer in pipe(texts)] == wanted


def test_t5_works_with_its_prefix(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "t5")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("translate English to German: the cat sat", return_tensors="pt").input_ids
    rows = model.generate(ids, max_length=9, num_beams=2)
    pipe = encdec_train.pipeline("translation_en_to_de", str(folder), device="cpu")
    assert pipe("the cat sat") == [{"translation_text": tokenizer.decode(rows[0], skip_special_tokens=True)}]
    plain = encdec_train.pipeline("text2text-generation", str(folder), device="cpu")
    assert plain("the cat sat") != [{"generated_text": pipe("the cat sat")[0]["translation_text"]}]


def test_dtype_and_device(old: Path) -> None:
    assert encdec_train.pipeline("summarization", str(old), device="cpu").model.dtype is torch.float32
    for said in ({"dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"torch_dtype": "torch.bfloat16"}):
        pipe = encdec_train.pipeline("summarization", str(old), device=-1, **said)
        assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.bfloat16}
        assert pipe(TEXTS[0])[0]["summary_text"]


DEVICES = {-1: "cpu", 0: "cuda:0", 3: "cuda:3", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}


def test_a_device_is_said_as_transformers_does(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in (-1, "cpu", torch.device("cpu")):
        pipe = encdec_train.pipeline("summarization", str(old), device=device)
        assert {parameter.device for parameter in pipe.model.parameters()} == {torch.device("cpu")}
    for name, available in (("cuda:0", True), ("cpu", False)):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        with monkeypatch.context() as patched:
            patched.setattr("torch.empty", lambda *_, **__: None)  # this machine need not have them
            found = {device: str(_device(device)) for device in (*DEVICES, None)}
        assert found == {**DEVICES, None: name}


def test_roberta_counts_positions_from_behind_its_pad() -> None:
    from transformers import BertConfig, RobertaConfig, T5Config

    assert positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert positions(BertConfig(max_position_embeddings=512)) == 512
    assert positions(T5Config()) is None


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"task": "text-generation"}, ConfigError, r"^task: expected text2text-generation, summarization, translation or "),
    ({"device": "gpu"}, ConfigError, r"^device: expected -1, cpu, or a GPU .*got 'gpu'; "),
    ({"device": 99}, ConfigError, r"^device: expected -1, cpu, or a GPU that torch sees, got 99; "),
    ({"dtype": "float99"}, ConfigError, r"^dtype: expected auto, float32, bfloat16 or float16, got 'float99'"),
    ({"num_beans": 2}, ConfigError, r"^num_beans: expected an argument .*got 2\. Did you mean num_beams"),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_bad_arguments_are_refused(given: dict[str, Any], error: type[Exception], message: str, old: Path) -> None:
    with pytest.raises(error, match=message):
        encdec_train.pipeline(**{"task": "summarization", "model": str(old), "device": "cpu", **given})


def test_bad_calls_are_refused(summarizer: Seq2SeqPipeline) -> None:
    with pytest.raises(DataError, match=r"^inputs\[1\]: expected a text, got 5; its type is int"):
        summarizer(["a cat", 5])
    with pytest.raises(ConfigError, match=r"^max_new_tokens: expected at most 64, the model's positions, got 99"):
        summarizer("a cat", max_length=100)
    with pytest.raises(ConfigError, match=r"^max_lenght: expected an argument .*Did you mean max_length"):
        summarizer("a cat", max_lenght=9)


def test_bad_checkpoints_are_refused(tiny_bert: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a sequence-to-sequence model, got 'bert'"):
        encdec_train.pipeline("summarization", str(tiny_bert))
    with pytest.raises(ModelError, match=r"^tokenizer: expected a tokenizer beside a model that is no name"):
        encdec_train.pipeline("summarization", encdec_train.load(str(old))[0])
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "config.json").write_text(json.dumps(json.loads((old / "config.json").read_text())))
    (pickle / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"pytorch_model\.bin is a pickle, which can run code\. Load it once .* as safet"
    ):
        encdec_train.pipeline("summarization", str(pickle))
