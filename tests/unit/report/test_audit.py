"""The audit in a run's folder: written once, said once, drawn."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from encdec_train.data import audit as data_audit
from encdec_train.data.rows import Rows
from encdec_train.report.audit import picture, section, warning_lines, write_audit
from encdec_train.report.svg import histogram

SVG = "{http://www.w3.org/2000/svg}"


def side(*counts: int) -> dict[str, Any]:
    return {"cut": 1, "median": 4.0, "longest": 9, "histogram": {"width": 3, "counts": list(counts)}}


AUDIT: dict[str, Any] = {
    "splits": {
        "train": {"pairs": 8, "source": side(0, 5, 3), "target": side(8), "shares": {"cut sources": 0.125}},
        "test": {"pairs": 2, "source": side(1, 1), "target": side(2), "shares": {"cut sources": 0.5, "empty texts": 0}},
    },
    "warnings": [{"split": "train", "name": "cut sources", "share": 0.125, "above": 0.1}],
}


def test_the_picture_has_a_bar_for_each_bin_that_is_not_empty() -> None:
    root = ET.fromstring(picture(AUDIT))
    charts = root.findall(f"{SVG}svg")
    assert [len(chart.findall(f"{SVG}rect")) for chart in charts] == [2, 1, 2, 1]
    assert [(chart.get("x"), chart.get("y")) for chart in charts] == [
        ("0", "26"),
        ("455", "26"),
        ("0", "272"),
        ("455", "272"),
    ]
    heights = [float(bar.get("height") or 0) for bar in charts[0].findall(f"{SVG}rect")]
    assert heights[1] / heights[0] == pytest.approx(3 / 5, abs=0.01)
    assert root.findall(f"{SVG}text")[0].text == "train: source lengths, 8 pairs, 1 cut"


def test_a_bar_says_its_bin() -> None:
    chart = histogram([0, 2], 4, "tokens")
    assert "<title>4 to 7: 2</title>" in chart
    assert "0 to 3" not in chart
    assert histogram([0, 0], 4, "tokens") == histogram([], 1, "tokens") == ""


def test_the_section_has_shares_of_each_split_and_the_warnings() -> None:
    html = section(AUDIT)
    assert "<li>train: 12.5% cut sources (said above 10%)</li>" in html
    assert "<tr><td>cut sources</td><td class=n>12.50%</td><td class=n>50.00%</td></tr>" in html
    assert "<tr><td>empty texts</td><td class=n></td><td class=n>0.00%</td></tr>" in html
    assert html.count("<figure>") == 2  # of the training split
    assert section({}) == ""


def test_an_audit_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_audit, "audit", lambda *_: AUDIT)
    codec: Any = None
    for _ in range(2):
        write_audit(tmp_path, {}, codec)
    assert capsys.readouterr().err == "warning: train: 12.5% cut sources (said above 10%)\n"
    assert json.loads((tmp_path / "audit.json").read_text()) == AUDIT
    assert (tmp_path / "audit.svg").read_text() == picture(AUDIT)
    assert warning_lines({}) == []


def test_records_that_were_set_aside_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_audit, "audit", lambda *_: AUDIT)
    codec: Any = None
    one = {"file": "é.jsonl", "line": 3, "reason": "line 3: expected a text."}
    splits: Any = {"train": SimpleNamespace(rows=Rows([], [], [], [], (one,))),
                   "test": SimpleNamespace(rows=Rows([], [], [], []))}  # fmt: skip
    write_audit(tmp_path, splits, codec)
    text = (tmp_path / "set_aside.jsonl").read_text(encoding="utf-8")
    assert text == '{"split": "train", "file": "é.jsonl", "line": 3, "reason": "line 3: expected a text."}\n'
