"""Fewer examples than ranks, than a batch, than a budget: each trains, and two ranks do what one does."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from faults.runs import BASE, read

FEW = ("model.dropout=0", "model.attention_dropout=0", "trainer.max_steps=4", "trainer.validate_every_steps=2")


def numbers(run: Any) -> list[tuple[int, float | None]]:
    return [
        (row["step"], row.get("train/loss", row.get("validation/loss"))) for row in read(run.path / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("one example", ("task.num_train_examples=1",)),
        ("two examples", ("task.num_train_examples=2",)),
        ("three examples in batches of two", ("task.num_train_examples=3", "data.batch_examples=2")),
        ("a batch smaller than the ranks", ("data.batch_examples=1",)),
        ("a budget smaller than an example", ("data.max_micro_tokens=1",)),
        ("one example in each other split", ("task.num_validation_examples=1", "task.num_test_examples=1")),
    ],
)
def test_21_two_ranks_do_what_one_does(
    name: str, overrides: tuple[str, ...], new_run: Callable[..., Any], note: Callable[..., None]
) -> None:
    one, two = new_run(*BASE, *FEW, *overrides), new_run(*BASE, *FEW, *overrides)
    one.finish(1)
    two.finish(2)
    assert one.seen() == two.seen()
    assert [step for step, _ in numbers(one)] == [step for step, _ in numbers(two)]
    assert [loss for _, loss in numbers(two)] == pytest.approx([loss for _, loss in numbers(one)], rel=1e-5)
    ids = [[row["id"] for row in rows] for rows in (predictions(one), predictions(two))]
    assert ids[0] == ids[1]
    assert len(ids[0]) == len(set(ids[0])) > 0
    note(21, f"{name}: 2 ranks see the examples of 1, each once, losses to 1e-5", None, "nothing")


def predictions(run: Any) -> list[dict[str, Any]]:
    text = (run.path / "predictions" / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_21_no_example_is_refused(new_run: Callable[..., Any], place: Any, note: Callable[..., None]) -> None:
    (place / "empty.jsonl").write_text("", encoding="utf-8")
    run = new_run(*BASE, *FEW, "task.train_file=empty.jsonl")
    end = run.start(2)
    assert list(end.statuses) == [2, 2]
    assert ["empty.jsonl" in err and "Traceback" not in err for err in end.err] == [True, True]
    assert not run.path.exists()
    note(21, "no example: refused by both ranks with status 2", end, "-")
