"""The registry: which metrics there are, what a list of names stands for, and what naming them costs."""

import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from encdec_train.errors import ConfigError
from encdec_train.metrics import GROUPS, METRICS, expand

KEYS = [
    "sacrebleu", "sacrebleu_uncased", "sacrebleu_intl", "sacrebleu_none", "sacrebleu_zh", "sacrebleu_ja", "bleu_wmt14",
    "bleu_nltk", "chrf", "chrfpp", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "sari", "sari_legacy", "sari_t2t",
    "exact_match", "exact_match_normalized", "length_ratio", "novel_bigrams", "repetition", "empty",
]  # fmt: skip
INSTALLED = [key for key in KEYS if all(find_spec(module) for module in METRICS[key].needs_modules)]
PREDICTIONS = ["the cat sat on the mat .", "", "a dog"]
REFERENCES = [["the cat is on the mat ."], ["one two", "two"], ["A dog", "a dog", "dogs"]]
SOURCES = ["the cat was sitting on the mat .", "one and two", "a big dog"]


def test_the_keys_are_those_of_the_contract():
    assert list(METRICS) == KEYS
    assert [metric.name for metric in METRICS.values()] == KEYS


def test_rouge_stands_for_its_four_variants():
    assert expand(["rouge"]) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_each_key_comes_once_in_order_of_first_mention():
    assert expand(["sari", "rougeL", "rouge", "sari"]) == ["sari", "rougeL", "rouge1", "rouge2", "rougeLsum"]


def test_no_names_are_no_metrics():
    assert expand([]) == []


@pytest.mark.parametrize(
    ("name", "nearest"), [("bleu", "sacrebleu"), ("rougelsum", "rougeLsum"), ("SARI", "sari"), ("ROUGE", "rouge")]
)
def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"task.metrics: expected names out of sacrebleu, .*got '{name}'") as caught:
        expand(["chrf", name])
    assert str(caught.value).endswith(f"The nearest is {nearest}.")


def test_nothing_is_proposed_for_a_name_like_no_other():
    with pytest.raises(ConfigError, match="got 'xyzzy'\\.$"):
        expand(["xyzzy"])


def test_all_unknown_names_are_reported_at_once():
    with pytest.raises(ConfigError, match="task.metrics") as caught:
        expand(["blue", "sari", "rogue"])
    assert len(caught.value.faults) == 2


def test_sari_and_novelty_need_sources():
    assert [key for key in KEYS if METRICS[key].needs_source] == ["sari", "sari_legacy", "sari_t2t", "novel_bigrams"]


def test_only_japanese_needs_a_package_of_its_own(monkeypatch):
    monkeypatch.setattr("encdec_train.metrics.find_spec", lambda name: None)
    assert expand([key for key in KEYS if key != "sacrebleu_ja"])
    expected = "task.metrics: expected metrics that are installed, got 'sacrebleu_ja'; it needs MeCab and ipadic. "
    with pytest.raises(ConfigError, match=re.escape(expected + "pip install 'sacrebleu[ja]'.")):
        expand(["chrf", "sacrebleu_ja"])


@pytest.mark.parametrize("key", INSTALLED)
def test_statistics_are_a_row_an_example_and_do_not_depend_on_the_other_rows(key):
    metric = METRICS[key]
    whole = metric.statistics(PREDICTIONS, REFERENCES, SOURCES)
    alone = [metric.statistics(*([column[i]] for column in (PREDICTIONS, REFERENCES, SOURCES))) for i in range(3)]
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(whole, np.concatenate(alone))


@pytest.mark.parametrize("key", INSTALLED)
def test_signatures_tell_how_many_references_there_are(key):
    signature = METRICS[key].signature
    assert "|nrefs:var|" in signature(REFERENCES)
    assert "|nrefs:2|" in signature([["a", "b"], ["c", "d"]])
    assert "|nrefs:1|" in signature([["a"], ["c"]])


def test_signatures_differ():
    assert len({METRICS[key].signature(REFERENCES) for key in INSTALLED}) == len(INSTALLED)


def test_groups_hold_known_keys():
    assert all(set(keys) <= set(METRICS) for keys in GROUPS.values())


def test_naming_metrics_loads_no_scorer():
    heavy = "{'sacrebleu', 'rouge_score', 'nltk', 'evaluate', 'datasets', 'torch'}"
    code = f"import sys; from encdec_train.metrics import expand; expand(['rouge']); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
