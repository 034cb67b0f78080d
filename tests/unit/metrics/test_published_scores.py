"""The published figures, through the functions of `make published-scores`; all of newstest2021 is for that command."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import published_scores
from benchmarks.published_scores import Figure

ROOT = Path(__file__).parents[3]


def outside(figures):
    return [figure for figure in figures if not figure.met]


@pytest.mark.slow
def test_newstest2021(data_folder):
    figures = list(published_scores.newstest2021(data_folder, ["Facebook-AI", "ICL"]))
    assert len(figures) == 16
    assert outside(figures) == []


@pytest.mark.slow
def test_newstest2017(data_folder):
    figures = list(published_scores.newstest2017(data_folder, ["newstest2017.FBK.4870.en-de"]))
    assert [figure.tolerance for figure in figures] == [0.005, 1e-9, 5e-5]
    assert outside(figures) == []


@pytest.mark.parametrize(("section", "count"), [("sacrebleu_cases", 51), ("turkcorpus", 29), ("rouge_cases", 17)])
def test_cases(section, count, data_folder):
    figures = list(getattr(published_scores, section)(data_folder))
    assert len(figures) == count
    assert outside(figures) == []


@pytest.mark.slow
def test_s6_s7_rouge_of_the_summaries(data_folder):
    figures = list(published_scores.rouge_corpus(data_folder))
    assert len(figures) == 11
    assert outside(figures) == []
    perl = [figure.difference for figure in figures if figure.tolerance == 0.3]
    assert len(perl) == 3
    assert max(perl) < -0.05  # all below the Perl script


def test_a_figure_is_met_within_its_tolerance_only():
    assert Figure("a", 1.0, 1.5, 0.5).met
    assert not Figure("a", 1.0, 1.51, 0.5).met
    assert not Figure("a", 1.0, 0.49, 0.5).met
    assert not Figure("a", 1.0, float("nan"), 0.5).met


def test_one_figure_outside_fails_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ENCDEC_DATA", str(tmp_path))
    monkeypatch.setattr(published_scores, "rouge_speed", lambda data: True)
    monkeypatch.setattr(published_scores, "bootstrap_speed", lambda data: None)
    for ours, status in ((2.0, 0), (3.0, 1)):
        sections = {"set": lambda data, ours=ours: iter([Figure("one", 2.0, ours, 0.5), Figure("two", 1.0, 1.0, 0.5)])}
        monkeypatch.setattr(published_scores, "SECTIONS", sections)
        assert published_scores.main() == status
        assert capsys.readouterr().out.count("OUTSIDE") == status


def test_without_data_it_says_so():
    command = [sys.executable, "-m", "benchmarks.published_scores"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ENCDEC_DATA: expected the folder with the published figures\n"
