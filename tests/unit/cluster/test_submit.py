"""What is submitted and what is said, by stand-ins for SLURM's commands; `tests/cluster` has the real ones."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from encdec_train import cli

TASK = ("task=files", "task.train_file=train.jsonl", "model.encoder=bert-base-uncased", "cluster.gpus_per_node=0")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins on the path: `sbatch` gives job 7 and notes its arguments, `squeue` knows nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n')
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"sbatch": f'echo "$@" >> {folder}/told; [ "$1" = --test-only ] || echo "7;cluster"', "squeue": "exit 1"}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def folders(err: str) -> list[Path]:
    return [Path(line.strip()) for line in err.splitlines() if line.startswith("  outputs/")]


def finish(folder: Path, identity: Mapping[str, object] | None = None) -> None:
    """Make a run look finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"finished": True, "identity": identity}))
    (folder / "metrics.json").write_text("{}")


def test_one_run(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *TASK, "run.name=x"]) == 0
    out, err = capsys.readouterr()
    assert out == "7\n"
    assert err == (
        "submitted as job 7: 1 run, outputs/x/slurm/job.sbatch\n  outputs/x\nwatch it:  squeue -j 7\n"
        "its log:   tail -F outputs/x/slurm/7.log\nend it:    scancel 7\n"
        "The same command later submits what is missing or has failed.\n"
    )
    assert (slurm / "told").read_text() == "--test-only\n--parsable outputs/x/slurm/job.sbatch\n"
    command = Path("outputs/x/slurm/job.sbatch").read_text().splitlines()[-1]
    assert "cluster." not in command
    words = "task=files task.train_file=train.jsonl model.encoder=bert-base-uncased run.name=x trainer.devices="
    assert f" -m encdec_train train {words}" in command


def test_a_dry_run_writes_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *TASK, "submit.dry_run=true"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/bash\n#SBATCH --job-name=files-bert2bert-")
    assert err == ""
    assert not Path("outputs").exists()
    assert not (slurm / "told").exists()


def test_a_sweep_leaves_out_what_is_finished(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["submit", "-m", *TASK, "seed=1,2,3"]
    assert cli.main(sweep) == 0
    found = folders(capsys.readouterr().err)
    assert len(found) == 3
    assert [json.loads((folder / "slurm" / "job.json").read_text()) for folder in found] == [
        {"job": f"7_{number}"} for number in range(3)
    ]
    [script] = Path("outputs/slurm").glob("sweep-*/job.sbatch")
    assert "#SBATCH --array=0,1,2\n" in script.read_text()
    (slurm / "squeue").write_text('#!/bin/sh\n[ "$3" = --jobs=7_0 ] && echo RUNNING\n')
    assert cli.main(sweep) == 0
    err = capsys.readouterr().err
    assert f"{found[0]} is in the queue: job 7_0 is RUNNING\nsubmitted as job 7: 2 runs" in err
    assert folders(err) == found[1:]
    assert "#SBATCH --array=1,2\n" in script.read_text()
    assert "  0) overrides=(seed=1) ;;\n  1) overrides=(seed=2) ;;\n  2) overrides=(seed=3) ;;\n" in script.read_text()


def test_a_finished_run_is_not_submitted(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *TASK]) == 0
    [folder] = folders(capsys.readouterr().err)
    from encdec_train.compose import compose
    from encdec_train.run import find_folder

    found, _ = find_folder(compose("submit", TASK))
    assert found.path == folder
    finish(folder, found.identity)
    assert cli.main(["submit", *TASK]) == 0
    assert capsys.readouterr() == ("", f"{folder} is finished\nnothing is left to submit\n")


def test_a_folder_of_another_run_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(Path("outputs/x"), {"seed": 9})
    assert cli.main(["submit", *TASK, "run.name=x"]) == 2
    assert "run.name: x is another run; nothing was changed." in capsys.readouterr().err


@pytest.mark.parametrize("flag", [[], ["--multirun"]])
def test_cfg_prints_and_submits_nothing(flag: list[str], slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *flag, "--cfg", *TASK]) == 0
    assert "\ncluster:\n" in capsys.readouterr().out
    assert not (slurm / "told").exists()


def test_a_machine_without_slurm(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert cli.main(["submit", *TASK, "run.name=x"]) == 2
    assert capsys.readouterr().err == (
        "encdec submit: sbatch: expected a machine with SLURM; there is no such command here. Type this on a login "
        "node; submit.dry_run=true prints the script anywhere.\n"
    )
    assert not Path("outputs").exists()


def test_runs_in_tasks_of_srun_are_no_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SLURM_JOB_ID", "1"), ("SLURM_STEP_NUM_TASKS", "2")):
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "--multirun", "seed=1,2"]) == 2
    assert capsys.readouterr().err == (
        "encdec train: --multirun: expected one process, got '2 tasks of srun'; each would make all runs. Leave srun "
        "out, or type `encdec submit --multirun`.\n"
    )
