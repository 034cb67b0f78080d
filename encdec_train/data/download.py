"""Original files by URL: fetched once, whole or not at all, with what the server and the content say of them."""

import json
import secrets
import shutil
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from huggingface_hub import is_offline_mode

from encdec_train import atomic, console
from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.fingerprint import file_sha256, json_sha256

TIMEOUT_SECONDS = 30.0  # without a byte
_MANIFEST = "MANIFEST.json"
_CHUNK_BYTES = 1 << 20


def fetch_url(url: str, key: str, cache_dir: Path) -> tuple[Path, dict[str, str]]:
    """Return a file's place in the cache and where it came from (`url`, `etag`, `sha256`), downloaded if need be.

    A file that is not as it was when it came is downloaded anew. A download that is cut off leaves nothing.

    Args:
        url: Its address.
        key: The config key that takes a file in its stead.
        cache_dir: The cache of all runs.

    Raises:
        ConfigError: The cache cannot be written.
        DataError: It cannot be had.
    """
    name = url.rpartition("/")[2]
    folder = cache_dir / "files" / f"{name}-{json_sha256(url)[:12]}"
    if (known := _known(folder, name)) is not None:
        return folder / name, known
    damaged, others = folder.exists(), f"and set {key} to the file; the other splits then need their keys too"
    remedy = f"Fetch {url} by other means, {others}"
    if is_offline_mode():
        reason = f"HF_HUB_OFFLINE is set, and {folder.parent} lacks it"
        remedy = f"Where there is a network, run `curl -LO {url}`, {others}"
        raise DataError(fault(key, "a file", url, reason, remedy))
    built = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        built.mkdir(parents=True)
        console.say(f"downloading {url}")
        etag = _download(url, built / name)
        facts = {"url": url, "etag": etag, "sha256": file_sha256(built / name)}
        atomic.write_json(built / _MANIFEST, facts)
        if damaged and _known(folder, name) is None:
            atomic.discard(folder)  # never what another rank has fetched meanwhile, and may be opening
        atomic.install(built, folder, replace=False)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(fault(key, "a file that can be downloaded", url, str(error) or repr(error), remedy)) from error
    except OSError as error:
        place = str(folder.parent.parent)
        raise ConfigError(fault("run.cache_dir", "a folder to write to", place, str(error))) from error
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return folder / name, facts


def _known(folder: Path, name: str) -> dict[str, str] | None:
    try:
        facts: dict[str, str] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return facts if facts["sha256"] == file_sha256(folder / name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _download(url: str, path: Path) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, _CHUNK_BYTES)
        got, length = file.tell(), answer.headers.get("Content-Length")
        if length is not None and int(length) != got:
            raise HTTPException(f"it breaks off after {got:,} of {int(length):,} bytes")
        return str(answer.headers.get("ETag") or "")
