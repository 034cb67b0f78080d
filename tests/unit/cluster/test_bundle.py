"""What a bundle is made of; whole runs from it are in tests/integration/test_bundle.py."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from encdec_train import session
from encdec_train.cluster import bundle
from encdec_train.cluster.bundle import Bundle, asked_rows, opened, verify
from encdec_train.compose import compose
from encdec_train.data.load import Rows
from encdec_train.data.sources import SplitSource
from encdec_train.errors import ConfigError
from encdec_train.modeling.checkpoints import find

ROWS = Rows(["7", "x-ß", "0"], ["a b", "日本 \u2028 🙂", "c"], ["b\na", "'' \"", "d"], [["b"], ["1", "2"], ["d"]])
TASK = ("task=files", "task.train_file=t.jsonl")


@pytest.fixture
def made(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build a bundle of three rows and a tiny BERT at `b`, in a folder where one works from then on."""
    monkeypatch.chdir(tmp_path)
    build(tiny_bert)
    return tmp_path / "b"


def build(bert: Path, *more: str) -> Path:
    config = compose("bundle", [*TASK, f"model.encoder={bert}", "bundle.path=b", *more])
    halves = (find("model.encoder", str(bert), None), find("model.decoder", str(bert), None))
    splits = {name: SplitSource(f"print of {name}", lambda: ROWS) for name in ("train", "test_unseen_words")}
    return bundle.build(config, {"encoder": "e", "decoder": "d"}, halves, splits)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what opening a bundle does to the process."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_rows_come_back_as_they_were(made: Path) -> None:
    splits = verify(made).splits(compose("train", TASK).task)
    assert list(splits) == ["train", "test_unseen_words"]
    assert splits["train"].load() == ROWS
    assert splits["test_unseen_words"].fingerprint == "print of test_unseen_words"


def test_fewer_rows_may_be_asked_for_and_more_may_not(made: Path, tiny_bert: Path, tmp_path: Path) -> None:
    few = compose("train", [*TASK, "task.num_train_examples=2", "task.num_test_examples=1"]).task
    splits = verify(made).splits(few)
    assert splits["train"].load() == Rows(ROWS.ids[:2], ROWS.sources[:2], ROWS.targets[:2], ROWS.references[:2])
    assert splits["test_unseen_words"].load().ids == ["7"]
    build(tiny_bert, "bundle.path=limited", "task.num_train_examples=2", "task.num_test_examples=2")
    words = [*TASK, f"model.encoder={tiny_bert}", "bundle.path=limited", "task.num_train_examples=3"]
    with pytest.raises(ConfigError) as caught:
        opened(compose("train", words))
    assert caught.value.faults == [
        "task.num_train_examples: expected 1..2, got '3'; no more were bundled. "
        "Leave it out, or bundle this run in a folder of its own.",
        "task.num_test_examples: expected 1..2, got 'null'; no more were bundled. "
        "Leave it out, or bundle this run in a folder of its own.",
    ]


def test_of_a_fraction_too_fewer_may_be_asked_for_and_more_may_not(made: Path, tiny_bert: Path) -> None:
    words = [*TASK, f"model.encoder={tiny_bert}", "bundle.path=part", "task.train_fraction=0.5"]
    build(tiny_bert, "bundle.path=part", "task.train_fraction=0.5", "task.num_train_examples=2")
    for asked in ("3", "null"):
        with pytest.raises(ConfigError, match=rf"^task\.num_train_examples: expected 1\.\.2, got '{asked}'; no more"):
            opened(compose("train", [*words, f"task.num_train_examples={asked}"]))
    config = compose("train", [*words, "task.num_train_examples=1"])
    assert session.find_splits(config)["train"].load().ids == ["7"]


def test_the_manifest_says_what_is_in_it(made: Path, tiny_bert: Path) -> None:
    manifest = json.loads((made / "BUNDLE.json").read_text())
    assert sorted(manifest) == ["checkpoints", "checksum", "files", "models", "splits", "task"]
    assert manifest["checkpoints"] == {"encoder": "e", "decoder": "d"}
    one = {"name": str(tiny_bert), "revision": None, "folder": "models/encoder"}
    assert manifest["models"] == [one, one]  # one copy
    weights = manifest["files"]["models/encoder/model.safetensors"]
    import hashlib

    data = (tiny_bert / "model.safetensors").read_bytes()
    assert weights == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest["splits"]["train"] == {"fingerprint": "print of train", "limit": None, "origin": {}}
    assert "metrics" not in manifest["task"]


