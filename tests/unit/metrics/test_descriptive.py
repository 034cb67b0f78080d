import pytest

from encdec_train.metrics import METRICS


def share(key, predictions, references=None, sources=None):
    metric = METRICS[key]
    table = metric.statistics(predictions, references or [["r"]] * len(predictions), sources)
    return metric.value(table.sum(axis=0))


def test_length_is_words_over_the_mean_length_of_an_examples_references():
    # 3 words; 2 and the mean of 1 and 3 are wanted
    assert share("length_ratio", ["a b", "c"], [["x y"], ["x", "x y z"]]) == 75


def test_outputs_may_be_longer_than_references():
    assert share("length_ratio", ["a b c"], [["x"]]) == 300


def test_novel_bigrams_are_those_that_the_source_does_not_have():
    # `the dog` and `dog .` of 4 are new, `. the` and `the cat` are not
    assert share("novel_bigrams", ["The dog. The cat"], None, ["a cat. the cat sat"]) == 50


def test_novel_bigrams_count_as_often_as_they_occur():
    # a b, b a, a b: `a b` is new, `b a` is not
    assert share("novel_bigrams", ["a b a b"], None, ["b a"]) == pytest.approx(200 / 3)


def test_a_copy_has_nothing_new():
    assert share("novel_bigrams", ["A b, c d."], None, ["a b , c d ."]) == 0


def test_sums_are_over_outputs_so_that_long_ones_weigh_more():
    # 1 new of 1, and 0 of 3
    assert share("novel_bigrams", ["x y", "a b c d"], None, ["s", "a b c d"]) == 25


def test_a_4gram_repeats_where_it_stands_earlier_in_the_same_prediction():
    # 7 words, 4 of them 4-grams: a b c a, b c a b, c a b c, a b c a
    assert share("repetition", ["a b c a b c a"]) == 25
    assert share("repetition", ["a b c d", "a b c d"]) == 0


def test_a_loop_is_nearly_all_repetition():
    assert share("repetition", ["no " * 13]) == 90  # 10 of them, one is the first


def test_an_output_too_short_for_a_4gram_does_not_count():
    assert share("repetition", ["a b c", "", "x x x x x"]) == 50


def test_empty_outputs_are_counted():
    assert share("empty", ["a", "", " \n", "b"]) == 50


@pytest.mark.parametrize("key", ["length_ratio", "novel_bigrams", "repetition", "empty"])
def test_nothing_over_nothing_is_0_except_for_the_share_of_empty_outputs(key):
    assert share(key, ["", ""], [[""], [""]], ["", ""]) == (100 if key == "empty" else 0)


def test_signatures():
    found = {key: METRICS[key].signature([["a"]]) for key in ("length_ratio", "novel_bigrams", "repetition", "empty")}
    assert found["length_ratio"] == "length_ratio|nrefs:1|refs:mean|agg:corpus|tok:space|version:1"
    assert found["empty"] == "empty|nrefs:1|refs:unused|tok:space|version:1"
    form = "nrefs:1|refs:unused|n:{}|agg:corpus|case:lc|tok:13a|sacrebleu:"
    assert found["novel_bigrams"].startswith(f"novel_bigrams|{form.format(2)}")
    assert found["repetition"].startswith(f"repetition|{form.format(4)}")
