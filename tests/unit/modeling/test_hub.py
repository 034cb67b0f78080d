"""What a key's value can be; the Hub itself is spoken to in tests/integration/test_hub.py."""

from pathlib import Path

import pytest

from encdec_train.errors import ModelError
from encdec_train.modeling.hub import check_weights, locate


def test_a_folder_is_itself_without_a_question(tmp_path: Path) -> None:
    assert locate("model.encoder", str(tmp_path), "ignored") == tmp_path


@pytest.mark.parametrize("name", ["/nothing/here", "./bert", "../bert", "~/bert", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"^checkpoint: .*got '{name}'; there is no such folder\.$"):
        locate("checkpoint", name, None)


def test_a_file_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"got 'model'; there is no such folder\.$"):
        locate("checkpoint", "model", None)


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_other_names_are_ids_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=rf"got '{name}'; HF_HUB_OFFLINE is set, and {tmp_path} lacks it"):
        locate("checkpoint", name, None)


def test_a_name_that_the_hub_does_not_allow_says_why() -> None:
    with pytest.raises(ModelError, match=r"^checkpoint: .*got 'two words'"):
        locate("checkpoint", "two words", None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "there are no weights in it"),
        (["a.bin", "sub/b.bin"], r"a\.bin is a pickle"),
        (["sub/b.bin"], "no weights"),
    ],
)
def test_weights_are_safetensors(files: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_weights("model.encoder", "owner/name", files)
    check_weights("model.encoder", "owner/name", [*files, "model.safetensors"])
    check_weights("model.encoder", "owner/name", [*files, "model.safetensors.index.json"])