def test_two_checkpoints_are_two_folders_and_a_pickle_is_left_out(tmp_path: Path, tiny_bert: Path) -> None:
    import shutil

    other = shutil.copytree(tiny_bert, tmp_path / "other")
    (other / "pytorch_model.bin").write_bytes(b"x")
    (other / "decoder_tokenizer").mkdir()
    (other / "decoder_tokenizer" / "vocab.txt").write_text("x")
    halves = (
        SimpleNamespace(name=str(tiny_bert), revision=None, alone=False),
        SimpleNamespace(name=str(other), revision="c0ffee", alone=False),
    )
    model = compose("train", [*TASK, "model.encoder=a/b", "model.decoder=c/d", "model.decoder_revision=v1"]).model
    models = bundle._copy_models(model, halves, tmp_path / "built")  # type: ignore[arg-type]
    assert models == [
        {"name": "a/b", "revision": None, "folder": "models/encoder"},
        {"name": "c/d", "revision": "v1", "folder": "models/decoder@c0ffee"},
    ]
    names = sorted(path.name for path in (tmp_path / "built/models/decoder@c0ffee").rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def test_a_checkpoint_is_found_by_name_and_revision() -> None:
    models = [{"name": "a/b", "revision": None, "folder": "models/encoder"},
              {"name": "a/b", "revision": "v2", "folder": "models/decoder"}]  # fmt: skip
    found = Bundle(Path("b"), {"models": models})
    assert found.source("a/b") == ("b/models/encoder", None)
    assert found.source("a/b", "v2") == ("b/models/decoder", None)
    assert found.source("a/b", "v3") == ("a/b", "v3")
    assert found.source("outputs/run") == ("outputs/run", None)


@pytest.mark.parametrize(
    ("verb", "words", "reads"),
    [
        ("train", TASK, True),
        ("evaluate", ("checkpoint=x", "task=files"), True),
        ("score", ("predictions=x",), False),
        ("score", ("predictions=x", "task.test_file=t.jsonl"), True),
        ("score", ("predictions=x", "task=demo"), True),
        ("generate", ("checkpoint=x",), False),
        ("compare", ("a=x", "b=y"), False),
    ],
)
def test_which_verbs_read_rows(verb: str, words: tuple[str, ...], reads: bool) -> None:
    assert (asked_rows(compose(verb, words)) is not None) is reads


def test_evaluate_need_not_name_the_files_again_and_must_not_name_others(made: Path) -> None:
    words = ["checkpoint=x", "task=files", "bundle.path=b"]
    assert list(session.find_splits(compose("evaluate", words))) == ["train", "test_unseen_words"]
    with pytest.raises(ConfigError, match=r"^task\.test_file: expected null, got 'else\.jsonl'; b was bundled so"):
        session.find_splits(compose("evaluate", [*words, "task.test_file=else.jsonl"]))
    with pytest.raises(ConfigError, match=r"^task\.name: expected files, got 'demo'"):
        session.find_splits(compose("evaluate", ["checkpoint=x", "bundle.path=b"]))


def test_to_score_a_split_only_its_own_rows_count(made: Path, tiny_bert: Path) -> None:
    build(tiny_bert, "bundle.path=few", "task.num_train_examples=2", "task.train_fraction=0.5")
    words = ["checkpoint=x", "task=files", "bundle.path=few"]
    assert "train" in session.find_splits(compose("evaluate", words))
    with pytest.raises(ConfigError) as caught:
        session.find_splits(compose("evaluate", [*words, "split=train"]))
    remedy = "Set it so, or bundle this run in a folder of its own."
    assert caught.value.faults == [
        f"task.num_train_examples: expected 1..2, got 'null'; no more were bundled. {remedy}",
        f"task.train_fraction: expected 0.5, got '1.0'; few was bundled so. {remedy}",
    ]


def test_a_decoder_alone_is_another_run_than_a_pair_of_it(made: Path, tiny_bert: Path) -> None:
    words = [*TASK, "model=gpt", f"model.decoder={tiny_bert}", "bundle.path=b"]
    message = rf"^model\.encoder: expected {tiny_bert}, got 'null'; b was bundled so"
    with pytest.raises(ConfigError, match=message):
        opened(compose("train", words))


def test_without_a_bundle_nothing_is_opened_and_the_network_stays() -> None:
    assert opened(compose("train", TASK)) is None
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, None),  # nobody has set wandb up: it stays unasked for
        ({"WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "online"),  # the user says so
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_an_opened_bundle_keeps_the_process_off_the_network(
    before: dict[str, str], after: str | None, made: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import is_offline_mode

    monkeypatch.setenv("HOME", str(made))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(made))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "NETRC", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    assert not is_offline_mode()
    assert opened(compose("train", [*TASK, f"model.encoder={tiny_bert}", "bundle.path=b"])) is not None
    assert is_offline_mode()
    assert (os.environ["HF_HUB_OFFLINE"], os.environ.get("WANDB_MODE")) == ("1", after)
    assert "huggingface_hub.constants" in sys.modules


def test_hidden_files_are_nobodys_and_many_damaged_ones_are_counted(made: Path) -> None:
    (made / ".nfs0001").write_text("x")
    (made / "models" / ".DS_Store").write_text("x")
    verify(made)
    for number in range(bundle.NUM_SHOWN + 3):
        (made / f"{number}.txt").write_text("x")
    with pytest.raises(ConfigError) as caught:
        verify(made)
    assert len(caught.value.faults) == bundle.NUM_SHOWN + 1
    assert caught.value.faults[-1] == "and 3 more files."


def test_a_bundle_is_read_from_where_it_lies_now(made: Path, tmp_path: Path) -> None:
    moved = made.rename(tmp_path / "with space")
    config: Any = compose("train", ['bundle.path="with space"', "seed=3"])
    assert (config.task.train_file, config.seed, config.bundle.path) == ("t.jsonl", 3, "with space")
    assert opened(config) == Bundle(Path("with space"), verify(moved).manifest)


def test_its_config_is_where_train_begins_unless_something_is_chosen(made: Path) -> None:
    assert compose("train", ["bundle.path=b"]).task.name == "files"
    assert compose("train", ["bundle.path=b", "model=bertshare"]).task.name == "demo"
    assert compose("train", ["bundle.path=elsewhere"]).task.name == "demo"


@pytest.mark.parametrize("verb", ["bundle", "verify"])
def test_it_needs_a_place(verb: str) -> None:
    words = TASK if verb == "bundle" else ()
    with pytest.raises(ConfigError, match=r"^bundle\.path: expected a value, got none\. Set bundle\.path=…\.$"):
        compose(verb, words)
