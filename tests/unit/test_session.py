import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.compose import compose
from encdec_train.config import Accelerator, TrainConfig
from encdec_train.data.sources import splits_of
from encdec_train.errors import ConfigError, DataError
from encdec_train.modeling import export
from encdec_train.session import (
    Session,
    checkpoint_fingerprints,
    device_type,
    micro_tokens,
    open_export,
    open_session,
    search_of,
    source_limit,
    warm_start,
    with_demo_checkpoint,
)


@pytest.fixture
def configured(tiny_bert: Path, pairs_file: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Compose a config over the tiny BERT and 40 pairs: `configured(*overrides)`."""
    given = ["task=files", f"task.train_file={pairs_file}", f"model.encoder={tiny_bert}",
             f"run.output_dir={tmp_path}/o",
             "task.max_source_tokens=32", "task.max_target_tokens=32"]  # fmt: skip
    return lambda *overrides: compose("train", [*given, *overrides])


def opened(config: TrainConfig) -> Session:
    sources = splits_of(config.task, Path(config.run.cache_dir))
    return open_session(config, {name: source.load() for name, source in sources.items()}, sources)


def test_a_folder_is_known_by_its_content(tiny_bert: Path, tmp_path: Path, configured: Callable[..., Any]) -> None:
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    mine = checkpoint_fingerprints(configured().model)
    assert mine["encoder"] == mine["decoder"]
    assert checkpoint_fingerprints(configured(f"model.decoder={copy}").model) == mine
    (copy / "README.md").write_text("a card", encoding="utf-8")
    assert checkpoint_fingerprints(configured(f"model.decoder={copy}").model) == mine
    text = (copy / "config.json").read_text(encoding="utf-8")
    (copy / "config.json").write_text(text.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'), encoding="utf-8")
    changed = checkpoint_fingerprints(configured(f"model.decoder={copy}").model)
    assert changed["encoder"] == mine["encoder"]
    assert changed["decoder"] != mine["decoder"]


def test_a_model_of_the_hub_is_known_by_its_revision(configured: Callable[..., Any]) -> None:
    config = configured("model.encoder=a/b", "model.decoder=c/d", "model.decoder_revision=v1")
    assert checkpoint_fingerprints(config.model) == {"encoder": "a/b@None", "decoder": "c/d@v1"}


def test_a_real_checkpoint_needs_no_pretraining(configured: Callable[..., Any], tmp_path: Path) -> None:
    model = configured().model
    assert with_demo_checkpoint(model, tmp_path / "cache") is model
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("accelerator", "available", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("gpu", True, "cuda")],
)
def test_where_tensors_live(accelerator: str, available: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device_type(Accelerator(accelerator)) == device


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="^trainer.accelerator: expected auto or cpu, got 'gpu'; torch sees no GPU"):
        device_type(Accelerator.gpu)


def test_auto_is_a_budget_of_the_device() -> None:
    assert [micro_tokens("auto", "cpu"), micro_tokens("auto", "cuda"), micro_tokens(7, "cuda")] == [4096, 32768, 7]


def test_a_session_holds_both_halves_and_every_split(configured: Callable[..., Any], one_thread: None) -> None:
    session = opened(configured())
    assert session.halves[0].tokenizer is session.halves[1].tokenizer
    assert list(session.splits) == ["train"]
    assert len(session.splits["train"]) == 40
    words = session.codec.source_tokenizer.get_vocab()
    assert session.splits["train"].rows.sources[0] == "the a cat"
    assert session.splits["train"].source_ids[0].tolist() == [2, words["the"], words["a"], words["cat"], 3]
    assert session.splits["train"].target_ids[0].tolist() == [words["cat"], words["a"], words["the"], 3]


def test_cut_pairs_are_counted(
    configured: Callable[..., Any], capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    opened(configured("task.max_source_tokens=6", "task.max_target_tokens=5"))
    # Words of pair n: 3 + n % 6, so sources have 5 to 10 tokens and targets 4 to 9.
    sources, targets = sum(3 + n % 6 + 2 > 6 for n in range(40)), sum(3 + n % 6 + 1 > 5 for n in range(40))
    assert capsys.readouterr().err == (
        f"train: 40 pairs, {sources} sources cut at task.max_source_tokens=6, "
        f"{targets} targets cut at task.max_target_tokens=5\n"
    )


def test_overlong_pairs_are_refused_by_choice(configured: Callable[..., Any], one_thread: None) -> None:
    with pytest.raises(DataError, match="^task.max_source_tokens: expected at most 6 tokens, got 7; train has .* "
                       "the first is example 'row2'. Raise task.max_source_tokens"):  # fmt: skip
        opened(configured("task.max_source_tokens=6", "task.overlong=refuse"))


def test_limits_past_the_positions_are_named_together(configured: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(configured("task.max_source_tokens=65", "task.max_target_tokens=66"))
    bert = configured().model.encoder
    assert caught.value.faults == [
        f"task.max_{side}_tokens: expected 2..64, got {limit}; {bert} has 64 positions. "
        "Lower it or choose another checkpoint."
        for side, limit in (("source", 65), ("target", 66))
    ]


def test_the_warm_start_is_printed(
    configured: Callable[..., Any], capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    config = configured("model.share=embeddings")
    session = opened(config)
    capsys.readouterr()
    started = warm_start(config, session, config.model.init)
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [row[0] for row in rows[:6]] == ["half", rows[1][0], "encoder", "decoder", "shared", "distinct"]
    assert rows[5][1] == f"{started.total:,}"
    assert rows[-1][-1] == "model.init_cross_attention=self_attention"
    assert started.model.training


@pytest.mark.parametrize(
    "overrides",
    [["model.init_cross_attention=self_attention"], ["model.init=encoder"], ["model.init_parts=embeddings"]],
)
def test_a_copy_is_recommended_where_there_is_something_to_copy(
    configured: Callable[..., Any], capsys: pytest.CaptureFixture[str], one_thread: None, overrides: list[str]
) -> None:
    config = configured(*overrides)
    warm_start(config, opened(config), config.model.init)
    assert "self_attention" not in capsys.readouterr().err


def test_the_seed_decides_about_the_fresh_weights(configured: Callable[..., Any], one_thread: None) -> None:
    config = configured()
    session = opened(config)
    fresh = "decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    weights = [
        warm_start(replace(config, seed=seed), session, config.model.init).model.get_parameter(fresh)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Limited:
    """As much of a model and a tokenizer as `source_limit` asks."""

    def __init__(self, positions: Sequence[int], model_max_length: float) -> None:
        names = ("max_position_embeddings",)[: len(positions)]
        self.encoder = type("Encoder", (), {"config": type("Config", (), dict(zip(names, positions, strict=True)))})
        self.model_max_length = model_max_length


@pytest.mark.parametrize(
    ("asked", "positions", "said", "limit"),
    [
        ("null", [64], 32, 32),
        ("null", [64], 1e30, 64),
        ("null", [], 1000, 1000),
        ("20", [64], 32, 20),
        ("90", [64], 32, 90),
    ],
)
def test_the_export_says_how_long_a_source_is(asked: str, positions: list[int], said: float, limit: int) -> None:
    task = compose("generate", ["checkpoint=x", f"task.max_source_tokens={asked}"]).task
    limited: Any = Limited(positions, said)
    assert source_limit(task, limited, limited) == limit


def test_an_export_decodes_with_its_own_special_ids(
    tiny_source: Any, new_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = new_model(), tiny_source.tokenizer
    model.generation_config.eos_token_id = 7
    model.generation_config.max_new_tokens = 11
    monkeypatch.setattr(export, "load", {"here": (model, (tokenizer, tokenizer))}.get)
    found = open_export(compose("generate", ["checkpoint=here", "task.max_source_tokens=9", "decoding.num_beams=3"]))
    codec = found.codec
    assert (codec.decoder_start_id, codec.eos_id, codec.pad_id, codec.source_pad_id) == (2, 7, 0, 0)
    assert codec.encode_targets(["the"])[0][-1] == 7
    assert (found.search.num_beams, found.search.max_new_tokens, found.max_source_tokens) == (3, 11, 9)


def test_decoding_batches_on_a_cpu_hold_eight_micro_batches(configured: Callable[..., Any]) -> None:
    search = search_of(configured("data.max_micro_tokens=50", "decoding.num_beams=2"))
    assert (search.num_beams, search.max_new_tokens, search.max_batch_tokens) == (2, 32, 400)
