import hashlib
import os
from pathlib import Path

import pytest

from encdec_train import fingerprint
from encdec_train.errors import ModelError
from encdec_train.fingerprint import file_sha256, folder_sha256, json_sha256


def test_file_is_hashed_as_hashlib_does_across_chunks(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192 + b"end"  # two chunks and a bit
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_empty_file_has_the_published_hash(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert (
        file_sha256(tmp_path / "f") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )  # FIPS 180-4


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    before = fingerprint._file_sha256.cache_info()
    first = file_sha256(path)
    (tmp_path / "link").symlink_to(path)
    assert file_sha256(tmp_path / "link") == first
    after = fingerprint._file_sha256.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    path.write_bytes(b"two")
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest()


def checkpoint(folder: Path) -> Path:
    files = {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "t", "decoder_tokenizer/vocab.txt": "v"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_folders_of_equal_content_are_equal(tmp_path: Path) -> None:
    assert folder_sha256(checkpoint(tmp_path / "a")) == folder_sha256(checkpoint(tmp_path / "b"))


@pytest.mark.parametrize(
    "name", ["README.md", "optimizer.pt", "onnx/model.onnx", "1_Pooling/config.json", ".gitattributes"]
)
def test_what_is_not_the_model_does_not_count(tmp_path: Path, name: str) -> None:
    before = folder_sha256(checkpoint(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("new")
    assert folder_sha256(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "tokenizer_config.json",
        "merges.txt",
        "spiece.model",
        "decoder_tokenizer/vocab.txt",
    ],
)
def test_what_is_the_model_counts(tmp_path: Path, name: str) -> None:
    before = folder_sha256(checkpoint(tmp_path))
    (tmp_path / name).write_text("other")
    assert folder_sha256(tmp_path) != before


def test_a_renamed_file_counts(tmp_path: Path) -> None:
    before = folder_sha256(checkpoint(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert folder_sha256(tmp_path) != before


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-such: expected a checkpoint folder; there is no such folder"):
        folder_sha256(tmp_path / "no-such")
    (tmp_path / "README.md").touch()
    with pytest.raises(ModelError, match="expected a checkpoint folder; it has neither a config nor weights nor"):
        folder_sha256(tmp_path)


def test_json_is_hashed_in_one_canonical_form() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,null,true],"\\u00e9":"x"}').hexdigest()
    assert json_sha256({"é": "x", "a": (1, 2.5, None, True)}) == expected


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="Path is not JSON serializable"):
        json_sha256({"path": Path("x")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_sha256(float("nan"))
