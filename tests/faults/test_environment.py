"""No network, a clock that jumps, and an environment in which little is allowed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT, STEPS, read, tensors

RUN = (*BASE, *DROPOUT)
SHORT = ("trainer.max_steps=4", "trainer.validate_every_steps=4")


def same_export(run: Any, expected: Any) -> None:
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert [name for name in theirs if name.startswith("export") and ours[name] != theirs[name]] == []


def test_22_without_a_network(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    run = new_run(*BASE, *SHORT, "tracking=wandb")
    environment = {"WANDB_API_KEY": "f" * 40, "WANDB_MODE": "online", "https_proxy": "http://10.255.255.1:9"}
    end = run.start(1, "no_network", 0, [0], environment=environment, seconds=150)
    assert end.statuses == [0], end.err[0]
    assert "f" * 40 not in end.err[0]
    assert (run.path / "metrics.json").is_file()
    note(22, "no network at all, a wrong key of W&B, a proxy that is not there: the run ends well", end, "nothing")


def test_22_a_model_that_is_not_there(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    end = new_run(*BASE).start(2, overrides=["model.encoder=nobody/has-this"])
    assert end.statuses == [2, 2], "\n".join(end.err)
    assert ["nobody/has-this" in err and "Traceback" not in err for err in end.err] == [True, True]
    note(22, "offline, a model of the Hub that is not in the cache: one message a rank, status 2", end, "-")


def test_23_a_clock_that_jumps(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    end = run.start(2, "clock_back", 5, [0])
    assert end.statuses == [0, 0], "\n".join(end.err)
    same_export(run, undisturbed(2))
    from encdec_train.jsonl import read_rows

    rates = [row["time/tokens_per_second"] for row in read_rows(run.path / "metrics.jsonl") if "train/loss" in row]
    assert len(rates) == STEPS
    assert min(rates) > 0
    note(23, "rank 0's clock goes back a day at step 5: rates stay positive, bitwise equal", end, "nothing")


def test_23_the_newest_checkpoint_is_the_highest_step(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN, "trainer.keep_last=3")
    run.kill(1, "step_end", 7)
    for number, step in enumerate((6, 4, 2)):  # by time the oldest is the newest
        for path in (run.path / "checkpoints" / f"step_{step:08d}").rglob("*"):
            os.utime(path, (time.time() + 1e5 * number,) * 2)
    os.utime(run.path / ".lock", (0, 0))
    end = run.finish(1)
    assert "going on after step 6 of 12" in end.err[0]
    same_export(run, undisturbed(1))
    note(
        23,
        "times of files in the wrong order, a lock from 1970: step 6 is taken, the lock is free",
        end,
        "1 step made again",
    )


def test_25_a_poor_environment(tiny_bert: Path, place: Path, tmp_path: Path, note: Callable[..., None]) -> None:
    """One process of its own: 64 files, no HOME, locale C, umask 077, TMPDIR elsewhere, spaces and letters."""
    folder, cache, elsewhere = tmp_path / "ein Ordner für é", tmp_path / "hub", tmp_path / "tmp"
    for path in (folder, cache, elsewhere):
        path.mkdir()
    cache.chmod(0o555)
    environment = {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "TMPDIR": str(elsewhere), "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    arguments = ["train", *BASE, *SHORT, f'run.output_dir="{folder}"', "run.name=run", "data.num_workers=1",
                 f'run.cache_dir="{folder / "cache"}"']  # fmt: skip
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "encdec_train", *arguments])
    command = ["sh", "-c", f"ulimit -n 64; umask 077; exec {words}"]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (folder / "run" / "metrics.json").is_file()
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == []  # torch leaves an empty folder
    open_to_others = [
        path for path in (folder / "run").rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []
    note(25, "64 open files, no HOME, locale C, umask 077, TMPDIR elsewhere, a read-only cache, a path with spaces "
         "and é: done, no file left in TMPDIR", None, "nothing")  # fmt: skip


def test_25_a_dead_worker_of_the_loader(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN, "data.num_workers=1")
    end = run.start(2, "dead_worker", 7, [1])
    assert [*end.statuses, *end.ended_by_us] == [1, 1], "\n".join(end.err)
    assert "DataLoader worker" in end.err[1]
    assert "rank 1 (process " in end.err[0]
    run.finish(2)
    same_export(run, undisturbed(2))
    note(25, "a worker of rank 1's loader is killed: said on both ranks, status 1", end, "bitwise equal afterwards")


def test_25_little_memory_for_files(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    """A limit on the size of a file: the checkpoint cannot be written."""
    end = new_run(*BASE, *SHORT).start(1, limits={"RLIMIT_FSIZE": 100_000})
    assert end.statuses == [1], end.err[0]
    assert "File too large" in end.err[0]
    assert "Traceback" not in end.err[0]
    note(25, "`ulimit -f` of 100 kB: the file that is too large is named, status 1", end, "-")


def test_14_what_may_change_between_starts(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], place: Path, tiny_bert: Path, tmp_path: Path,
    note: Callable[..., None],
) -> None:  # fmt: skip
    import json
    import shutil

    run = new_run(*RUN)
    run.kill(1, "step_end", 7)
    rows = (place / "train.jsonl").read_text(encoding="utf-8").splitlines()
    edited = tmp_path / "edited.jsonl"
    edited.write_text("\n".join([json.dumps({**json.loads(rows[0]), "target": "another one"}), *rows[1:]]) + "\n")
    bert = tmp_path / "bert"
    shutil.copytree(tiny_bert, bert)
    vocabulary = next(path for path in (bert / "vocab.txt", bert / "tokenizer.json") if path.is_file())
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace("a", "å", 1), encoding="utf-8")
    for overrides, key in [([f"task.train_file={edited}"], "data.train"), ([f"model.encoder={bert}"], "model."),
                           (["optim.lr=1e-3"], "optim.lr: 0.01 there, 0.001 here")]:  # fmt: skip
        end = run.start(1, overrides=overrides)
        assert end.statuses == [2], end.err[0]
        assert "run is another run; nothing was changed. It differs in" in end.err[0]
        assert key in end.err[0]
    run.finish(1, overrides=["trainer.log_every_steps=2", "trainer.keep_last=2"])
    same_export(run, undisturbed(1))
    note(14, "a row, the vocabulary or the learning rate is another: refused with status 2 and the difference; "
         "another log interval: accepted", None, "1 step made again, bitwise equal")  # fmt: skip


def test_15_stopped_at_every_kind_of_boundary(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run, expected = new_run(*RUN), undisturbed(2)
    run.kill(2, "step_end", 5, (0, 1))  # an epoch's end
    run.kill(2, "validation", 8, (0,))
    run.kill(2, "update", 9, (0, 1))  # all micro-batches done, no update
    run.kill(2, "step_end", 9, (0, 1))  # twice in an epoch
    run.finish(2)
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []
    assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")
    note(15, "killed at an epoch's end, within a validation, between gradient and update, twice in an epoch", None,
         f"{run.num_finished_steps() - STEPS} steps made again, bitwise equal")  # fmt: skip


def test_25_little_memory(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    end = run.start(1, "little_memory", 7, [0])
    assert end.statuses == [1], end.err[0]
    assert "MemoryError" in (run.path / "errors" / "rank0.error").read_text(encoding="utf-8")
    run.finish(1)
    same_export(run, undisturbed(1))
    note(25, "`ulimit -v` is reached at step 7: the traceback is printed and kept in `errors/`, status 1", end,
         f"{run.num_finished_steps() - STEPS} steps made again, bitwise equal")  # fmt: skip


def test_25_a_tiny_shared_memory(
    new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a mount needs root")
    run = new_run(*RUN)
    end = run.start(1, "tiny_shm", 0, [0], overrides=["data.num_workers=1"])
    assert end.statuses == [2], end.err[0]
    assert "data.num_workers: expected 0, got 1; /dev/shm has 4,096 bytes left" in end.err[0]
    assert "Traceback" not in end.err[0]
    run.finish(1)
    same_export(run, undisturbed(1))
    note(25, "`/dev/shm` of 4 kB and a worker of the loader: status 2, with what to do", end, "nothing")
