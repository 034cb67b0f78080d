"""Records that cannot be used, and pairs that are too long: every rank decides alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, read, tensors

FEW = ("model.dropout=0", "model.attention_dropout=0", "trainer.max_steps=4", "trainer.validate_every_steps=2")
GOOD = {"source": "a b", "target": "b a"}
BAD = [
    ('{"source": "", "target": "b"}', "it is empty"),
    ('{"source": "  ", "target": "b"}', "it is only white space"),
    ('{"source": null, "target": "b"}', "it is null"),
    ('{"source": "a\\u0000b", "target": "b"}', "is NUL"),
    ('{"source": "a\\ud800b", "target": "b"}', "is half of a surrogate pair"),
    ('{"source": 12, "target": "b"}', "its type is int"),
    ('{"source": {"a": 1}, "target": "b"}', "its type is dict"),
    ('{"source": "a"}', "this row has no such field"),
    ('{"source": "a", "target": "b"', "line 2"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_18_a_bad_record(
    line: str, said: str, new_run: Callable[..., Any], tmp_path: Path, note: Callable[..., None]
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{line}\n", encoding="utf-8")
    run = new_run(*BASE)
    end = run.start(2, overrides=[f"task.train_file={file}"])
    assert end.statuses == [2, 2], "\n".join(end.err)
    assert [said in err and "train.jsonl:line 2" in err and "Traceback" not in err for err in end.err] == [True, True]
    assert not (run.path / "manifest.json").exists()
    note(18, f"`{line}`: refused by both ranks, status 2, with file, row and field", end, "-")


def test_18_unusual_texts_are_texts(new_run: Callable[..., Any], tmp_path: Path, note: Callable[..., None]) -> None:
    texts = ["👩‍👩‍👧 zwj", "שלום עולם", "x" * 1_000_000, "None", "a\u2028b", "é e\u0301"]
    file = tmp_path / "train.jsonl"
    lines = "\r\n".join(json.dumps({"source": text, "target": "b"}, ensure_ascii=False) for text in texts)
    file.write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    run = new_run(*BASE, *FEW)
    end = run.finish(2, overrides=[f"task.train_file={file}", "task.overlong=truncate"])
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["splits"]["train"]["examples"] == 6
    note(18, "emoji, right to left, a line of 1 MB, a byte order mark, CRLF: six rows are read", end, "nothing")


def test_19_pairs_that_are_too_long(new_run: Callable[..., Any], tmp_path: Path, note: Callable[..., None]) -> None:
    file = tmp_path / "train.jsonl"
    words = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    rows = [{"source": words, "target": words}, {"source": words, "target": "b"}, {"source": "a", "target": words}]
    rows += [{"source": f"a {letter}", "target": letter} for letter in "bcdef"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = [f"task.train_file={file}", "task.overlong=truncate", "data.batch_examples=1", "trainer.max_steps=8"]
    found = []
    for ranks in (1, 2):
        run = new_run(*BASE, *FEW)
        end = run.finish(ranks, overrides=overrides)
        split = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))["splits"]["train"]
        assert (split["truncated_sources"], split["truncated_targets"]) == (2, 2)
        found.append([row["train/loss"] for row in read(run.path / "metrics.jsonl") if "train/loss" in row])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert len(found[0]) == 8
    note(19, "pairs that are too long are cut and counted; batches of one pair, of which one rank has none: the "
         "losses of one rank", end, "nothing")  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_18_bad_records_set_aside(
    ranks: int, new_run: Callable[..., Any], tmp_path: Path, note: Callable[..., None]
) -> None:
    file, clean = tmp_path / "train.jsonl", tmp_path / "clean.jsonl"
    good = [json.dumps({"source": f"a {n}", "target": f"{n} b"}) for n in range(900)]
    clean.write_text("".join(f"{line}\n" for line in good), encoding="utf-8")
    lines = good[:]
    for number, (line, _) in enumerate(BAD):
        lines.insert(100 * number + 3, line)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    skip = "task.bad_records=skip"
    run, other = new_run(*BASE, *FEW), new_run(*BASE, *FEW)
    end = run.finish(ranks, overrides=[f"task.train_file={file}", skip])
    other.finish(ranks, overrides=[f"task.train_file={clean}"])
    assert end.err[0].count(f"train: {len(BAD)} bad records set aside (task.bad_records=skip), the first: ") == 1
    aside = [json.loads(line) for line in (run.path / "set_aside.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["split"], one["file"], one["line"]) for one in aside] == [
        ("train", str(file), 100 * number + 4) for number in range(len(BAD))
    ]
    said = [text if text != "line 2" else "line 804" for _, text in BAD]
    assert [text in one["reason"] for one, text in zip(aside, said, strict=True)] == [True] * len(BAD)
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    assert {name: (split["examples"], split["set_aside"]) for name, split in manifest["splits"].items()} == {
        "train": (900, 9), "validation": (6, 0), "test": (6, 0)
    }  # fmt: skip
    assert manifest["identity"]["task"]["bad_records"] == "skip"
    facts = json.loads((run.path / "audit.json").read_text(encoding="utf-8"))
    assert facts["splits"]["train"]["set_aside"] == 9
    assert {"split": "train", "name": "records set aside", "share": 9 / 909, "above": 0.0} in facts["warnings"]
    ours, theirs = tensors(run.path), tensors(other.path)
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []
    became = "listed with file, line and reason, counted in manifest and audit; weights as without them, bitwise equal"
    note(18, f"{len(BAD)} bad records of 909, `{skip}`, {ranks} rank(s): {became}", end, "those records")


def test_18_too_many_bad_records(new_run: Callable[..., Any], tmp_path: Path, note: Callable[..., None]) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n" * 98 + '{"source": ""}\n', encoding="utf-8")
    run = new_run(*BASE)
    end = run.start(2, overrides=[f"task.train_file={file}", "task.bad_records=skip"])
    assert end.statuses == [2, 2], "\n".join(end.err)
    assert [err.count("task.bad_records=skip sets at most 1% and 100 rows aside") for err in end.err] == [1, 1]
    assert not (run.path / "manifest.json").exists()
    note(18, "1 bad record of 99 with `task.bad_records=skip`: above 1%, refused by both ranks, status 2", end, "-")
