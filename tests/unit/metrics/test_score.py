import time

import numpy as np
import pytest

from encdec_train.errors import ConfigError, DataError
from encdec_train.metrics import METRICS
from encdec_train.metrics.score import _resample, describe, score

PREDICTIONS = ["the cat sat on the mat .", "", "a dog ran", "one two three four five"]
REFERENCES = [["the cat is on the mat ."], ["x y", "y"], ["A dog ran", "a dog ran"], ["one two three five four"]]
SOURCES = ["the cat was sitting on the mat .", "x and y", "a big dog ran", "one two three four five six"]


def test_every_metric_gives_value_signature_and_interval():
    names = [name for name in METRICS if name != "sacrebleu_ja"]  # which needs a package of its own
    scores = score(PREDICTIONS, REFERENCES, SOURCES, names, num_resamples=50)
    assert list(scores) == names
    for name, found in scores.items():
        metric = METRICS[name]
        table = metric.statistics(PREDICTIONS, REFERENCES, SOURCES)
        assert list(found) == ["value", "signature", "ci95"]
        assert found["value"] == metric.value(table.sum(axis=0))
        assert found["signature"] == metric.signature(REFERENCES)
        assert 0 <= found["ci95"][0] <= found["ci95"][1]
        assert all(type(number) is float for number in (found["value"], *found["ci95"]))


def test_groups_are_expanded():
    assert list(score(["a"], [["a"]], None, ["rouge"], num_resamples=1)) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_no_metrics_give_no_scores():
    assert score(["a"], [["a"]], None, []) == {}


PERFECT_100 = [
    "sacrebleu", "sacrebleu_intl", "sacrebleu_none", "sacrebleu_zh", "bleu_wmt14", "bleu_nltk", "chrf", "chrfpp",
    "rouge", "sari_t2t", "exact_match", "exact_match_normalized", "length_ratio",
]  # fmt: skip


def test_perfect_predictions_score_100_without_doubt():
    texts = ["one two three four", "five six seven eight nine"]
    scores = score(texts, [[text] for text in texts], texts, PERFECT_100)
    for found in scores.values():
        assert [found["value"], *found["ci95"]] == pytest.approx([100, 100, 100])
    assert score(texts, [[text] for text in texts], None, ["ter"])["ter"]["value"] == 0


def test_one_example_has_an_interval_without_width():
    found = score(["a b c d e"], [["a b c d f"]], None, ["sacrebleu"])["sacrebleu"]
    assert found["ci95"] == [found["value"], found["value"]]


def test_the_interval_depends_on_the_seed_alone():
    predictions, references = ["a" * i for i in range(1, 41)], [["a" * (i * 7 % 41)] for i in range(1, 41)]
    first, again = (score(predictions, references, None, ["chrf"], seed=3) for _ in range(2))
    other = score(predictions, references, None, ["chrf"], seed=4)
    assert first == again
    assert first["chrf"]["ci95"] != other["chrf"]["ci95"]
    assert first["chrf"]["value"] == other["chrf"]["value"]


def test_the_interval_of_a_metric_does_not_depend_on_the_others():
    alone = score(PREDICTIONS, REFERENCES, SOURCES, ["sari"])
    together = score(PREDICTIONS, REFERENCES, SOURCES, ["rouge", "sari", "sacrebleu"])
    assert alone["sari"]["ci95"] == pytest.approx(together["sari"]["ci95"], abs=1e-9)


def test_the_interval_of_a_share_is_that_of_the_binomial():
    rows = ["yes"] * 300 + ["no"] * 700
    found = score(rows, [["yes"]] * 1000, None, ["exact_match"], num_resamples=4000)["exact_match"]
    half = 100 * 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert found["value"] == 30
    assert found["ci95"] == pytest.approx([30 - half, 30 + half], abs=0.3)


def test_resamples_draw_as_many_examples_as_there_are():
    sums = _resample(np.column_stack([np.ones(7), np.eye(7)]), seed=1, num_resamples=2000)
    assert (sums[:, 0] == 7).all()
    assert sums[:, 1:].mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)  # each example once on average
    assert sums[:, 1:].var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.15)  # as independent draws have it


def test_chunks_make_no_gap(monkeypatch):
    table = np.random.default_rng(0).integers(0, 9, (10, 3)).astype(float)
    monkeypatch.setattr("encdec_train.metrics.score._CHUNK_DRAWS", 30)
    sums = _resample(table, seed=0, num_resamples=10)
    assert sums.shape == (10, 3)
    monkeypatch.setattr("encdec_train.metrics.score._CHUNK_DRAWS", 1)
    assert _resample(table, seed=0, num_resamples=10).shape == (10, 3)


def test_a_thousand_resamples_of_ten_thousand_pairs_take_seconds():
    words = np.random.default_rng(0).integers(0, 50, (10_000, 8)).astype(str)
    texts = [" ".join(row) for row in words]
    references = [[" ".join(row[::-1])] for row in words]
    start = time.monotonic()
    score(texts, references, None, ["sacrebleu", "exact_match"], num_resamples=1000)
    assert time.monotonic() - start < 20  # 2 to 3 s with one core to itself; the rest is for a busy machine


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], [], None), "predictions: expected 1 or more, got 0; there is nothing to score"),
        ((["a", "b"], [["a"]], None), "references: expected 2, one a prediction, got 1.*Join predictions"),
        ((["a"], [["a"]], ["x", "y"]), "sources: expected 1, one a prediction, got 2"),
        ((["a", "b"], [["a"], "b"], None), "references:1: expected a list of one text or more, got 'b'"),
        ((["a"], [[]], None), r"references:0: expected a list of one text or more, got \[\]"),
        ((["a"], [["a", None]], None), r"references:0: expected a list of one text or more, got \['a', None\]"),
        ((["a", None], [["a"], ["b"]], None), "predictions:1: expected text, got 'None'"),
        ((["a"], [["a"]], [3]), "sources:0: expected text, got '3'"),
    ],
)
@pytest.mark.parametrize("verb", ["score", "describe"])
def test_columns_that_do_not_fit_are_refused(verb, columns, message):
    with pytest.raises(DataError, match=message):
        score(*columns, ["chrf"]) if verb == "score" else describe(*columns)


def test_a_metric_without_its_sources_is_refused():
    with pytest.raises(DataError, match="sources: expected one an example, got 'none'; sari, sari_t2t compares"):
        score(["a"], [["a"]], None, ["chrf", "sari", "sari_t2t"])


def test_a_metric_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr("encdec_train.metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="got 'sacrebleu_ja'; it needs MeCab"):
        score(["a"], [["a"]], None, ["sacrebleu_ja"])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="task.metrics: .*got 'blue'"):
        score(["a"], [["a"]], None, ["blue"])


def test_no_resamples_are_refused():
    with pytest.raises(ConfigError, match="num_resamples: expected 1 or more, got 0"):
        score(["a"], [["a"]], None, ["chrf"], num_resamples=0)


def test_describe_counts_lengths_in_words():
    facts = describe(["a b", "", " \n", "c d e f"], [["a b c"], ["a", "b c d"], ["x"], ["y y"]], ["s", "t u", "v", "w"])
    assert facts == {"empty_hypotheses": 2, "mean_length": 1.5, "length_ratio": 6 / 8, "source_length_ratio": 6 / 5}


def test_describe_without_sources_or_words():
    facts = describe(["a"], [[""]], None)
    assert facts == {"empty_hypotheses": 0, "mean_length": 1, "length_ratio": 0}
    assert describe(["a"], [["b"]], [""])["source_length_ratio"] == 0
