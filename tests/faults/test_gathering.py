"""Predictions and scores of two ranks are those of one to the byte: none twice, none missing, in data order."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import End
from faults.runs import BASE

SHORT = ("trainer.max_steps=4", "trainer.validate_every_steps=4", "model.dropout=0", "model.attention_dropout=0")
FILES = ("metrics.json", "predictions/test.jsonl")


@pytest.fixture(scope="module")
def seven(request: pytest.FixtureRequest, place: Path) -> str:
    """Write seven test examples beside the others."""
    plugins = request.config.pluginmanager.get_plugins()
    write_pairs = next(plugin.write_pairs for plugin in plugins if hasattr(plugin, "write_pairs"))
    write_pairs(place / "seven.jsonl", range(300, 307))
    return "task.test_file=seven.jsonl"


@pytest.fixture(scope="module")
def trained(seven: str, new_run: Callable[..., Any]) -> Path:
    """Make a run on one rank and return its folder."""
    run = new_run(*BASE, *SHORT, seven)
    run.finish(1)
    return run.path


def evaluate(
    checkpoint: Path, folder: Path, server: Any, place: Path, ranks: int, *more: str, killed_at: int | None = None
) -> tuple[Any, list[str]]:
    """Start `encdec evaluate` as torchrun does; return the statuses, and stderr of each rank.

    With `killed_at`, every rank dies by SIGKILL while it writes the journal's line of that number.
    """
    point, victims = (killed_at and "journal", range(ranks)) if killed_at else (None, ())
    end = disturbed(checkpoint, folder, server, place, ranks, *more, fault=(point, killed_at or 0, victims))
    return end.statuses, end.err


def disturbed(
    checkpoint: Path, folder: Path, server: Any, place: Path, ranks: int, *more: str,
    fault: tuple[str | None, int, Sequence[int]],
) -> End:  # fmt: skip
    """Start `encdec evaluate`; `fault` is a point of `server.py`, a number for it, and the ranks that suffer it."""
    argv = ["evaluate", f"checkpoint={checkpoint}", "task=files", f"run.output_dir={folder}", "run.name=found",
            "trainer.accelerator=cpu", *more]  # fmt: skip
    base = folder / f"start{ranks}{fault[1] or ''}"
    order = {
        "argv": argv, "cwd": str(place), "ranks": ranks, "stdout": f"{base}.out", "stderr": f"{base}.err",
        "trace": None, "seconds": 60, "patience": 30, "point": fault[0], "step": fault[1], "victims": list(fault[2]),
    }  # fmt: skip
    answer = server.make(order)
    return End(**answer, err=[Path(f"{base}.err.{rank}").read_text(encoding="utf-8") for rank in range(ranks)])


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("search", [("decoding=greedy",), ("decoding.num_beams=3",)])
@pytest.mark.parametrize("examples", [7, 1])
def test_24_two_ranks_evaluate_what_one_does(
    examples: int, search: Sequence[str], trained: Path, seven: str, server: Any, place: Path, tmp_path: Path,
    note: Callable[..., None],
) -> None:  # fmt: skip
    found = []
    for ranks in (1, 2):
        folder = tmp_path / f"ranks{ranks}"
        folder.mkdir()
        limit = f"task.num_test_examples={examples}"
        statuses, err = evaluate(trained, folder, server, place, ranks, seven, limit, *search)
        assert statuses == [0] * ranks, "\n".join(err)
        assert [f"decode test {-(-examples // ranks)}/" in err[0], *err[1:]] == [True, *[""] * (ranks - 1)]
        found.append(contents(folder / "found"))
    assert found[0] == found[1]
    ids = [json.loads(line)["id"] for line in found[1]["predictions/test.jsonl"].splitlines()]
    assert ids == [f"row{number}" for number in range(300, 300 + examples)]
    note(
        24,
        f"{examples} test example(s) on 2 ranks, {search[0]}: metrics and predictions of 1 rank, to the byte",
        None,
        "-",
    )


@pytest.mark.parametrize("again", [1, 2, 3])
def test_an_evaluation_killed_on_two_ranks_goes_on_to_the_same_file(
    again: int, trained: Path, seven: str, server: Any, place: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert evaluate(trained, whole, server, place, 1, seven)[0] == [0]
    statuses, _ = evaluate(trained, killed, server, place, 2, seven, killed_at=3)
    assert statuses == [-9, -9]
    assert not (killed / "found" / "predictions" / "test.jsonl").exists()
    (journal,) = (killed / "found" / "predictions").glob(".test.jsonl.*.journal")
    lines = [path.read_bytes() for path in sorted(journal.iterdir())]
    assert [text.count(b"\n") for text in lines] == [2, 2]
    assert all(not text.endswith(b"\n") for text in lines)
    statuses, err = evaluate(trained, killed, server, place, again, seven)
    assert statuses == [0] * again, "\n".join(err)
    assert "decode test: 4 of 7 were decoded before" in err[0]
    assert f"decode test {-(-3 // again)}/{-(-3 // again)}" in err[0]
    assert contents(killed / "found") == contents(whole / "found")
    assert not list((killed / "found" / "predictions").glob(".*"))


@pytest.mark.parametrize("search", [(), ("decoding.num_beams=3",)])
@pytest.mark.parametrize("examples", [7, 1])
def test_two_ranks_train_and_score_as_one_does(
    examples: int, search: Sequence[str], seven: str, new_run: Callable[..., Any]
) -> None:
    found = []
    for ranks in (1, 2):
        run = new_run(*BASE, *SHORT, seven, f"task.num_test_examples={examples}", *search)
        run.finish(ranks)
        found.append(contents(run.path))
    assert found[0] == found[1]
    assert len(found[1]["predictions/test.jsonl"].splitlines()) == examples


def test_24_a_kill_before_the_predictions_are_written(
    seven: str, new_run: Callable[..., Any], note: Callable[..., None]
) -> None:
    run, calm = new_run(*BASE, *SHORT, seven), new_run(*BASE, *SHORT, seven)
    calm.finish(2)
    end = run.kill(2, "predictions", 4, (0,))
    assert not (run.path / "predictions" / "test.jsonl").exists()
    run.finish(2)
    assert contents(run.path) == contents(calm.path)
    note(24, "killed before the predictions are written: none there, the next start decodes again", end, "the decoding")


def test_24_odd_limits_of_the_search(
    trained: Path, seven: str, server: Any, place: Path, tmp_path: Path, note: Callable[..., None]
) -> None:
    for name, search in (("short", "decoding.max_new_tokens=1"), ("wide", "decoding.num_beams=60")):
        found = []
        for ranks in (1, 2):
            folder = tmp_path / f"{name}{ranks}"
            folder.mkdir()
            statuses, err = evaluate(trained, folder, server, place, ranks, seven, search)
            found.append((statuses[0], set(statuses), "Traceback" in "".join(err)))
            if statuses[0] == 0:
                found[-1] += (contents(folder / "found"),)
        assert found[0] == found[1]
        assert not found[0][2]
        note(24, f"{search}: status {found[0][0]}, the same on 1 and 2 ranks", None, "-")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("journal", "was lost, at "),
        ("sigstop_in_decoding", "no rank got on for trainer.stall_seconds=5"),
    ],
)
def test_24_a_rank_that_is_lost_or_hangs_while_it_decodes(
    point: str, said: str, victim: int, trained: Path, seven: str, server: Any, place: Path, tmp_path: Path,
    note: Callable[..., None],
) -> None:  # fmt: skip
    calm, folder = tmp_path / "calm", tmp_path / "folder"
    calm.mkdir()
    folder.mkdir()
    assert evaluate(trained, calm, server, place, 1, seven)[0] == [0]
    stall = "trainer.stall_seconds=5"
    end = disturbed(trained, folder, server, place, 2, seven, stall, fault=(point, 2, [victim]))
    other = 1 - victim
    assert (end.statuses[other], list(end.ended_by_us)) == (1, []), "\n".join(end.err)
    assert end.statuses[victim] == (-9 if point == "journal" else 1)
    assert f"rank {victim} (process " in end.err[other]  # what it did is known to the second
    assert said in end.err[other]
    assert "what was decoded is kept" in end.err[other]
    assert "Traceback" not in end.err[other]
    statuses, err = evaluate(trained, folder, server, place, 2, seven)
    assert statuses == [0, 0], "\n".join(err)
    assert "of 7 were decoded before" in err[0]
    assert contents(folder / "found") == contents(calm / "found")
    assert not list((folder / "found").rglob(".*"))
    what = "killed" if point == "journal" else "stopped (SIGSTOP)"
    note(24, f"`encdec evaluate`, rank {victim} is {what} while it decodes: the other names it, status 1", end,
         "examples that were not yet decoded")  # fmt: skip


def test_a_mistake_is_every_ranks_and_nothing_is_written(
    trained: Path, server: Any, place: Path, tmp_path: Path
) -> None:
    statuses, err = evaluate(trained, tmp_path, server, place, 2, "task.test_file=none.jsonl")
    assert statuses == [2, 2]
    assert [text.count("none.jsonl") for text in err] == [1, 1]
    assert not (tmp_path / "found").exists()
