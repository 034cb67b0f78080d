from encdec_train.metrics.words import count_ngrams, words_13a


def test_ngrams_are_counted_with_repetitions():
    assert count_ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}


def test_fewer_words_than_the_order_have_no_ngram():
    assert count_ngrams(["a", "b"], 3) == {}
    assert count_ngrams([], 1) == {}


def test_13a_splits_punctuation_off_but_not_inside_numbers():
    assert words_13a()("He's 3.5 m tall, isn't he?") == ["He's", "3.5", "m", "tall", ",", "isn't", "he", "?"]
