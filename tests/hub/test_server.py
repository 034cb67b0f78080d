"""The loopback Hub against the real client: what the other tests of the Hub stand on."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub.environment import offline
from hub.server import LARGE_BYTES, Hub, commit_of
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

pytest_plugins = ("hub.fixture",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub" / "large.bin").write_bytes(bytes(range(256)) * (LARGE_BYTES // 128))
    return folder


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_info_tree_and_files(kind: str, hub: Hub, folder: Path) -> None:
    commit = hub.add("owner/name", folder, kind=f"{kind}s")
    info = HfApi().repo_info("owner/name", repo_type=kind)
    assert (info.sha, commit) == (commit_of(folder), commit_of(folder))
    assert [file.rfilename for file in info.siblings or []] == ["config.json", "sub/large.bin"]
    tree = HfApi().list_repo_tree("owner/name", repo_type=kind, recursive=True)
    assert {entry.path: entry.size for entry in tree} == {"config.json": 8, "sub/large.bin": 2 * LARGE_BYTES}
    flat = HfApi().list_repo_tree("owner/name", repo_type=kind)
    assert [entry.path for entry in flat] == ["config.json", "sub"]
    [found] = HfApi().get_paths_info("owner/name", ["sub/large.bin"], repo_type=kind)
    assert found.size == 2 * LARGE_BYTES
    got = Path(snapshot_download("owner/name", repo_type=kind))
    assert got.name == commit
    for name in ("config.json", "sub/large.bin"):
        assert (got / name).read_bytes() == (folder / name).read_bytes()


def test_a_large_file_comes_through_a_redirect(hub: Hub, folder: Path) -> None:
    hub.add("owner/name", folder)
    hf_hub_download("owner/name", "sub/large.bin")
    files = [line for line in hub.requests if "/api/" not in line]
    assert files[0] == "HEAD /owner/name/resolve/main/sub/large.bin"
    assert files[-1].startswith("GET /blob/")


def test_revisions_stand_beside_one_another(hub: Hub, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"a": 2}')
    hub.add("owner/name", folder)
    commit = hub.add("owner/name", other, revision="refs/convert/parquet")
    by_name = hf_hub_download("owner/name", "config.json", revision="refs/convert/parquet")
    assert Path(by_name).read_text() == '{"a": 2}'
    assert Path(hf_hub_download("owner/name", "config.json", revision=commit)).read_text() == '{"a": 2}'


def test_what_is_not_there_says_so_in_the_hubs_own_words(hub: Hub, folder: Path) -> None:
    hub.add("owner/name", folder)
    hub.add("owner/secret", folder, private=True)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("owner/nothing", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("owner/secret", "config.json")
    assert hf_hub_download("owner/secret", "config.json", token=hub.token)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("owner/name", "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("owner/name", "nothing.json")


def test_failures_and_their_end(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/name", folder)
    hub.fail(status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().model_info("owner/name")
    hub.heal()
    assert HfApi().model_info("owner/name").id == "owner/name"
    hub.fail(cut_after=1000, path="/blob/", times=1)  # the client goes on with a range
    got = Path(hf_hub_download("owner/name", "sub/large.bin"))
    assert got.read_bytes() == (folder / "sub" / "large.bin").read_bytes()
    assert sum("GET /blob/" in line for line in hub.requests) == 2
    offline(monkeypatch)
    assert Path(hf_hub_download("owner/name", "sub/large.bin")) == got
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("owner/name", "config.json")


def test_ranges(hub: Hub, folder: Path) -> None:
    hub.add("owner/name", folder)
    url = f"{hub.endpoint}/owner/name/resolve/main/config.json"
    request = urllib.request.Request(url, headers={"Range": "bytes=2-3"})  # noqa: S310 - our own server
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, b'a"', "bytes 2-3/8")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.endpoint}/anything")


def test_the_list_of_converted_files(hub: Hub, folder: Path) -> None:
    hub.add("owner/name", folder, kind="datasets")
    files = {"default": {"train": [f"{hub.endpoint}/datasets/owner/name/resolve/refs%2Fconvert%2Fparquet/0.parquet"]}}
    hub.add_parquet("owner/name", files)
    with urllib.request.urlopen(f"{hub.endpoint}/api/datasets/owner/name/parquet") as answer:
        assert answer.read().decode() == str(files).replace("'", '"')
