"""What goes wrong between a task and its rows: one message each, and nothing half-built is used."""

from pathlib import Path
from typing import Any

import pytest
from hub import data_sets
from hub.data_sets import rows
from hub.environment import offline
from hub.server import Hub

from encdec_train.compose import compose
from encdec_train.data import download, hub_files
from encdec_train.data.sources import splits_of
from encdec_train.errors import ConfigError, DataError

pytest_plugins = ("hub.fixture",)


def test_an_interrupted_download_is_never_taken_for_all_of_it(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = compose("train", ["task=cnn_dailymail", "model.encoder=bert"]).task
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served.fail(status=404, path="train-00001-of-00002")
    with pytest.raises(DataError, match=r"^abisee/cnn_dailymail@\w{12}: expected its file 3.0.0/train-00001-of-00002"):
        splits_of(task, tmp_path)["train"].load()
    served.heal()
    offline(monkeypatch)
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet; HF_HUB_OFFLINE is set, .*`hf download"):
        splits_of(task, tmp_path)["train"].load()


def test_a_download_by_hand_that_broke_off_is_not_used(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    name, revision = data_sets.GIGAWORD, "refs/convert/parquet"
    folder = Path(snapshot_download(name, repo_type="dataset", revision=revision))
    offline(monkeypatch)
    task = compose("train", ["task=gigaword", "model.encoder=bert"]).task
    assert len(splits_of(task, tmp_path)["train"].load()) == 12
    (folder.parents[1] / "blobs" / "0123.incomplete").write_bytes(b"PAR1")
    with pytest.raises(
        DataError, match=rf"lacks it\. .*`hf download {name} --repo-type dataset --revision {revision}`"
    ):
        splits_of(task, tmp_path)


def test_half_a_file_in_the_cache_is_fetched_again(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows("xsum", tmp_path)
    [file] = Path(tmp_path, "hf", "hub").rglob("test-00000-of-00001.parquet")
    whole = file.read_bytes()
    file.resolve().write_bytes(whole[: len(whole) // 2])
    assert rows("xsum", tmp_path) == before
    [file] = Path(tmp_path, "hf", "hub").rglob("test-00000-of-00001.parquet")
    assert file.read_bytes() == whole
    file.resolve().write_bytes(whole[:-40] + b"x" * 40)  # of the same length
    with pytest.raises(
        DataError,
        match=r"^Edin\S+@\w{12}: expected a parquet file, got '\S+test-00000-of-00001.parquet'; .*Remove it, and",
    ):
        rows("xsum", tmp_path)
    file.resolve().write_bytes(whole[: len(whole) // 2])
    offline(monkeypatch)
    with pytest.raises(DataError, match=r"its file data/test-00000-of-00001.parquet; HF_HUB_OFFLINE is set"):
        rows("xsum", tmp_path)


REFUSED = [
    ("xsum", {"status": 401}, r"^task: .* got 'EdinburghNLP/xsum'; http://\S+ answers 401\. Check the network, or set"),
    ("xsum", {"status": 403, "code": "GatedRepo"}, r"no such data set, or you may not read it.*private or gated"),
    ("xsum", {"status": 404, "code": "RepoNotFound"}, r"the Hub has no such data set, or you may not read it"),
    ("xsum", {"status": 429}, r"answers 429"),
    ("xsum", {"status": 500}, r"answers 500"),
    ("xsum", {"seconds": 9.0}, r"cannot be reached or breaks off \(ReadTimeout"),
    ("xsum", {"status": 500, "path": "/resolve/"}, r"^Edin\S+@\w{12}: expected its file data/train-.*; .*500"),
    ("xsum", {"cut_after": 0, "path": "/blob/|/resolve/"}, r"breaks off|cannot be reached"),
    ("wikisplit", {"status": 404}, r"^task.train_file: .*train.tsv.zip'; HTTP Error 404.*Fetch http.* by other means"),
    ("wikisplit", {"status": 429}, r"HTTP Error 429"),
    ("wikisplit", {"cut_after": 100}, r"it breaks off after 100 of \d+ bytes"),
    ("wikisplit", {"seconds": 9.0}, r"timed out"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "failure", "message"), REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED])
def test_a_refusal_is_one_message_and_the_next_start_works(
    task: str, failure: dict[str, Any], message: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served.fail(**failure)
    with pytest.raises(DataError, match=message) as caught:
        rows(task, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    served.heal()
    assert [len(split) for split in rows(task, tmp_path / "cache").values()] == [12, 4, 5]
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]
    assert left == []


def changed(hub: Hub, place: Path, **columns: str) -> None:
    """Serve an XSum with columns of other names (renamed upstream) or other types."""
    import pyarrow as pa
    from pyarrow import parquet

    [revision] = hub.repositories["datasets", data_sets.XSUM].revisions.values()
    for file in revision.rglob("*.parquet"):
        table = parquet.read_table(file)
        for old, new in columns.items():
            at = table.column_names.index(old)
            values = pa.array([7] * len(table)) if new == "int" else table.column(old)
            table = table.set_column(at, old if new == "int" else new, values)
        parquet.write_table(table, file)


def test_a_column_renamed_or_of_another_type_is_named(served: Hub, tmp_path: Path) -> None:
    changed(served, tmp_path, summary="summaries")
    message = r"^Edin\S+@\w{12}:train-\S+: expected a column 'summary', got 'document, summaries, id'\. Pin an older"
    with pytest.raises(DataError, match=message + r".*the nearest name is 'summaries'"):
        rows("xsum", tmp_path / "cache")
    found = rows("xsum", tmp_path / "cache", "task.target_column=summaries")
    assert found["test"].targets[0] == "A club has said 0."
    changed(served, tmp_path, document="int")
    with pytest.raises(DataError, match=r"train-\S+:document: expected a text, got 'int64'"):
        rows("xsum", tmp_path / "cache")


def test_what_is_not_there_is_named(served: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task.revision: expected a branch, a tag .* of Edin\S+, got 'v9'"):
        rows("xsum", tmp_path, "task.revision=v9")
    with pytest.raises(
        ConfigError, match=r"^task.subset: expected one that \S+ has: discofuse-wiki\w+, got '\w+-sport'"
    ):
        rows("discofuse", tmp_path, "task.subset=sport")
    with pytest.raises(ConfigError, match=r"^task.subset: expected one that wmt/wmt14 has: de-en, got 'en-fr'"):
        rows("wmt14_en_de", tmp_path, "task.subset=en-fr")
    with pytest.raises(DataError, match=r"got 'wmt/wmt19'; the Hub has no such data set"):
        rows("wmt14_en_de", tmp_path, "task.wmt_year=2019")
    [folder] = served.repositories["datasets", data_sets.XSUM].revisions.values()
    (folder / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"expected parquet files of the split validation, got \['data/test-00000-of"):
        rows("xsum", tmp_path)
    del served.repositories["datasets", data_sets.GIGAWORD].revisions["refs/convert/parquet"]
    with pytest.raises(ConfigError, match=r"^task.revision: .* got 'refs/convert/parquet'; the Hub has none.*files of"):
        rows("gigaword", tmp_path)


@pytest.mark.parametrize("what", ["hub", "assets", "ours"])
def test_a_cache_that_cannot_be_written_is_named(
    what: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    blocked = tmp_path / "a_file"
    blocked.write_text("")
    if what == "ours":
        with pytest.raises(ConfigError, match=r"^run.cache_dir: expected a folder to write to, got '\S+a_file'"):
            rows("wikisplit", blocked)
        return
    key = f"HF_{what.upper()}_CACHE"
    monkeypatch.setattr(constants, key, str(blocked / what))
    with pytest.raises(ConfigError, match=rf"^{key}: expected a folder to write to, got '\S+a_file/{what}'; .*HF_HOME"):
        rows("xsum", tmp_path / "cache")


def test_a_full_disk_is_named_and_nothing_is_left(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfileobj", full)
        with pytest.raises(ConfigError, match=r"^run.cache_dir: .*No space left on device"):
            rows("wikisplit", tmp_path / "cache")
    assert list((tmp_path / "cache" / "files").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(ConfigError, match=r"^HF_HUB_CACHE: .*No space left on device\. Free space there"):
            rows("xsum", tmp_path / "cache")
    assert len(rows("xsum", tmp_path / "cache")["train"]) == 12
