"""Killed and started again: a run ends with the bits that it would have had without, whatever the point of the kill.

`KILL_TABLE=docs/results/kills.md` writes the table of what was found; the one that is there is compared with it.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT, STEPS, read, tensors

TABLE = Path(__file__).parents[2] / "docs" / "results" / "kills.md"
COLUMNS = ("killed", "ranks", "killed ones", "status of the other", "steps made again", "tensors that differ", "of")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
Point = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """Where a run is killed, once or several times, and what that costs.

    Attributes:
        name: In words.
        points: For each start that is killed its point of `server.py` and the step.
        redone: Steps that had been finished and are made again, of all starts.
        victims: For two ranks: the ranks that are killed, by start; nothing for not tried.
        other: Exit status of a rank that lost the other one: 0 where nothing is left for it to do.
    """

    name: str
    points: Sequence[Point]
    redone: int
    victims: Sequence[Sequence[Sequence[int]]] = ()
    other: int = 1


ONE, OTHER, BOTH = ([(0,)], [(1,)], [(0, 1)])
CASES = [
    Case("before there is a manifest", [("start", 0)], 0),
    Case("before the first checkpoint", [("step_end", 1)], 1),
    Case("between the gradient and the update", [("update", 7)], 0, [BOTH]),
    Case("after a step between two checkpoints", [("step_end", 7)], 1, [ONE, OTHER, BOTH]),
    Case("half a line into the metrics", [("log_line", 7)], 1),
    Case("within validation", [("validation", 8)], 2, [ONE, OTHER]),
    Case("half a file into a checkpoint", [("half_file", 8)], 2, [ONE]),
    Case("before a checkpoint is renamed", [("checkpoint_rename", 8)], 2, [ONE]),
    Case("before older checkpoints are removed", [("prune", 8)], 0),
    Case("while another rank writes a checkpoint", [("barrier", 8)], 0, [OTHER]),
    Case("right after a checkpoint", [("step_end", 6)], 0, [ONE]),
    Case("after an epoch's last step", [("step_end", 5)], 1, [BOTH]),
    Case("after an epoch's last step and its checkpoint", [("step_end", 10)], 0),
    Case("within the last validation", [("validation", 12)], 2),
    Case("before the predictions are written", [("predictions", 12)], 0, [ONE]),
    Case("before the export is renamed", [("export_rename", 12)], 0, [ONE], other=0),
    Case("before the report", [("report", 12)], 0),
    Case("twice in an epoch", [("step_end", 7), ("step_end", 9)], 2, [[(1,), (0,)]]),
    Case("twice at the same point", [("half_file", 8), ("half_file", 8)], 4),
]
BASELINE = "within the baseline of random weights"
SHARDED = "half a file into a checkpoint, weights in parts"


def named(name: str, ranks: int, victims: Sequence[Sequence[int]], *case: object) -> Any:
    """Make a parameter with a name that can be read."""
    words = f"{name}, {which(victims)} of {ranks}".replace(" ", "_")
    return pytest.param(*case, ranks, victims, id=words)


def which(victims: Sequence[Sequence[int]]) -> str:
    """Say which ranks were killed: `0`, `0 and 1`, `1, then 0`."""
    return ", then ".join(" and ".join(map(str, ranks)) for ranks in dict.fromkeys(map(tuple, victims)))


ONE_RANK = [named(c.name, 1, [(0,)] * len(c.points), c) for c in CASES if c.victims != [OTHER]]
TWO_RANKS = [named(c.name, 2, victims, c) for c in CASES for victims in c.victims]
SHARDS = [named(SHARDED, 2, ONE)]
BASELINES = [named(BASELINE, 1, [(0,)]), named(BASELINE, 2, BOTH)]


def others(path: Path) -> dict[str, bytes]:
    """Read what must be equal to the byte besides."""
    wanted = ("export/*", "predictions/*", "checkpoints/*/state.json", "metrics.json")
    return {str(file.relative_to(path)): file.read_bytes() for glob in wanted for file in sorted(path.glob(glob))}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Collect the lines of the kill table; they are written where `KILL_TABLE` says."""
    lines: list[str] = []
    yield lines
    target = os.environ.get("KILL_TABLE")
    if target:
        text = Path(target).read_text(encoding="utf-8")
        before, _, rest = text.partition(HEADER)
        after = rest[rest.find("\n\n") + 1 :] if "\n\n" in rest else ""
        Path(target).write_text(before + HEADER + "".join(f"{line}\n" for line in lines) + after, encoding="utf-8")


@pytest.fixture
def check(table: list[str]) -> Callable[..., None]:
    """Compare a run with the undisturbed one, and note it in the table: `check(run, expected, *first columns)`."""

    def compare(run: Any, expected: Any, *words: object) -> None:
        found, wanted = tensors(run.path), tensors(expected.path)
        assert {name.split(":")[0].split("/")[0] for name in wanted} == {"checkpoints", "export"}
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        redone = run.num_finished_steps() - expected.num_finished_steps()
        line = " | ".join(map(str, [*words, redone, len(differing), len(wanted)]))
        table.append(f"| {line} |")
        assert differing == []
        assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")
        ours, theirs = others(run.path), others(expected.path)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == []
        left = [path.name for path in run.path.rglob(".*") if path.name != ".lock"]
        assert left == [], "what a killed process left behind is still there"
        assert json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))["finished"]

    return compare


