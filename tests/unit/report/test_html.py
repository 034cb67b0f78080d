import json
import re
from html.parser import HTMLParser

import pytest

from encdec_train.errors import DataError
from encdec_train.report.html import write_report

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects text and elements, and refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise ValueError(f"</{tag}> at {self.getpos()}")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_numbers_of_the_run_are_on_the_page(page):
    assert page.text.startswith("demo-bert2bert-3fa9c1 demo-bert2bert-3fa9c1 started 2026-01-02 03:04:05 UTC")
    for text in (
        "commit 0123456789 with local changes",
        "sacrebleu on test 31.23 30.40 to 32.03",
        "best validation loss 2.125 at step 100",
        "last training loss 2.000 first 3.980",
        "optimizer steps 100",
        "test score 95% interval copy random 0–100 sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
        " 31.23 30.40 to 32.03 12.75",
        "exact_match nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0 4.20 3.10 to 5.30",
        "test_unseen score 95% interval 0–100",
        "training, each step training, smoothed validation, from random weights validation",
        "exact_match on validation",
        "Learning rate",
        "seed: 7 task: name: demo",
        "parameters.distinct 1,234,567",
        "hardware.gpus A, B",
        "git.dirty true",
    ):
        assert text in page.text


def test_ten_of_twelve_predictions_are_shown_with_their_differences(page, run_folder):
    assert page.text.count("Prediction same") == 10
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "<dd>same 0 <ins>ours</ins></dd><dt>Reference</dt><dd>same 0 <del>theirs</del></dd>" in html


def test_validation_points_carry_their_values(page):
    assert "validation, optimizer step 100: 2.125" in page.text
    assert "exact_match on validation, optimizer step 50: 41" in page.text


def test_nothing_is_loaded_from_elsewhere(page, run_folder):
    assert page.open == []
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "base", "a", "form"}
    assert not [
        name for _, attrs in page.elements for name in attrs if name in {"src", "href", "style"} or name[:2] == "on"
    ]
    assert not re.search(r"url\(|@import|https?:", html)
    policy = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert [path.name for path in run_folder.iterdir() if path.name.startswith(".")] == []


ATTACK = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_no_text_of_a_run_becomes_markup(run_folder):
    elements = {tag for tag, _ in Page(write_report(run_folder).read_text(encoding="utf-8")).elements}
    entry = {"value": 1.0, "signature": ATTACK, "ci95": [0.5, 1.5]}
    scores = {ATTACK: {ATTACK: entry}, "test": {"a": entry}, "baselines": {ATTACK: {"test": {"a": entry}}}}
    (run_folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    record = {"id": ATTACK, "source": ATTACK, "prediction": ATTACK, "references": [ATTACK, "b"]}
    (run_folder / "predictions" / "test.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    manifest = {ATTACK: ATTACK, "started_utc": ATTACK, "versions": {"torch": ATTACK}, "git": {"commit": ATTACK}}
    (run_folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run_folder / "config.yaml").write_text(ATTACK, encoding="utf-8")
    with (run_folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 100, f"validation/{ATTACK}": 1.0}) + "\n")
    run_folder = run_folder.rename(run_folder.with_name("<b>&amp;"))
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= elements
    assert page.text.startswith("<b>&amp; <b>&amp;")
    assert f"Source {ATTACK} Prediction {ATTACK}" in page.text


@pytest.mark.parametrize("kept", ["config.yaml", "manifest.json", "metrics.jsonl", "metrics.json", "predictions"])
def test_any_one_file_is_enough(run_folder, kept):
    for path in list(run_folder.iterdir()):
        if path.name != kept:
            path.rename(run_folder.parent / path.name)
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert page.open == []
    assert ("No test split has been scored yet." in page.text) == (kept != "metrics.json")
    assert ("Nothing has been logged yet." in page.text) == (kept != "metrics.jsonl")
    assert ("No test split has been decoded yet." in page.text) == (kept != "predictions")


def test_a_run_that_has_just_begun(run_folder):
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 4.5, "optim/lr": null}\n', encoding="utf-8")
    (run_folder / "baseline_random" / "metrics.jsonl").unlink()
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert "training, optimizer step 1: 4.5" in page.text
    assert "Learning rate" not in page.text


def test_keys_in_a_config_are_hidden(run_folder):
    (run_folder / "config.yaml").write_text("hub:\n  api_key: open-sesame\n", encoding="utf-8")
    assert "open-sesame" not in write_report(run_folder).read_text(encoding="utf-8")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a run folder"):
        write_report(tmp_path)
