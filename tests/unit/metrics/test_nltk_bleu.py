import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encdec_train.metrics.nltk_bleu import BLEU_NLTK


def corpus(predictions, references):
    return BLEU_NLTK.value(BLEU_NLTK.statistics(predictions, references, None).sum(axis=0))


def nltk(predictions, references):
    bleu_score = pytest.importorskip("nltk.translate.bleu_score")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where an order has no match
        split = [[text.split() for text in texts] for texts in references]
        return 100 * bleu_score.corpus_bleu(split, [text.split() for text in predictions])


def test_by_hand():
    # Right of predicted, n = 1..4: 5 of 7 (`the` counts twice of three), 3 of 6, 2 of 5, 1 of 4; 7 words, 6 wanted.
    found = corpus(["the cat sat on the the mat"], [["the cat sat on a the"]])
    assert found == pytest.approx(100 * (5 / 7 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25)


def test_short_outputs_are_punished():
    # 6 words of 7 wanted: exp(1 - 7/6); n = 1..4: 6 of 6, 5 of 5, 4 of 4, 3 of 3
    assert corpus(["a b c d e f"], [["a b c d e f g"]]) == pytest.approx(100 * math.exp(-1 / 6))


def test_a_prediction_shorter_than_the_order_counts_as_one_wrong_ngram():
    # n = 1..4: 1 + 5 of 6, 4 of 4 + 1, 3 of 3 + 1, 2 of 2 + 1
    assert corpus(["a", "a b c d e"], [["a"], ["a b c d e"]]) == pytest.approx(100 * 0.4**0.25)


def test_the_length_of_the_nearest_reference_counts_and_of_two_as_near_the_shorter():
    references = [["a b c d e f g h", "a b c d e f", "a b c d"]]
    assert corpus(["a b c d e"], references) == pytest.approx(100)
    assert corpus(["a b c d e"], [references[0][:2]]) == pytest.approx(100 * math.exp(-1 / 5))


def test_an_ngram_may_occur_as_often_as_in_the_reference_that_has_most():
    # `a` stands twice in one reference and once in the other. n = 1..4: 5 of 6, 4 of 5, 3 of 4, 2 of 3.
    found = corpus(["a a a b c d"], [["a a b c d", "b a b c d e"]])
    assert found == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


@pytest.mark.parametrize("prediction", ["", "x y", "a b x y", "A B C D"])
def test_without_a_match_of_every_order_it_is_0(prediction):
    assert corpus([prediction], [["a b c d"]]) == 0


def test_an_empty_prediction_is_not_left_out():
    one = corpus(["a b c d e"], [["a b c d e"]])
    both = corpus(["a b c d e", ""], [["a b c d e"], ["a b c d e"]])
    assert one == pytest.approx(100)
    # n = 1..4: 5, 4, 3, 2 right of one more; 5 words of 10 wanted
    assert both == pytest.approx(100 * math.exp(-1) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


TEXTS = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(rows=st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_it_is_nltks_wherever_every_order_has_a_match(rows):
    predictions, references = zip(*rows, strict=True)
    found = corpus(predictions, references)
    if found:
        assert found == pytest.approx(nltk(predictions, references), abs=1e-9)
    else:
        right = BLEU_NLTK.statistics(predictions, references, None).sum(axis=0)[:8:2]
        assert not right.all()


def test_it_is_nltks_on_real_outputs(read_rows):
    rows = read_rows("turkcorpus/system_outputs_legacy.jsonl.gz")
    columns = [row["outputs"]["Dress"] for row in rows], [row["references"] for row in rows]
    assert corpus(*columns) == pytest.approx(nltk(*columns), abs=1e-9)


def test_the_signature():
    expected = "bleu_nltk|nrefs:2|case:mixed|tok:space|smooth:none|short:1|version:1"
    assert BLEU_NLTK.signature([["a", "b"]]) == expected