@pytest.mark.parametrize(("case", "ranks", "victims"), ONE_RANK + TWO_RANKS)
def test_a_killed_run_ends_as_if_it_had_not_been(
    case: Case,
    ranks: int,
    victims: Sequence[Sequence[int]],
    new_run: Callable[..., Any],
    undisturbed: Callable[..., Any],
    check: Callable[..., None],
) -> None:
    expected, run = undisturbed(ranks, *DROPOUT), new_run(*BASE, *DROPOUT)
    others_ended = []
    for (point, step), killed in zip(case.points, victims, strict=True):
        end = run.kill(ranks, point, step, killed)
        others_ended += [status for rank, status in enumerate(end.statuses) if rank not in killed]
    run.finish(ranks)
    check(run, expected, case.name, ranks, which(victims), ", then ".join(map(str, others_ended)) or "-")
    assert run.num_finished_steps() - STEPS == case.redone
    assert others_ended in ([], [case.other] * len(case.points))
    plan = expected.seen()[0]
    assert [seen for seen in run.seen() if not seen.items() <= plan.items()] == []


@pytest.mark.parametrize(("ranks", "victims"), BASELINES)
def test_a_kill_within_a_baseline(
    ranks: int,
    victims: Sequence[Sequence[int]],
    new_run: Callable[..., Any],
    undisturbed: Callable[..., Any],
    check: Callable[..., None],
) -> None:
    overrides = (*DROPOUT, "run.baselines=[copy,random]")
    expected, run = undisturbed(ranks, *overrides), new_run(*BASE, *overrides)
    run.kill(ranks, "second_step_end", 7, victims[0])
    run.finish(ranks)
    check(run, expected, BASELINE, ranks, which(victims), "-")
    assert run.num_finished_steps() - expected.num_finished_steps() == 1
    assert "random" in json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["baselines"]


@pytest.mark.parametrize(("ranks", "victims"), SHARDS)
def test_a_kill_of_a_run_with_weights_in_parts(
    ranks: int,
    victims: Sequence[Sequence[int]],
    new_run: Callable[..., Any],
    undisturbed: Callable[..., Any],
    check: Callable[..., None],
) -> None:
    import numpy as np

    overrides = (*DROPOUT, "trainer.sharding=true")
    expected, run = undisturbed(ranks, *overrides), new_run(*BASE, *overrides)
    end = run.kill(ranks, "half_file", 8, victims[0])
    run.finish(ranks)
    check(run, expected, SHARDED, ranks, which(victims), end.statuses[1])
    ddp, found = (tensors(one.path) for one in (undisturbed(ranks, *DROPOUT), expected))
    assert ddp.keys() == found.keys()  # the same files: checkpoints go from one to the other, exports to anybody
    for name, (kind, shape, data) in ddp.items():
        assert found[name][:2] == (kind, shape)
        if name.startswith("export"):
            values = [np.frombuffer(raw, kind) for raw in (data, found[name][2])]
            np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-5)


def test_13_a_run_goes_from_one_rank_to_two_and_back(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    overrides = ("model.dropout=0", "model.attention_dropout=0", "data.max_micro_tokens=4096")
    expected, run = undisturbed(1, *overrides), new_run(*BASE, *overrides)
    run.kill(1, "step_end", 5)
    run.kill(2, "step_end", 9, (0, 1))
    run.finish(1)
    [plan] = expected.seen()
    first, second, third = run.seen()
    assert [list(first), list(second), list(third)] == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9], [9, 10, 11, 12]]
    assert first | second | third == plan
    assert [len(examples) > 0 for examples in run.seen_by(2, rank=1).values()] == [False, True, True, True, True]
    assert [seen for seen in (first, second, third) if not seen.items() <= plan.items()] == []
    for ours, theirs in zip(read(run.path / "metrics.jsonl"), read(expected.path / "metrics.jsonl"), strict=True):
        exact = {"step", "train/epoch", "optim/lr"}
        assert ours.keys() == theirs.keys()
        assert [key for key in exact & ours.keys() if ours[key] != theirs[key]] == []
        for key in {"train/loss", "validation/loss", "train/grad_norm"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    note(13, "1 rank, then 2, then 1: the same examples a step, losses to 1e-5", None, "2 steps made again")


def test_the_table_says_what_was_found(table: list[str]) -> None:
    if "KILL_TABLE" in os.environ:
        pytest.skip("it is being written")
    written = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert [line for line in table if line not in written] == []
    if len(table) == len(ONE_RANK + TWO_RANKS + BASELINES + SHARDS):
        assert written == table
