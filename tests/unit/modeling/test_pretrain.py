"""Masked-language modelling from nothing: vocabulary, determinism, and a checkpoint that the library loads."""

import random
from collections import Counter

import pytest
import torch

from encdec_train.data import demo
from encdec_train.modeling.pretrain import PretrainSettings, build_tokenizer, fingerprint, pretrain_mlm, wordpieces

TINY = PretrainSettings(
    hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=300, steps=30, batch=16, max_positions=64
)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    generator = random.Random(5)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(demo.passage(generator) + "\n" for _ in range(300)), encoding="utf-8")
    return path


def test_wordpieces_by_hand() -> None:
    # counts: a+##b 5+2 = 7, ##b+##c 2; the first merge is ab, the second (only pair left) abc
    found = wordpieces(Counter({"ab": 5, "abc": 2}), 10)
    assert found == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##b", "##c", "a", "ab", "abc"]


def test_ties_go_to_the_pair_that_sorts_first() -> None:
    assert wordpieces(Counter({"xy": 1, "ab": 1}), 10)[-1] == "ab"


def test_targets_survive_the_tokenizer(text_file) -> None:
    passages = text_file.read_text().splitlines()
    tokenizer = build_tokenizer(passages, TINY)
    for split in ("train", "test", "test_unseen_words"):
        for pair in demo.pairs(split, 90):
            assert tokenizer.decode(tokenizer(pair.fused)["input_ids"], skip_special_tokens=True) == pair.fused


def test_the_checkpoint_loads_whole_and_has_learnt(text_file, tmp_path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    losses = []
    before = torch.get_rng_state()
    pretrain_mlm(text_file, tmp_path / "bert", TINY, lambda step, total, loss: losses.append((step, total, loss)))
    assert torch.equal(torch.get_rng_state(), before)
    assert [step for step, _, _ in losses] == list(range(1, 31))
    assert losses[0][2] == pytest.approx(5.7, abs=0.2)  # log(300), a guess among all pieces
    assert sum(loss for _, _, loss in losses[-5:]) / 5 < losses[0][2] - 0.3
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    assert len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer("Anna")["input_ids"][0] == tokenizer.cls_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_the_same_settings_give_the_same_weights(text_file, tmp_path) -> None:
    import dataclasses

    from safetensors.torch import load_file

    short = dataclasses.replace(TINY, steps=3)
    for name in ("one", "two"):
        pretrain_mlm(text_file, tmp_path / name, short)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_that_another_process_made_stays(text_file, tmp_path, capfd) -> None:
    import dataclasses

    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("theirs")
    pretrain_mlm(text_file, tmp_path / "bert", dataclasses.replace(TINY, steps=1))
    assert (tmp_path / "bert" / "config.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]
    assert "Writing model shards" not in capfd.readouterr().err  # the library's own bar


def test_every_setting_counts() -> None:
    import dataclasses

    changed = {
        fingerprint(dataclasses.replace(TINY, **{f.name: getattr(TINY, f.name) + 1})) for f in dataclasses.fields(TINY)
    }
    assert len(changed) == len(dataclasses.fields(TINY))
    assert fingerprint(TINY) not in changed
