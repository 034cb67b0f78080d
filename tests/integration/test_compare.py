"""`encdec compare` between runs that were made: one against one, and several seeds against several."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from results import load, read

Encdec = Callable[..., Any]


def test_a_run_with_itself_and_with_another_search(finished: Path, encdec: Encdec, shared: ModuleType) -> None:
    encdec("evaluate", "checkpoint=out/run", "task=files", "task.test_file=test.jsonl", "run.name=cut",
           "decoding.max_new_tokens=3", "decoding=greedy")  # fmt: skip
    before = shared.snapshot(finished)
    same = encdec("compare", "a=out/run", "b=out/run/predictions/test.jsonl")
    found, scores = json.loads(same.out)["metrics"], load("out/run/metrics.json")["test"]
    assert same.status == 0
    assert list(found) == list(scores)
    for name, one in found.items():
        assert (one["a"], one["b"], one["ci95"], one["p"]) == (scores[name]["value"], one["a"], [0, 0], 1)
        assert one["signature"] == scores[name]["signature"]
    other = encdec("compare", "a=out/run", "b=outputs/cut", "task.metrics=[rougeL,ter]")
    result = json.loads(other.out)
    cut = load("outputs/cut/metrics.json")["test"]
    assert result["metrics"]["rougeL"]["b"] == cut["rougeL"]["value"]
    texts = {row["id"]: row["prediction"] for row in read("outputs/cut/predictions/test.jsonl")}
    assert all(one["b"] == [texts[one["id"]]] for one in result["examples"]["a_better"])
    assert "ter (lower is better)" in other.err
    assert shared.snapshot(finished) == before


def test_seeds_against_seeds(here: Path, train: Encdec, encdec: Encdec, shared: ModuleType) -> None:
    short = (*shared.SPLITS, "trainer.max_steps=2", "run.baselines=[]", "task.metrics=[rougeL,exact_match]")
    train(*short, "run.name=a0", "seed=0")
    train(*short, "run.name=a1", "seed=1")
    train(*short, "run.name=b0", "seed=0", "optim.lr=1e-4")
    done = encdec("compare", "a=[out/a0,out/a1]", "b=[out/b0]")
    result = json.loads(done.out)
    values = {name: load(f"out/{name}/metrics.json")["test"]["rougeL"]["value"] for name in ("a0", "a1", "b0")}
    rouge = result["metrics"]["rougeL"]
    assert done.status == 0
    assert (result["a"], result["b"]) == (["out/a0", "out/a1"], ["out/b0"])
    assert abs(rouge["difference"] - ((values["a0"] + values["a1"]) / 2 - values["b0"])) < 1e-9
    assert rouge["ci95"][0] <= rouge["difference"] <= rouge["ci95"][1]
    assert done.err.startswith("a: out/a0, out/a1\nb: out/b0\n")


def test_runs_on_other_data_are_refused(finished: Path, encdec: Encdec) -> None:
    shutil.copytree("out/run", "out/less")
    file = Path("out/less/predictions/test.jsonl")
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    done = encdec("compare", "a=out/run", "b=out/less")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "encdec compare: out/less/predictions/test.jsonl:id: expected each id of out/run/predictions/test.jsonl once; "
        "1 missing, such as 'row207'.\n"
    )
