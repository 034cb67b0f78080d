import pytest

from encdec_train.metrics.exact import EXACT_MATCH


def share(predictions, references):
    return EXACT_MATCH.value(EXACT_MATCH.statistics(predictions, references, None).sum(axis=0))


def test_equal_text_matches_white_space_at_the_ends_aside():
    assert share(["a b ", "\ta b\n"], [["a b"], [" a b"]]) == 100


@pytest.mark.parametrize("prediction", ["A b", "a  b", "a b .", ""])
def test_case_inner_space_and_punctuation_count(prediction):
    assert share([prediction], [["a b"]]) == 0


def test_any_reference_will_do():
    assert share(["b", "b", "b"], [["a", "b"], ["a", "c"], ["b"]]) == pytest.approx(200 / 3)


def test_an_empty_prediction_matches_an_empty_reference_only():
    assert share(["", ""], [["  "], ["a"]]) == 50


def test_the_signature():
    expected = "exact_match|nrefs:1|refs:any|case:mixed|strip:yes|version:1"
    assert EXACT_MATCH.signature([["a"], ["b"]]) == expected
