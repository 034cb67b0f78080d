"""What W&B knows of a whole run, as the command line makes it, and what it must never know."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server
from results import load, read

KEY = "c4a1e" * 8
ONLINE = ("tracking=wandb", "run.name=run", "trainer.log_every_steps=5")


@pytest.fixture
def served(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set this machine up for a server on the loopback interface."""
    import wandb

    for name in ("WANDB_ERROR_REPORTING", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with wandb_server.serve() as (state, _):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        yield state
        wandb.teardown()


def test_a_run_is_there_whole_and_its_key_is_nowhere(
    served: Any, here: Path, train: Callable[..., Any], shared: Any
) -> None:
    done = train(*shared.SPLITS, *ONLINE)
    folder = here / "out" / "run"
    ((_, run),) = served.runs.items()
    assert run.exit_codes == [0]
    assert (run.fields["groupName"], run.fields["tags"]) == ("files-bert2bert", ["files", "bert2bert"])
    assert run.config["optim"]["lr"] == 0.01
    assert run.config["seed"] == load(folder / "manifest.json")["identity"]["seed"]

    curve = {row["step"]: row["train/loss"] for row in read(folder / "metrics.jsonl") if "train/loss" in row}
    rows = [row for row in run.history if "train/loss" in row]
    assert {row["_step"]: row["train/loss"] for row in rows} == pytest.approx(curve)
    assert list(curve) == [5, 10, 15, 20, 25, 30]

    tables = {row["_step"]: row["validation"]["path"] for row in run.history if "validation" in row}
    shown = [json.loads(served.uploads[f"/put/{run.fields['name']}/{path}"]) for path in tables.values()]
    sources = [line["source"] for line in read("validation.jsonl")]
    assert list(tables) == [15, 30]
    assert [table["columns"] for table in shown] == [["source", "prediction", "reference"]] * 2
    assert [sorted(row[0] for row in table["data"]) for table in shown] == [sorted(sources)] * 2

    scores = load(folder / "metrics.json")
    for name, found in scores["test"].items():
        assert run.summary[f"test/{name}"] == found["value"]
        assert [run.summary[f"test/{name}/ci95_{end}"] for end in ("low", "high")] == found["ci95"]
    (artifact,) = [one for one in served.artifacts if one["artifactTypeName"] == "model"]
    assert json.loads(artifact["metadata"])["test"] == scores["test"]
    kept = {path.relative_to(folder / "export").as_posix() for path in (folder / "export").rglob("*") if path.is_file()}
    sent = {path.removeprefix("/put/artifact/") for path in served.uploads if path.startswith("/put/artifact/")}
    assert kept == {name for name in sent if name != "validation.table.json"}

    assert KEY not in done.out + done.err
    assert [path for path in here.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    assert [path for path, content in served.uploads.items() if KEY.encode() in content] == []
    assert KEY not in json.dumps([run.fields, run.lines, served.artifacts])

    asked = len(served.queries)
    assert "is finished; nothing to do" in train(*shared.SPLITS, *ONLINE).err
    assert len(served.queries) == asked


def test_a_run_that_fails_is_failed(
    served: Any, encdec: Callable[..., Any], shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("encdec_train.run.export", fails)
    with pytest.raises(OSError, match="no space left"):
        encdec("train", *shared.BASE, *shared.SPLITS, *ONLINE)
    ((_, run),) = served.runs.items()
    assert (run.exit_codes, run.preempting) == ([1], False)
