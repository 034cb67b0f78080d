"""Disks that are full, read-only or gone, files that are damaged, and two who want the same folder."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT, STEPS, read, tensors

RUN = (*BASE, *DROPOUT)


def same(run: Any, expected: Any) -> str:
    """Compare weights, optimizer state and curve to the bit."""
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)) == []
    assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")
    return f"{run.num_finished_steps() - STEPS} steps made again, bitwise equal"


def steps(run: Any) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run.path / "checkpoints").glob("step_*"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own: a small tmpfs."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_06_a_disk_that_gets_full(
    ranks: int, disk: Path, new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    run.folder = disk
    end = run.start(
        ranks, "full_disk", 5, [0], environment={"FAULT_PLACE": str(disk)}, overrides=["trainer.log_every_steps=100"]
    )
    assert end.statuses == [1] * ranks, "\n".join(end.err)
    [line] = [text for text in end.err[0].splitlines() if text.startswith("encdec train: ")]
    assert "step_00000006: expected room and rights for " in line
    assert " bytes free'; [Errno 28] No space left on device" in line
    assert "Traceback" not in "".join(end.err)
    assert steps(run) == [4]
    (disk / "filler").unlink()
    run.finish(ranks, overrides=["trainer.log_every_steps=100"])
    weights, wanted = tensors(run.path), tensors(undisturbed(ranks).path)
    assert [name for name in wanted if weights[name] != wanted[name]] == []
    note(6, f"the disk is full at step 5, {ranks} rank(s): bytes needed and free are said, status 1", end,
         "1 step made again, bitwise equal")  # fmt: skip


def test_06_no_room_for_a_line_of_the_log(disk: Path, new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    run.folder = disk
    end = run.start(1, "full_disk", 5, [0], environment={"FAULT_PLACE": str(disk)})
    assert end.statuses == [1]
    assert "No space left on device" in end.err[0]
    assert steps(run) == [4]
    note(6, "no room for a row of metrics.jsonl: said, status 1", end, "step 5; the next start makes it")


def test_06_no_room_for_the_export(
    disk: Path, new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    run.folder = disk
    end = run.start(1, "disk_full_at_the_export", 0, [0], environment={"FAULT_PLACE": str(disk)})
    assert end.statuses == [1]
    assert "run/export: expected room and rights for the export" in end.err[0]
    assert "No space left on device" in end.err[0]
    assert "Traceback" not in end.err[0]
    assert [path.name for path in run.path.glob("*export*")] == []
    assert steps(run)[-1] == STEPS
    (disk / "filler").unlink()
    run.finish(1)
    note(6, "the disk is full when the export is written: said, status 1, no half of it is left", end,
         same(run, undisturbed(1)))  # fmt: skip


def test_07_a_disk_that_cannot_be_written(disk: Path, new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    run.folder = disk / "runs"
    for name in [f"start1.{end}" for end in ("out", "err.0")]:
        (disk / name).write_text("")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    argv = ["train", *RUN, f"run.output_dir={run.folder}", "run.name=run"]
    run.folder = disk.parent
    end = run.start(1, argvs=[argv])
    assert end.statuses == [2], end.err[0]
    assert "run.output_dir: expected a folder that can be written, got " in end.err[0]
    assert "Read-only file system" in end.err[0]
    assert "loaded" not in end.err[0]  # before anything was
    note(7, "the output folder is on a read-only disk: refused with status 2 before anything is loaded", end, "nothing")


def test_07_a_disk_that_turns_read_only(disk: Path, new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    argv = ["train", *RUN, f"run.output_dir={disk}", "run.name=run", "trainer.log_every_steps=100"]
    place = disk / "run" / "checkpoints"
    end = run.start(1, "read_only_disk", 5, [0], environment={"FAULT_PLACE": str(place)}, argvs=[argv])
    assert end.statuses == [1], end.err[0]
    assert "step_00000006: expected room and rights for " in end.err[0]
    assert "Read-only file system" in end.err[0]
    assert [path.name for path in place.iterdir()] == ["step_00000004"]
    subprocess.run(["umount", str(place)], check=True)
    assert run.start(1, argvs=[argv]).statuses == [0]
    note(
        7, "the checkpoints' disk turns read-only at step 5: said at the first save, status 1", end, "1 step made again"
    )


def test_07_a_folder_that_vanishes(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    end = run.start(1, "vanished_folder", 5, [0], environment={"FAULT_PLACE": str(run.path)})
    assert end.statuses == [1]
    assert "metrics.jsonl" in end.err[0]
    note(7, "the run's folder is removed at step 5: the file that is missing is named, status 1", end, "all of it")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def bit_flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncated, bit_flipped])
def test_08_a_damaged_checkpoint(
    damage: Callable[[Path], None], new_run: Callable[..., Any], undisturbed: Callable[..., Any],
    note: Callable[..., None],
) -> None:  # fmt: skip
    keep = ("trainer.keep_last=2",)
    run = new_run(*RUN, *keep)
    run.kill(2, "step_end", 7, (0, 1))
    assert steps(run) == [4, 6]
    damage(run.path / "checkpoints" / "step_00000006" / "model.safetensors")
    end = run.finish(2)
    assert "model.safetensors: expected the bytes that were written; its SHA-256 differs" in end.err[0]
    assert "Trying the one before it." in end.err[0]
    assert "going on after step 4 of 12" in end.err[0]
    lost = same(run, undisturbed(2, *DROPOUT, *keep))
    note(8, f"the newest checkpoint is {damage.__name__}: said, the one before it is taken", end, lost)


def test_08_when_all_are_damaged_nothing_is_started_over(
    new_run: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    run.kill(1, "step_end", 7)
    for step in steps(run):
        bit_flipped(run.path / "checkpoints" / f"step_{step:08d}" / "optimizer.safetensors")
    end = run.start(1)
    assert end.statuses == [1]
    assert "expected one whole checkpoint" in end.err[0]
    assert steps(run) == [4, 6] or steps(run) == [6]
    note(8, "all checkpoints are damaged: refused with status 1, nothing is removed", end, "-")


@pytest.mark.parametrize("damage", [truncated, bit_flipped])
def test_10_a_damaged_token_cache(
    damage: Callable[[Path], None], new_run: Callable[..., Any], undisturbed: Callable[..., Any], tmp_path: Path,
    note: Callable[..., None],
) -> None:  # fmt: skip
    run = new_run(*RUN)
    cache = f"run.cache_dir={tmp_path / 'cache'}"
    run.start(2, "step_end", 3, (0, 1), overrides=[cache])
    found = sorted((tmp_path / "cache").rglob("*.arrow"))
    assert len(found) >= 3
    for file in found:
        damage(file)
    end = run.finish(2, overrides=[cache])
    lost = same(run, undisturbed(2))
    note(10, f"all cached tokens are {damage.__name__}: both ranks tokenise again", end, lost)


def test_11_two_build_one_cache_and_one_is_killed(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], tmp_path: Path, note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    common = ["train", *RUN, f"run.output_dir={run.folder}", f"run.cache_dir={tmp_path / 'cache'}"]
    argvs = [[*common, "run.name=other"], [*common, "run.name=run"]]
    end = run.start(2, "kill_within_the_cache", 0, [0], argvs=argvs, trace=None)
    assert end.statuses == [-9, 0], "\n".join(end.err)
    assert run.start(1, argvs=[[*common, "run.name=other"]], trace=None).statuses == [0]
    weights, wanted = tensors(run.path), tensors(undisturbed(1).path)
    assert [name for name in wanted if weights[name] != wanted[name]] == []
    left = [path.name for path in (tmp_path / "cache").rglob(".*") if path.is_dir()]
    note(11, "two runs tokenise into one cache, one is killed: the other is done, as is the killed one's next start",
         end, f"nothing; left behind: {len(left)} hidden folder(s)")  # fmt: skip


def test_12_two_runs_in_one_folder(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    argv = ["train", *RUN, f"run.output_dir={run.folder}", "run.name=run"]
    end = run.start(2, argvs=[argv, argv], trace=None)
    assert sorted(end.statuses) == [0, 2], "\n".join(end.err)
    refused = end.err[list(end.statuses).index(2)]
    assert "run.name: expected a run that nobody else is making, got 'run'; process " in refused
    assert f" on {os.uname().nodename}" in refused
    weights, wanted = tensors(run.path), tensors(undisturbed(1).path)
    assert [name for name in wanted if weights[name] != wanted[name]] == []
    note(12, "two at once in one folder: the second is refused with status 2, process and host of the first", end, "-")


def test_05_a_kill_within_a_checkpoint(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    end = run.kill(2, "half_file", 8, (0,))
    assert len(list((run.path / "checkpoints").glob(".step_00000008.*"))) == 1
    run.finish(2)
    assert list((run.path / "checkpoints").glob(".step_*")) == []
    note(5, "killed with half a file written: the one before is taken, the half is removed", end,
         same(run, undisturbed(2)))  # fmt: skip


def test_09_a_folder_that_is_a_link(new_run: Callable[..., Any], refusal: Callable[[str, str], None]) -> None:
    run = new_run(*RUN)
    elsewhere = run.folder / "elsewhere"
    elsewhere.mkdir()
    run.path.symlink_to(elsewhere)
    end = run.start(1)
    assert end.statuses == [2], end.err[0]
    assert "run.name: expected a folder and no link to one" in end.err[0]
    assert list(elsewhere.iterdir()) == []
    shutil.rmtree(elsewhere)
    refusal("the run's folder is a link to another", "refused with status 2, nothing is written there")


def test_09_links_out_of_a_folder(
    new_run: Callable[..., Any], tmp_path: Path, refusal: Callable[[str, str], None]
) -> None:
    run, canary = new_run(*RUN), tmp_path / "canary"
    run.kill(1, "step_end", 7)
    tried = ["checkpoints", "metrics.jsonl", "manifest.json", "config.yaml", ".ranks", "predictions"]
    for name in tried:
        path, aside = run.path / name, run.folder / "aside"
        if path.exists():
            path.rename(aside)
            (shutil.copytree if aside.is_dir() else shutil.copy)(aside, canary)
        else:
            canary.mkdir()
        before = contents(canary)
        path.symlink_to(canary)
        end = run.start(2)
        assert end.statuses == [2, 2], f"{name}: {end.err}"
        assert f"expected a folder without links out of it, got '{path}, a link to {canary}'" in end.err[0]
        assert contents(canary) == before, name
        path.unlink()
        shutil.rmtree(canary) if canary.is_dir() else canary.unlink()
        if aside.exists():
            aside.rename(path)
        what = "refused by both ranks with status 2; the canary is as it was"
        refusal(f"`{name}` of a run's folder is a link to a canary", what)


def test_09_links_in_the_cache(
    new_run: Callable[..., Any], tmp_path: Path, refusal: Callable[[str, str], None]
) -> None:
    run, cache, canary = new_run(*RUN), tmp_path / "cache", tmp_path / "canary"
    asked = [f"run.cache_dir={cache}", "trainer.max_steps=2"]
    run.finish(1, overrides=asked)
    folder = next(iter((cache / "tokens").glob("[!.]*")))
    canary.write_text("a canary")
    lock = folder.with_name(f".{folder.name}.lock")
    (folder / "MANIFEST.json").unlink()  # so that it is to be built again
    lock.symlink_to(canary)
    other = new_run(*RUN)
    end = other.start(1, overrides=asked)
    assert end.statuses == [2], end.err[0]
    assert "run.cache_dir: expected a folder to write to" in end.err[0]
    assert canary.read_text() == "a canary"
    lock.unlink()
    kept = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(kept)
    end = other.start(1, overrides=asked)
    assert end.statuses == [2], end.err[0]
    assert "run.cache_dir: expected folders and no links" in end.err[0]
    what = "refused with status 2; the canary is as it was"
    refusal("a folder of tokens in the cache is a link to another, or its lock is one to a canary", what)


def contents(path: Path) -> dict[str, bytes]:
    """Return what files hold, by name."""
    return {one.name: one.read_bytes() for one in (path, *path.rglob("*")) if one.is_file()}
