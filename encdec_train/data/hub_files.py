"""A data set of the Hub: one short question says which parquet files it has at which commit.

Files are fetched when they are read. The answer is kept, so that a start without network knows which files belong to a
split, and never takes the first half of an interrupted download for all of it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub import try_to_load_from_cache as cached_file
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from encdec_train import atomic, console
from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.hub_errors import ASK_SECONDS, FAILURES, HTTPError, reason_of
from encdec_train.tasks.spec import OnHub

OWN_FILES = "set task.train_file, task.validation_file and task.test_file to files of your own"


@dataclass(frozen=True)
class Listing:
    """The parquet files of a data set at one commit."""

    dataset: str
    revision: str | None  # as it was asked for
    commit: str
    files: Mapping[str, tuple[int, str]]  # bytes, and the hash of the content under which the Hub keeps it

    def __str__(self) -> str:
        return f"{self.dataset}@{self.commit[:12]}"


def listing(dataset: str, revision: str | None) -> Listing:
    """Ask the Hub what a data set holds; where it cannot be asked, remember what it said, or look into its cache.

    Raises:
        ConfigError: The revision is none of the data set, or the answer cannot be kept.
        DataError: There is no such data set, or nobody to ask.
    """
    problem = None
    if not is_offline_mode():
        try:
            info = HfApi().dataset_info(dataset, revision=revision, timeout=ASK_SECONDS, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            _refuse(dataset, revision, error)
        except FAILURES as error:
            problem = error
        else:
            hashes = {one.rfilename: (one.size or 0, one.lfs.sha256 if one.lfs else one.blob_id or "")
                      for one in info.siblings or [] if one.rfilename.endswith(".parquet")}  # fmt: skip
            return _kept(Listing(dataset, revision, info.sha or "", hashes))
    known = _known(dataset, revision) or _cached(dataset, revision)
    if known is None:
        _refuse(dataset, revision, problem)
    if problem is not None:
        console.say(f"{dataset}: {reason_of(problem)}; going on with what is cached of commit {known.commit[:12]}")
    return known


def _note(dataset: str, revision: str | None) -> Path:
    name = f"{dataset.replace('/', '--')}@{quote(revision or 'main', safe='')}.json"
    return Path(constants.HF_ASSETS_CACHE) / "encdec-train" / name  # the Hub's own place for what a library keeps


def _kept(found: Listing) -> Listing:
    known = partial(_known, found.dataset, found.revision)
    try:
        if known() != found:
            atomic.write_json(_note(found.dataset, found.revision), asdict(found))
    except OSError as error:
        if known() != found:  # else another process was faster
            raise _unwritable("HF_ASSETS_CACHE", constants.HF_ASSETS_CACHE, error) from error
    return found


def _unwritable(key: str, place: str, error: Exception) -> ConfigError:
    remedy = "Free space there, or set HF_HOME to another folder"
    return ConfigError(fault(key, "a folder to write to", place, str(error), remedy))


def _known(dataset: str, revision: str | None) -> Listing | None:
    try:
        values = json.loads(_note(dataset, revision).read_text(encoding="utf-8"))
        return Listing(**{**values, "files": {name: tuple(facts) for name, facts in values["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _cached(dataset: str, revision: str | None) -> Listing | None:
    """List what `hf download` has put into the Hub's cache; blobs there are named after their content."""
    try:
        folder = Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True))
    except FAILURES:
        return None
    if next((folder.parents[1] / "blobs").glob("*.incomplete"), None) is not None:
        return None  # it broke off: not every name says of how many files it is one
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.parquet"))}
    files = {name: (path.stat().st_size, path.resolve().name) for name, path in paths.items()}
    return Listing(dataset, revision, folder.name, files) if files else None


def files_of(found: Listing, place: OnHub) -> list[str]:
    """Choose the files of a split, in order.

    Raises:
        ConfigError: The data set has no such folder, as a config key chose it.
        DataError: It has no such split, or not all of its files.
    """
    layout = re.compile(rf"{place.split}(-\d+-of-(?P<of>\d+)(-\w+)?)?\.parquet|{place.split}/\d+\.parquet")
    for prefix in (f"{folder}/" if folder else "" for folder in place.folders):
        inside = [name for name in sorted(found.files) if name.startswith(prefix)]
        matches = {name: match for name in inside if (match := layout.fullmatch(name, len(prefix)))}
        num_files = {int(match["of"]) for match in matches.values() if match["of"]} or {len(matches)}
        if num_files != {len(matches)}:
            reason, remedy = f"got {len(matches)} of {max(num_files)} files", _fetching(found.dataset, found.revision)
            raise DataError(fault(str(found), f"all files of the split {place.split}", list(matches), reason, remedy))
        if matches:
            return list(matches)
    have = sorted({name.partition("/")[0] for name in found.files})
    if place.key != "task" and not {*place.folders} & {*have}:
        expected = f"one that {found.dataset} has: {', '.join(have)}"
        raise ConfigError(fault(place.key, expected, place.folders[0]))
    expected = f"parquet files of the split {place.split}"
    raise DataError(fault(str(found), expected, sorted(found.files)[:5], remedy=f"Pin task.revision, or {OWN_FILES}"))


def fetch(found: Listing, name: str) -> Path:
    """Return a file, downloaded where the cache lacks it or holds a part of it.

    Raises:
        ConfigError: The Hub's cache cannot be written.
        DataError: It cannot be had.
    """
    cached = cached_file(found.dataset, name, revision=found.commit, repo_type="dataset")
    if isinstance(cached, str) and Path(cached).stat().st_size == found.files[name][0]:
        return Path(cached)
    download = partial(hf_hub_download, found.dataset, name, repo_type="dataset", revision=found.commit)
    try:
        return Path(download(force_download=isinstance(cached, str)))
    except FAILURES as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, HTTPError | ConnectionError):
            raise _unwritable("HF_HUB_CACHE", constants.HF_HUB_CACHE, error) from error
        reason, remedy = reason_of(error), "The next start goes on from there"
        if is_offline_mode():
            reason, remedy = _lacking(), _fetching(found.dataset, found.revision)
        raise DataError(fault(str(found), f"its file {name}", None, reason, remedy)) from error


def _lacking() -> str:
    return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} lacks it"


def _fetching(dataset: str, revision: str | None) -> str:
    pinned = f" --revision {revision}" if revision else ""
    return f"Where there is a network, run `hf download {dataset} --repo-type dataset{pinned}` into the same cache"


def _refuse(dataset: str, revision: str | None, error: Exception | None) -> NoReturn:
    if isinstance(error, RevisionNotFoundError):
        expected, remedy = f"a branch, a tag or a commit of {dataset}", f"Choose another, or {OWN_FILES}"
        raise ConfigError(fault("task.revision", expected, revision, "the Hub has none of it", remedy)) from error
    reason, remedy = reason_of(error) if error else "", f"Check the network, or {OWN_FILES}"
    if error is None:
        reason, remedy = _lacking(), _fetching(dataset, revision)
    elif isinstance(error, RepositoryNotFoundError):
        reason = "the Hub has no such data set, or you may not read it"
        remedy = f"For a private or gated one `hf auth login` or set HF_TOKEN; or {OWN_FILES}"
    raise DataError(fault("task", "a data set that can be reached or is cached", dataset, reason, remedy)) from error
