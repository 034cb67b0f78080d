import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.rouge_scorer import RougeScorer

from encdec_train.metrics import METRICS, expand, rouge

VARIANTS = expand(["rouge"])
ORACLE = RougeScorer(VARIANTS, use_stemmer=True)
NEWS = "The runners were running quickly.\nThey won the races, and 3 medals!\nTheir trainers cheered."
SHORT = "Runners won three races.\nThe trainer was cheering quickly for 3 running winners."


def scores(variant, predictions, references):
    return METRICS[variant].statistics(predictions, references, None)[:, 0].tolist()


def sentences(text):
    return re.sub(r" ([.!?]) ", r" \1\n", text)


def test_rouge1_by_hand():
    # cat, sat, mat of 3 predicted and 4 wanted words
    assert scores("rouge1", ["cat sat mat"], [["the cat sat mat"]]) == [pytest.approx(2 * 3 / 7)]


def test_rouge2_by_hand():
    # `the cat` of `the cat, cat ran` and `the cat, cat sat, sat down`
    assert scores("rouge2", ["the cat ran"], [["the cat sat down"]]) == [pytest.approx(2 * 1 / 5)]


def test_rougel_takes_the_text_for_one_sentence_and_rougelsum_a_line():
    prediction, reference = "c d\na b", "a b\nc d"
    assert scores("rougeL", [prediction], [[reference]]) == [0.5]
    assert scores("rougeLsum", [prediction], [[reference]]) == [1.0]


def test_words_are_stemmed():
    assert scores("rouge1", ["running"], [["runs"]]) == [1.0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prediction", ["", "\n", "...", "Ünö ß"])
def test_a_text_without_words_scores_as_in_rouge_score(variant, prediction):
    expected = ORACLE.score(NEWS, prediction)[variant].fmeasure
    assert scores(variant, [prediction], [[NEWS]]) == [expected]


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_several_references_the_best_counts(variant):
    references = ["nothing in common here", NEWS, "The trainers cheered."]
    expected = ORACLE.score_multi(references, SHORT)[variant].fmeasure
    assert scores(variant, [SHORT], [references]) == [expected]
    assert expected == max(ORACLE.score(text, SHORT)[variant].fmeasure for text in references)


SAME_EXAMPLES = settings(deadline=None, max_examples=200, derandomize=True, database=None)
WORDS = st.sampled_from(["a", "b", "c", "running", "runs", "3", ".", "The"])
TEXTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), max_size=4).map("\n".join)


@SAME_EXAMPLES
@given(reference=TEXTS, prediction=TEXTS)
def test_any_text_scores_exactly_as_in_rouge_score(reference, prediction):
    expected = ORACLE.score(reference, prediction)
    for variant in VARIANTS:
        assert scores(variant, [prediction], [[reference]]) == [expected[variant].fmeasure]


LETTERS = st.lists(st.sampled_from("abc"), max_size=12).map(tuple)


@SAME_EXAMPLES
@given(reference=LETTERS, prediction=LETTERS)
def test_rows_of_bits_are_the_table_and_read_out_the_same_subsequence(reference, prediction):
    table = rouge_scorer._lcs_table(reference, prediction)
    rows = rouge._lcs_rows(reference, prediction)
    lengths = [[(row & ((1 << j) - 1)).bit_count() for j in range(len(prediction) + 1)] for row in rows]
    assert lengths == table
    expected = rouge_scorer._backtrack_norec(table, reference, prediction)
    assert sorted(rouge._lcs_positions(reference, prediction)) == expected


def test_a_subsequence_longer_than_a_machine_word():
    reference = tuple(str(i % 7) for i in range(300))
    prediction = tuple(str(i % 5) for i in range(250))
    expected = rouge_scorer.lcs_ind(reference, prediction)
    assert sorted(rouge._lcs_positions(reference, prediction)) == expected


def test_signatures():
    tail = "score:f1|agg:mean|case:lc|stem:porter"
    assert METRICS["rouge1"].signature([["a"]]).startswith(f"rouge1|nrefs:1|refs:max-f1|{tail}|rouge_score:0.1.2|nltk:")
    assert f"{tail}|sentence:line|rouge_score:0.1.2" in METRICS["rougeLsum"].signature([["a"], ["b", "c"]])
    assert f"{tail}|sentence:text|rouge_score:0.1.2" in METRICS["rougeL"].signature([["a"]])
    assert "sentence" not in METRICS["rouge2"].signature([["a"]])


def test_published_cases(read_json):
    cases = [case for case in read_json("rouge_reference/rouge_cases.json")["cases"] if case["use_stemmer"]]
    known = [case for case in cases if case["type"] in VARIANTS and isinstance(case["target"], str)]
    assert len(known) >= 3
    for case in known:
        found = scores(case["type"], [case["prediction"]], [[case["target"]]])
        assert found == [pytest.approx(case["fmeasure"], abs=1e-5)]


@pytest.mark.slow
def test_cnn_dailymail_outputs_score_exactly_as_in_rouge_score(read_rows):
    rows = read_rows("rouge_reference/simcls_cnndm.jsonl.gz")[:300]
    predictions = [sentences(row["prediction"]) for row in rows]
    references = [sentences(row["target"]) for row in rows]
    expected = [ORACLE.score(ref, hyp) for ref, hyp in zip(references, predictions, strict=True)]
    for variant in VARIANTS:
        found = scores(variant, predictions, [[text] for text in references])
        assert found == [score[variant].fmeasure for score in expected]
