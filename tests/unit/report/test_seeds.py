"""Means over seeds, with intervals from a table of Student's t, and runs that cannot be brought together."""

import json
from pathlib import Path
from typing import Any

import pytest

from encdec_train.errors import DataError
from encdec_train.report.seeds import interval, seeds


def make(folder: Path, seed: int, value: float, **changes: Any) -> str:
    """Write what `train` leaves of a finished run."""
    folder.mkdir()
    identity = {"task": {"name": "files"}, "model": {"name": "bert2bert"}, "seed": seed, "optim": {}, **changes}
    manifest = {"identity": identity, "finished": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    score = {"value": value, "signature": "s", "ci95": [value - 1, value + 1]}
    (folder / "metrics.json").write_text(json.dumps({"test": {"chrf": score}}))
    return str(folder)


def test_the_interval_is_students() -> None:
    # sample standard deviation 1, n = 3: 4.3027 / sqrt(3) to either side
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval([5.0]) is None
    low, high = interval([0.0, 1.0] * 50)
    assert high - low == pytest.approx(2 * 1.96 * 0.50252 / 10, abs=1e-4)


def test_runs_that_differ_in_their_seed_are_one_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(tmp_path / f"a{seed}", seed, 30.0 + seed) for seed in (1, 2, 3)]
    other = make(tmp_path / "b", 1, 40.0, optim={"lr": 1})
    found = seeds([*runs, other], "test")
    assert [(one["name"], one["runs"], one["seeds"]) for one in found["systems"]] == [
        ("files-bert2bert", ["a1", "a2", "a3"], [1, 2, 3]), ("files-bert2bert", ["b"], [1]),
    ]  # fmt: skip
    assert found["systems"][0]["metrics"] == {
        "chrf": {"mean": 32.0, "ci95": pytest.approx((29.5159, 34.4841), abs=1e-3)}
    }
    assert found["systems"][1]["metrics"] == {"chrf": {"mean": 40.0, "ci95": None}}
    assert capsys.readouterr().err.splitlines()[2:] == [
        "files-bert2bert      3  chrf    32.00  29.52 to 34.48",
        "b                    1  chrf    40.00  one seed",
    ]


def test_the_same_seed_twice_is_no_sample(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, 1, 30.0) for name in ("a", "b")]
    with pytest.raises(DataError, match="^runs: expected each seed of a system once, got 'a, b'."):
        seeds(runs, "test")


def test_a_run_without_scores_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path / "a", 1, 30.0)
    with pytest.raises(DataError, match="^runs: expected finished runs of train with scores of validation, got "):
        seeds([run], "validation")
