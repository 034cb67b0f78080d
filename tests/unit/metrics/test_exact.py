import pytest

from encdec_train.metrics import METRICS


def share(predictions, references, key="exact_match"):
    metric = METRICS[key]
    return metric.value(metric.statistics(predictions, references, None).sum(axis=0))


def test_equal_text_matches_white_space_at_the_ends_aside():
    assert share(["a b ", "\ta b\n"], [["a b"], [" a b"]]) == 100


@pytest.mark.parametrize("prediction", ["A b", "a  b", "a b .", ""])
def test_case_inner_space_and_punctuation_count(prediction):
    assert share([prediction], [["a b"]]) == 0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("A b", "a B"),
        ("STRASSE", "straße"),  # folded, not only lower case
        ("a \t b\n", "a b"),
        ("a\u00a0b", "a b"),  # a space that does not break
        ("r\u0065\u0301el", "r\u00e9el"),  # an accent of its own
        ("\ufb01nal \u00bd", "final 1\u20442"),  # a ligature and a fraction
        ("\u1e9e", "ss"),
        ("\u00df\u0301", "s\u015b"),  # folding leaves `ss` and an accent, which NFKC joins
    ],
)
def test_normalized_text_matches_though_the_raw_one_does_not(prediction, reference):
    assert share([prediction], [[reference]], "exact_match_normalized") == 100
    assert share([prediction], [[reference]]) == 0


@pytest.mark.parametrize("prediction", ["a b .", "a, b", "ab", "\u201ca b\u201d", ""])
def test_punctuation_and_words_count_in_the_normalized_form_too(prediction):
    assert share([prediction], [["a b"]], "exact_match_normalized") == 0


def test_any_reference_will_do():
    assert share(["b", "b", "b"], [["a", "b"], ["a", "c"], ["b"]]) == pytest.approx(200 / 3)
    assert share(["B", "b", "b"], [["a", "b"], ["a", "c"], ["b"]], "exact_match_normalized") == pytest.approx(200 / 3)


@pytest.mark.parametrize("key", ["exact_match", "exact_match_normalized"])
def test_an_empty_prediction_matches_an_empty_reference_only(key):
    assert share(["", ""], [["  "], ["a"]], key) == 50


def test_signatures():
    references = [["a"], ["b"]]
    expected = "exact_match|nrefs:1|refs:any|case:mixed|strip:yes|version:1"
    assert METRICS["exact_match"].signature(references) == expected
    expected = "exact_match_normalized|nrefs:1|refs:any|case:fold|unicode:nfkc|space:collapsed|version:1"
    assert METRICS["exact_match_normalized"].signature(references) == expected
