"""A checkpoint is found, or refused with a message that says what is wrong with it."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from encdec_train.errors import ModelError
from encdec_train.modeling.checkpoints import SpecialIds, find, quiet_library, special_ids


def test_a_folder_is_read_as_far_as_config_and_tokenizer(tiny_bert: Path) -> None:
    source = find("model.encoder", str(tiny_bert), None)
    assert (source.key, source.name, source.revision) == ("model.encoder", str(tiny_bert), None)
    assert (source.config.model_type, source.config.hidden_size, source.max_positions) == ("bert", 32, 64)
    assert source.tokenizer("the cat").input_ids == [2, 5, 7, 3]


def test_a_tokenizer_that_cuts_on_its_own_no_longer_does(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copy(tiny_bert, tmp_path)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    file.write_text(json.dumps(values))
    tokenizer = find("model.encoder", str(folder), None).tokenizer
    assert tokenizer.backend_tokenizer.encode("the cat sat on the mat").ids == [2, 5, 7, 10, 13, 5, 16, 3]


def test_a_real_checkpoint_is_found_and_its_cut_at_128_tokens_is_off(minilm: Path) -> None:
    source = find("model.encoder", str(minilm), None)
    assert (source.config.num_hidden_layers, source.config.hidden_size, source.max_positions) == (6, 384, 512)
    assert special_ids(source) == SpecialIds(start=101, eos=102, pad=0)
    assert len(source.tokenizer.backend_tokenizer.encode("word " * 300).ids) == 302


def test_special_ids_are_cls_sep_and_pad(tiny_source: Any) -> None:
    assert special_ids(tiny_source) == SpecialIds(start=2, eos=3, pad=0)


def test_bos_and_eos_stand_in_for_cls_and_sep(tiny_bert: Path) -> None:
    source = find("model.decoder", str(tiny_bert), None)
    source.tokenizer.cls_token = source.tokenizer.sep_token = None
    source.tokenizer.bos_token, source.tokenizer.eos_token = "[MASK]", "[UNK]"  # noqa: S105 - tokens of text
    assert special_ids(source) == SpecialIds(start=4, eos=1, pad=0)


def test_a_tokenizer_without_an_end_or_pad_token_is_refused(tiny_bert: Path) -> None:
    source = find("model.decoder", str(tiny_bert), None)
    source.tokenizer.sep_token = source.tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"model.decoder: expected a tokenizer with an end token .* and a pad token"):
        special_ids(source)


def copy(checkpoint: Path, to: Path) -> Path:
    """Copy a checkpoint, to spoil it."""
    return Path(shutil.copytree(checkpoint, to / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def with_another_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"] |= {f"word{index}": index for index in range(32, 40)}
    file.write_text(json.dumps(values))


SPOILT: list[tuple[str, Callable[[Path], Any], str]] = [
    ("empty", lambda folder: [file.unlink() for file in folder.iterdir()], r"with config\.json, got .*; it holds noth"),
    ("no config", lambda folder: (folder / "config.json").unlink(), r"it holds model\.safetensors, tokenizer"),
    ("broken config", lambda folder: (folder / "config.json").write_text("{"), r"a readable config\.json.*Expecting"),
    ("a list", lambda folder: (folder / "config.json").write_text("[1]"), r"from which config\.json can"),
    ("no type", lambda folder: edit(folder / "config.json", model_type=None), r"Unrecognized model .* `model_type`"),
    ("mistyped", lambda folder: edit(folder / "config.json", hidden_size="x"), r"'hidden_size': .* int, got str"),
    ("another type", lambda folder: edit(folder / "config.json", model_type="t5"), r"an encoder .* got 't5'; .* pair"),
    ("own code", lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "m.M"}), r"auto_map.*run code"),
    ("no weights", without_weights, r"a folder with model\.safetensors, got '.*'; there are no weights in it"),
    ("pickle", pickled, r"pytorch_model\.bin is a pickle.*Load it once .* as safetensors\.$"),
    ("no tokenizer", without_tokenizer, r"a tokenizer with a vocabulary, got '5 tokens'.*are missing"),
    ("broken tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{"), r"its tokenizer can be read"),
    ("another tokenizer", with_another_tokenizer, r"at most 32 tokens.*got 40; the highest id is 39.*another model's"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT])
def test_a_spoilt_folder_is_refused(
    spoil: Callable[[Path], Any], message: str, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = copy(tiny_bert, tmp_path)
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        find("model.encoder", str(folder), None)
    text = str(caught.value)
    assert text.startswith("model.encoder: expected ")
    assert "\n" not in text
    assert not text.endswith("..")


def test_a_folder_that_is_not_there_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model.encoder: expected a folder or a Hub id such as .* no such folder\.$"):
        find("model.encoder", str(tmp_path / "nothing"), None)


def test_a_hub_id_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(
        ModelError,
        match=r"model.decoder: .*got 'nobody/nothing'; HF_HUB_OFFLINE is set.*hf download nobody/nothing",
    ):
        find("model.decoder", "nobody/nothing", None)


def test_a_tokenizer_without_a_fast_backend_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **options: object())
    with pytest.raises(ModelError, match=r"a tokenizer with a tokenizer\.json, got .* it has no fast tokenizer"):
        find("model.encoder", str(tiny_bert), None)


def test_the_library_is_quiet_inside_and_as_loud_as_before_outside() -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with contextlib.suppress(ValueError), quiet_library():
        inside = logging.get_verbosity(), logging.is_progress_bar_enabled()
        raise ValueError
    assert inside == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
