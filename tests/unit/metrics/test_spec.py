import numpy as np
import pytest

from encdec_train.metrics.spec import mean_statistics, mean_value, num_references


def test_the_number_of_references_is_a_number_where_examples_agree():
    assert num_references([["a"], ["b"]]) == "1"
    assert num_references([["a", "b", "c"]]) == "3"


def test_the_number_of_references_varies_otherwise():
    assert num_references([["a"], ["b", "c"]]) == "var"


def test_a_mean_is_the_sum_of_scores_over_the_sum_of_counts():
    table = mean_statistics([1.0, 0.0, 0.5, 0.5])
    np.testing.assert_array_equal(table, [[1, 1], [0, 1], [0.5, 1], [0.5, 1]])
    assert mean_value(table.sum(axis=0)) == 50
    assert mean_value(table[2:].sum(axis=0)) == pytest.approx(50)
