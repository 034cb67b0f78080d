"""Every task's rows from where they really are, through a loopback server, with the libraries' own clients."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub import data_sets
from hub.data_sets import rows
from hub.environment import offline
from hub.server import Hub
from results import load

from encdec_train.compose import compose
from encdec_train.data.sources import splits_of
from encdec_train.errors import DataError
from encdec_train.tasks import TASKS

pytest_plugins = ("hub.fixture",)

PAPER = {  # task: source and target limit, metrics as they are written, test splits
    "cnn_dailymail": (512, 128, ["rouge"], ["test"]),
    "xsum": (512, 64, ["rouge"], ["test"]),
    "gigaword": (128, 32, ["rouge"], ["test"]),
    "wmt14_en_de": (128, 128, ["bleu_wmt14", "sacrebleu", "chrf"], ["test", "newstest2016"]),
    "wmt14_de_en": (128, 128, ["bleu_wmt14", "sacrebleu", "chrf"], ["test", "newstest2016"]),
    "discofuse": (128, 128, ["sari_t2t", "exact_match"], ["test"]),
    "wikisplit": (128, 128, ["bleu_nltk", "sari_t2t", "exact_match"], ["test"]),
}
FIRST_TEST_PAIRS = {
    "cnn_dailymail": (
        "LONDON, England (CNN) -- test story 0 .\nIt's \"new\" .",
        "The test story 0 .\nA second line of it .",
    ),
    "xsum": ("The test club said 0.\nMore was “said”.", "A club has said 0."),
    "gigaword": ("test shares rose UNK #.# percent -lrb- 0 -rrb- .", "shares rise 0"),
    "wmt14_en_de": ("House “test” 0 is green.", "Haus „test“ 0 ist grün."),
    "wmt14_de_en": ("Haus „test“ 0 ist grün.", "House “test” 0 is green."),
    "discofuse": ("The test man sat 0 . The man \" ran 0 .", "The test man sat because he ran 0 ."),
    "wikisplit": ("\" test 0 , '' a '' and b .", "\" test 0 , '' a '' . And b ."),
}  # fmt: skip


def test_none_is_overlooked() -> None:
    assert set(PAPER) == set(FIRST_TEST_PAIRS) == set(TASKS) - {"files", "demo"}


@pytest.mark.parametrize("task", PAPER)
def test_a_task_composes_and_loads_through_the_protocol(task: str, served: Hub, tmp_path: Path) -> None:
    config = compose("train", [f"task={task}", "model.encoder=bert"])
    assert (*config.task.limits, config.task.metrics, list(TASKS[task].test_splits)) == PAPER[task]
    assert (config.decoding.num_beams, config.decoding.length_penalty, config.decoding.no_repeat_ngram) == {
        "cnn_dailymail": (4, 2.0, 3), "wmt14_en_de": (4, 0.6, 0), "wmt14_de_en": (4, 0.6, 0),
    }.get(task, (4, 1.0, 0))  # fmt: skip
    found = rows(task, tmp_path / "cache")
    sizes = {**data_sets.SIZES, **({"newstest2016": 3} if task.startswith("wmt") else {})}
    assert {name: len(split) for name, split in found.items()} == sizes
    test = found["test"]
    assert (test.sources[0], test.targets[0]) == FIRST_TEST_PAIRS[task]
    assert test.references == [[target] for target in test.targets]
    ids = {"cnn_dailymail": f"test{4:037d}", "xsum": "te4"}
    assert test.ids[4] == ids.get(task, "4")
    assert len(set(found["train"].sources)) == 12  # both files of it
    assert {"train", "validation", "test"} == {name for name in found if name != "newstest2016"}


@pytest.mark.parametrize(
    ("task", "name", "config"), [("cnn_dailymail", *data_sets.CNN), ("wmt14_en_de", "wmt/wmt14", "de-en")]
)
def test_the_datasets_library_reads_the_same(
    task: str, name: str, config: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    from datasets import load_dataset

    for variable in ("HF_DATASETS_CACHE", "HF_CACHE_HOME"):
        monkeypatch.setattr(datasets.config, variable, tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for split, ours in rows(task, tmp_path / "cache").items():
        if split in data_sets.SIZES:
            theirs = load_dataset(name, config, split=split)
            records = [row["translation"] for row in theirs] if task == "wmt14_en_de" else list(theirs)
            columns = ("en", "de") if task == "wmt14_en_de" else ("article", "highlights")
            assert [ours.sources, ours.targets] == [[row[column] for row in records] for column in columns]


def test_one_question_then_only_the_files_of_a_split_then_none(served: Hub, tmp_path: Path) -> None:
    task = compose("train", ["task=cnn_dailymail", "model.encoder=bert"]).task
    splits = splits_of(task, tmp_path)
    assert served.requests == ["GET /api/datasets/abisee/cnn_dailymail"]
    splits["test"].load()
    commit = served.repositories["datasets", data_sets.CNN[0]].find("main")
    assert commit is not None
    files = [line for line in served.requests if "/resolve/" in line]
    assert {line.partition(" ")[2] for line in files} == {
        f"/datasets/abisee/cnn_dailymail/resolve/{commit[0]}/3.0.0/test-00000-of-00001.parquet"
    }
    asked = len(served.requests)
    splits_of(task, tmp_path)["test"].load()
    assert len(served.requests) == asked + 1
    assert splits["test"].origin == {"dataset": "abisee/cnn_dailymail", "revision": commit[0]}


def test_a_warm_cache_needs_no_network_and_a_cold_one_says_so_at_once(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = tmp_path / "cache"
    before = {task: rows(task, warm) for task in ("xsum", "gigaword", "wikisplit", "wmt14_de_en")}
    task = compose("train", ["task=xsum", "model.encoder=bert"]).task
    online = {name: split.fingerprint for name, split in splits_of(task, warm).items()}
    offline(monkeypatch)
    asked = len(served.requests)
    assert {task: rows(task, warm) for task in before} == before
    assert {name: split.fingerprint for name, split in splits_of(task, warm).items()} == online
    with pytest.raises(DataError, match=r"^task: .* got 'abisee/\w+'; HF_HUB_OFFLINE is set, .*`hf download abi"):
        rows("cnn_dailymail", warm)
    with pytest.raises(DataError, match=r"^task.train_file: .*train.tsv.zip'; HF_HUB_OFFLINE is set.*`curl -LO http"):
        rows("wikisplit", tmp_path / "new")
    assert len(served.requests) == asked


def test_what_was_downloaded_by_hand_is_used(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import snapshot_download

    task = compose("train", ["task=cnn_dailymail", "model.encoder=bert"]).task
    online = {name: split.fingerprint for name, split in splits_of(task, tmp_path).items()}
    shutil.rmtree(tmp_path / "hf")
    folder = Path(snapshot_download(data_sets.CNN[0], repo_type="dataset"))  # what `hf download` does
    offline(monkeypatch)
    assert {name: split.fingerprint for name, split in splits_of(task, tmp_path).items()} == online
    assert len(rows("cnn_dailymail", tmp_path)["train"]) == 12
    (folder / "3.0.0" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE is set, and \S+ lacks it"):
        splits_of(task, tmp_path)


def test_a_hub_that_fails_is_no_matter_with_a_warm_cache(
    served: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = rows("xsum", tmp_path)
    served.fail(status=500)
    assert rows("xsum", tmp_path) == before
    assert "EdinburghNLP/xsum: http://" in (said := capfd.readouterr().err)
    assert "answers 500; going on with what is cached of commit" in said


def test_a_revision_pins_and_another_year_and_pair_are_keys(served: Hub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for split in data_sets.SIZES:
        data_sets.write_parquet(other / "data" / f"{split}.parquet", data_sets.documents("older", 2), "xsum")
    commit = served.add(data_sets.XSUM, other, kind="datasets", revision="v1")
    for revision in ("v1", commit):
        assert rows("xsum", tmp_path, f"task.revision='{revision}'")["test"].targets[1] == "A club has said 1."
        assert len(rows("xsum", tmp_path, f"task.revision='{revision}'")["train"]) == 2
    assert len(rows("xsum", tmp_path)["train"]) == 12
    for split in data_sets.SIZES:
        wmt18 = tmp_path / "wmt18" / "cs-en" / f"{split}-00000-of-00001.parquet"
        record = {"translation": {"cs": f"Dům {split}.", "en": f"House {split}."}}
        write_any(wmt18, [record])
        write_any(tmp_path / "wmt16" / "cs-en" / "test-00000-of-00001.parquet", [record])
    served.add("wmt/wmt18", tmp_path / "wmt18", kind="datasets")
    served.add("wmt/wmt16", tmp_path / "wmt16", kind="datasets")
    found = rows("wmt14_en_de", tmp_path, "task.wmt_year=2018", "task.subset=cs-en")
    assert {name: (split.sources, split.targets) for name, split in found.items()} == {
        **{split: ([f"Dům {split}."], [f"House {split}."]) for split in data_sets.SIZES},
        "newstest2016": (["Dům test."], ["House test."]),
    }


def write_any(path: Path, records: list[dict[str, Any]]) -> None:
    from pyarrow import Table, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(records), path)


def test_original_files_are_recorded_and_verified(served: Hub, tmp_path: Path) -> None:
    task = compose("train", ["task=wikisplit", "model.encoder=bert"]).task
    origin = splits_of(task, tmp_path)["test"].origin
    file = served.files["test.tsv"]
    assert origin == {
        "url": f"{served.endpoint}/files/test.tsv",
        "etag": served.etag(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    asked = len(served.requests)
    splits_of(task, tmp_path)
    assert len(served.requests) == asked
    [kept] = (tmp_path / "files").rglob("test.tsv")
    kept.write_bytes(file.read_bytes()[:50])
    assert len(splits_of(task, tmp_path)["test"].load()) == 5
    assert served.requests[asked:] == ["GET /files/test.tsv"]


def test_a_run_says_what_it_was_trained_on_and_scores_both_test_sets(
    served: Hub, here: Path, encdec: Callable[..., Any]
) -> None:
    done = encdec(
        "train", "task=wmt14_de_en", "task.metrics=[bleu_wmt14]", "task.max_source_tokens=32",
        "task.max_target_tokens=32", "model.encoder=bert", "run.output_dir=out", "run.name=run", "tracking=none",
        "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.validate_every_steps=2", "optim.warmup_steps=0",
        "decoding.num_beams=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    manifest, metrics = load("out/run/manifest.json"), load("out/run/metrics.json")
    assert [metrics[split]["bleu_wmt14"]["value"] >= 0 for split in ("test", "newstest2016")] == [True, True]
    commits = {name: served.repositories["datasets", f"wmt/{name}"].find("main")[0] for name in ("wmt14", "wmt16")}
    wmt14 = {"dataset": "wmt/wmt14", "revision": commits["wmt14"]}
    wmt16 = {"dataset": "wmt/wmt16", "revision": commits["wmt16"]}
    assert manifest["data"] == {"train": wmt14, "validation": wmt14, "test": wmt14, "newstest2016": wmt16}
    lines = Path("out/run/predictions/newstest2016.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[2])["source"] == "Haus „2016“ 2 ist grün."
