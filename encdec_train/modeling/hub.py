"""The Hub: one short question first, then one folder of its cache that holds all of a checkpoint at one commit."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from encdec_train import console
from encdec_train.errors import ModelError, fault
from encdec_train.hub_errors import ASK_SECONDS, FAILURES, reason_of

SUFFIXES = (".json", ".txt", ".model", ".safetensors")  # configs, tokenizers, weights; never a pickle, never code
FOLDERS = (".", "decoder_tokenizer")  # of a repository: exports of other formats lie in further ones
NEEDED = ["config.json", "model.safetensors*", "model-*.safetensors", "tokenizer*", "vocab*"]  # of a cached checkpoint


def locate(key: str, name: str, revision: str | None) -> Path:
    """Return the folder that a config key names, `fetch`ed where its value is no folder but a Hub id.

    Raises:
        ModelError: When there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:  # never a Hub id
        expected = "a folder or a Hub id such as google-bert/bert-base-uncased"
        raise ModelError(fault(key, expected, name, "there is no such folder"))
    return fetch(key, name, revision)


def fetch(key: str, name: str, revision: str | None) -> Path:
    """Download what a Hub id names, or find it in the cache, where the Hub cannot be reached.

    Args:
        key: The config key that named it.
        name: The Hub id.
        revision: A branch, a tag or a commit; the default branch for None.

    Returns:
        The folder; its name is the hash of the commit.

    Raises:
        ModelError: When it cannot be had, or has no safetensors.
    """
    problem, wanted = None, NEEDED
    try:
        if not is_offline_mode():
            info = HfApi().model_info(name, revision=revision, timeout=ASK_SECONDS)
            files = [sibling.rfilename for sibling in info.siblings or []]
            check_weights(key, name, files)
            wanted = [file for file in files if file.endswith(SUFFIXES) and str(Path(file).parent) in FOLDERS]
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except FAILURES as error:
        problem = error
    try:
        if isinstance(problem, RepositoryNotFoundError | RevisionNotFoundError):
            raise problem
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=wanted))
    except FAILURES as error:
        raise ModelError(_refusal(key, name, revision, problem or error)) from error
    if problem is not None:
        console.say(f"{name}: {reason_of(problem)}; going on with the cached copy of commit {folder.name[:12]}")
    return folder


def check_weights(key: str, name: str, files: Iterable[str]) -> None:
    """Refuse a checkpoint without safetensors, with a ModelError that says so where there is a pickle instead."""
    found = sorted(files)
    if not {"model.safetensors", "model.safetensors.index.json"} & {*found}:
        pickled = next((file for file in found if file.endswith(".bin") and "/" not in file), None)
        reason = f"{pickled} is a pickle, which can run code" if pickled else "there are no weights in it"
        remedy = "Load it once with transformers and save_pretrained() it as safetensors" if pickled else ""
        raise ModelError(fault(key, "a folder with model.safetensors", name, reason, remedy))


def _refusal(key: str, name: str, revision: str | None, error: Exception) -> str:
    if isinstance(error, RevisionNotFoundError):
        return fault(f"{key}_revision", f"a branch, a tag or a commit of {name}", revision, "the Hub has none of it")
    reason, remedy = reason_of(error), "Check the name and the network, or set the key to a local folder"
    if isinstance(error, RepositoryNotFoundError):
        reason = "the Hub has no such model, or you may not read it"
        remedy = "Check the name; for a private or gated model `hf auth login` or set HF_TOKEN"
    elif is_offline_mode():
        pinned = f" --revision {revision}" if revision else ""
        reason = f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} lacks it"
        remedy = f"Where there is a network, run `hf download {name}{pinned}` into the same cache"
    return fault(key, "a folder, or a Hub id that can be reached or is cached", name, reason, remedy)
