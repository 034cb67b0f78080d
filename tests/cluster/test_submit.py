"""The script that a job is, and an array of jobs that is submitted again."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import OVER, SMALL
from cluster.lab import wait_for
from results import load

from encdec_train.cli import main
from encdec_train.cluster.submit import SCRIPT

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def body(script: str) -> list[str]:
    """Return what a script does, without comments and blank lines."""
    return [line for line in script.splitlines() if line and not line.startswith("#")]


def options(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.partition("=")[::2] for line in lines)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words]) == 0
    return capsys.readouterr().out


EVERYTHING = (
    "task=files", "task.train_file=train.jsonl", 'task.test_file="a b.jsonl"', "run.name=x", "cluster.nodes=2-4",
    "cluster.gpus_per_node=4", "cluster.partition=gpu", "cluster.account=lab", "cluster.qos=high",
    'cluster.constraint="a100|h100"', "cluster.time=2-00:00:00", "cluster.cpus_per_task=8", "cluster.memory=200G",
    "cluster.stop_seconds=600", "cluster.setup=['module load python','source .venv/bin/activate']",
    'cluster.container="apptainer exec --nv image.sif"', "cluster.options=['--mail-type=FAIL']", "submit.dry_run=true",
    "model.encoder=bert-base-uncased",
)  # fmt: skip


def test_the_script_is_the_golden_one(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n')
    (tmp_path / "a b.jsonl").write_text('{"source": "a", "target": "c"}\n')
    script = printed(capsys, *EVERYTHING)
    assert script == (GOLDEN / "job.sbatch").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "a b.jsonl"}


@pytest.mark.parametrize(("name", "sweep"), [("train", ()), ("array", ("--multirun", "seed=0,1,2"))])
def test_the_templates_are_what_submit_writes(
    name: str, sweep: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n')
    words = ["task=files", "task.train_file=train.jsonl", "model.encoder=bert-base-uncased"]
    ours = printed(capsys, *words, *sweep, 'cluster.setup=[":"]', "submit.dry_run=true")
    theirs = (ROOT / "slurm" / f"{name}.sbatch").read_text(encoding="utf-8")
    expected = [line.replace(" ".join(words), '"$@"') for line in body(ours) if line != ":"]
    assert body(theirs) == expected
    own = {"job-name", "output"}  # which only a run has
    assert {key: value for key, value in options(theirs).items() if key not in own} == {
        key: re.sub("^0,1,2$", "0-2", value) for key, value in options(ours).items() if key not in own
    }


@pytest.mark.parametrize("name", ["train", "array"])
def test_the_templates_are_good_scripts(name: str, lab: Any) -> None:
    script = ROOT / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    size = ["--mem=1000", "--cpus-per-task=1"]
    done = subprocess.run(["sbatch", "--test-only", *size, str(script)], env=lab.environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_slurm_refuses_is_said_before_anything_is_written(place: Any) -> None:
    _, err = place.encdec("submit", *SMALL, "run.name=refused", "cluster.partition=none", status=2)
    assert "encdec submit: cluster: expected a job that SLURM accepts; sbatch says: error: invalid partition" in err
    assert not place.run("refused").exists()


def test_an_array_of_six_is_completed_by_the_same_command(place: Any) -> None:
    lab = place.lab
    sweep = ["submit", "--multirun", *SMALL, "model=bert2bert,bertshare", "seed=1,2,3", "trainer.max_steps=4",
             "run.output_dir=sweep", f"cluster.setup=['PATH={place.path}/warm:$PATH']"]  # fmt: skip
    stall = place.path / "stall-1"
    stall.write_text("start")
    job, err = place.encdec(*sweep)
    assert f"submitted as job {job}: 6 runs" in err
    folders = [place.path / line.strip() for line in err.splitlines() if line.startswith("  sweep/")]
    assert len(set(folders)) == 6

    assert wait_for((place.path / "stalled-1").exists, 120)
    stall.unlink()
    lab.command("scancel", f"--signal={signal.SIGKILL.name[3:]}", f"{job}_1")
    ends = [lab.wait(f"{job}_{number}", *OVER, seconds=300)["JobState"] for number in range(6)]
    assert ends == ["COMPLETED", "CANCELLED", *["COMPLETED"] * 4]
    assert [load(folder / "manifest.json")["finished"] for folder in folders if folder != folders[1]] == [True] * 5
    before = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in folders if folder != folders[1]}

    again, err = place.encdec(*sweep)
    assert f"submitted as job {again}: 1 run, sweep/slurm/sweep-" in err
    [script] = place.path.glob(f"sweep/slurm/sweep-*/{SCRIPT}")
    assert options(script.read_text())["array"] == "1"
    _, err = place.encdec(*sweep)
    assert re.search(rf"{folders[1].name} is in the queue: job {again}_1 is \w+\n", err)
    assert lab.wait(f"{again}_1", *OVER)["JobState"] == "COMPLETED"
    assert before == {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in before}

    out, err = place.encdec(*sweep)
    assert out == ""
    assert "nothing is left to submit" in err
    rows = [line.split() for line in err.splitlines() if line.startswith(("files-bert2bert ", "files-bertshare "))]
    assert {(row[0], row[1]) for row in rows} == {("files-bert2bert", "3"), ("files-bertshare", "3")}
    assert wait_for(lambda: lab.command("squeue", "-h") == "", 20)
