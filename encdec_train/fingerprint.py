"""What a file, a checkpoint folder and a JSON value are, in 64 hex digits: equal content, equal digits."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from encdec_train.errors import ModelError, fault

# What a checkpoint computes: its shape, its weights, its tokenizers. Cards, optimizer states and exports to other
# formats may change without changing the model.
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
TOKENIZER_FILES = (  # of the root and of `decoder_tokenizer/`
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
_CHUNK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; a file that this process has hashed before is read again only when it has changed.

    Changed means another real path, size, modification time or inode.
    """
    real = path.resolve()
    stat = real.stat()
    return _file_sha256(real, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hash what makes a checkpoint folder this model: names and contents of its config, weights and tokenizers.

    Raises:
        ModelError: There is no such folder, or nothing of a checkpoint in it.
    """
    if not folder.is_dir():
        raise ModelError(fault(str(folder), "a checkpoint folder", None, "there is no such folder"))
    files = checkpoint_files(folder)
    if not files:
        raise ModelError(fault(str(folder), "a checkpoint folder", None,
                               "it has neither a config nor weights nor a tokenizer"))  # fmt: skip
    return json_sha256({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def checkpoint_files(folder: Path) -> set[Path]:
    """Find what makes a folder this model."""
    patterns = [*CHECKPOINT_FILES, *TOKENIZER_FILES, *(f"decoder_tokenizer/{name}" for name in TOKENIZER_FILES)]
    return {path for pattern in patterns for path in folder.glob(pattern)}


def json_sha256(value: object) -> str:
    """Hash a value made of dicts with string keys, lists, strings, numbers, booleans and None.

    The order of a dict's keys does not count; `1` and `1.0` differ, a tuple equals a list.

    Raises:
        TypeError: A part is none of these.
        ValueError: A number is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
