import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from encdec_train.metrics import METRICS

FORMS = ["sari", "sari_legacy", "sari_t2t"]
SPECIES = "About 95 species are currently accepted ."
SPECIES_REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


def corpus(form, predictions, references, sources):
    metric = METRICS[form]
    return metric.value(metric.statistics(predictions, references, sources).sum(axis=0))


def one(form, source, prediction, *references):
    return corpus(form, [prediction], [list(references)], [source])


def percent(*operations):
    return pytest.approx(float(100 * sum(operations) / 3))


def test_the_examples_of_the_documentation():
    lines = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines if line.count("|") == 8]
    examples = [row for row in rows if re.fullmatch(r"[\d.]+", row[3])]
    assert len(examples) == 6
    for source, prediction, reference, *values, _ in examples:
        assert values == [f"{one(form, source, prediction, *reference.split(' / ')):.1f}" for form in FORMS]


def test_easse_readme_example(read_json):
    example = read_json("turkcorpus/expected_sari.json")["readme_example"]
    references = [list(texts) for texts in zip(*example["refs"], strict=True)]
    assert corpus("sari", example["sys"], references, example["orig"]) == pytest.approx(example["sari"], abs=1e-9)
    assert example["sari"] == pytest.approx(33.17472563619544)


def test_access_on_turkcorpus(read_rows, read_json):
    test, outputs = read_rows("turkcorpus/test.jsonl.gz"), read_rows("turkcorpus/system_outputs.jsonl.gz")
    predictions = [row["outputs"]["ACCESS"] for row in outputs]
    value = corpus("sari", predictions, [row["references"] for row in test], [row["source"] for row in test])
    assert value == pytest.approx(read_json("turkcorpus/expected_sari.json")["easse"]["ACCESS"], abs=1e-5)


@pytest.mark.slow
def test_every_system_on_turkcorpus(read_rows, read_json):
    known = read_json("turkcorpus/expected_sari.json")
    test, outputs = read_rows("turkcorpus/test.jsonl.gz"), read_rows("turkcorpus/system_outputs.jsonl.gz")
    references, sources = [row["references"] for row in test], [row["source"] for row in test]
    expected = known["computed_with_easse_code"]["scores"]
    assert len(expected) == 21
    for system, value in expected.items():
        predictions = [row["outputs"][system] for row in outputs]
        assert corpus("sari", predictions, references, sources) == pytest.approx(value, abs=1e-9), system


def test_published_systems_on_the_tokenised_test_set(read_rows, read_json):
    known = read_json("turkcorpus/expected_sari.json")["legacy"]
    test = read_rows("turkcorpus/test_legacy_tok_lower.jsonl.gz")
    outputs = read_rows("turkcorpus/system_outputs_legacy.jsonl.gz")
    references, sources = [row["references"] for row in test], [row["source"] for row in test]
    assert len(known) == 6
    for system, value in known.items():
        predictions = [row["outputs"][system] for row in outputs]
        assert corpus("sari_legacy", predictions, references, sources) == pytest.approx(value, abs=1e-9), system


@pytest.mark.parametrize(
    ("prediction", "published"),  # of tensor2tensor's sari_hook_test.py
    [
        ("About 95 you now get in .", 26.95360),
        ("About 95 species are now agreed .", 61.70966),
        ("About 95 species are currently agreed .", 50.88682),
    ],
)
def test_tensor2tensor_examples(prediction, published):
    assert one("sari_t2t", SPECIES, prediction, *SPECIES_REFERENCES) == pytest.approx(published, abs=5e-5)


def test_what_is_left_as_it_should_be_is_perfect_in_the_t2t_form_only():
    text = "a b c d e"
    assert [one(form, text, text, text) for form in FORMS] == [percent(1), percent(1), 100]


def test_the_legacy_form_splits_the_source_at_spaces_only():
    text = "a b c d."  # `d.` is deleted and `d .` added; kept of n = 1..4: a, b, c; a b, b c; a b c; nothing
    keep = Fraction(3, 4)
    assert [one(form, text, text, text) for form in FORMS] == [percent(1), percent(1, keep, 1), 100]


def test_deletion_is_f1_but_precision_in_the_t2t_form():
    # For n = 1..4: kept 5, 4, 3, 2 of which right 4, 3, 2, 1, all that there are; deleted one of two that should go.
    keep = (Fraction(8, 9) + Fraction(6, 7) + Fraction(4, 5) + Fraction(2, 3)) / 4
    found = [one(form, "a b c d e f", "a b c d e", "a b c d") for form in FORMS]
    assert found == [percent(0, keep, Fraction(2, 3)), percent(0, keep, Fraction(2, 3)), percent(1, keep, 1)]


def test_only_the_default_form_ignores_case():
    # Case counted, for n = 1..4: kept 3, 2, 1, 0 of 4, 3, 2, 1; the one deletion and the one addition are wrong.
    keep = (Fraction(6, 7) + Fraction(4, 5) + Fraction(2, 3)) / 4
    assert [one(form, "A b c d", "a b c d", "A b c d") for form in FORMS] == [percent(1), percent(keep), percent(keep)]


def test_repeated_words_count_except_in_the_t2t_form():
    # n = 1: kept 2 `a` of 2, the reference has 1; nothing longer is in the reference.
    # sari: keep 2/3 for n = 1; delete: `a a` has nothing to do with it, nothing is deleted: 0 / 0.
    assert one("sari", "a a", "a a", "a") == percent(Fraction(2, 3) / 4)
    # t2t, n = 1: keep 1, delete 0 / 0 = 1, add 1. n = 2: keep 0, delete 1, add 1. n = 3, 4: all 0 / 0.
    assert one("sari_t2t", "a a", "a a", "a") == percent(Fraction(3, 4), 1, 1)


def test_additions_are_counted_once_however_often_they_occur():
    # n = 1: x is the one addition, and wanted. n = 2: `a x` wanted, `x x` not; n = 3: `a x x` not.
    add = (1 + Fraction(2, 3)) / 4
    assert one("sari", "a", "a x x", "a x") == percent(add, Fraction(1, 4))


def test_references_weigh_by_how_many_agree():
    # n = 1. sari: source twice a a b b; pooled a a b; kept a a b b: right 3 of 4, possible 3.
    assert one("sari", "a b", "a b", "a b", "a") == percent((Fraction(6, 7) + Fraction(2, 3)) / 4)
    # t2t, keep: n = 1 shares 1 and 1/2: 3/2 of 2 kept, possible 3/2: 6/7; n = 2: of the one reference that has one: 1
    assert one("sari_t2t", "a b", "a b", "a b", "a") == percent((Fraction(6, 7) + 3) / 4, 1, 1)


def test_corpus_forms_sum_counts_and_the_t2t_form_averages():
    columns = (["a b", "c d e f"], [["a b"], ["c d"]], ["a b", "c d e f"])
    alone = [corpus("sari_t2t", *([column[i]] for column in columns)) for i in range(2)]
    assert corpus("sari_t2t", *columns) == pytest.approx(sum(alone) / 2)
    # sari, keep, n = 1: 4 of 6 kept are right, all that are possible: F1 4/5; n = 2: 2 of 4: F1 2/3; then none
    assert corpus("sari", *columns) == percent((Fraction(4, 5) + Fraction(2, 3)) / 4)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_prediction_scores_for_its_deletions(form):
    # All of 4, 3, 2, 1 n-grams are deleted; of 2, 2, 2 and 1 that is right (`a b` should stay), and complete.
    deleted = (
        (Fraction(2, 3) + Fraction(4, 5) + 1 + 1) / 4
        if form != "sari_t2t"
        else (Fraction(2, 4) + Fraction(2, 3) + 1 + 1) / 4
    )
    add, keep = (0, 0) if form != "sari_t2t" else (1, Fraction(2, 4))
    assert one(form, "a b c d", "", "a b") == percent(add, keep, deleted)


def test_values_of_statistics_without_any_ngram():
    assert METRICS["sari"].value(np.zeros(36)) == 0


def test_signatures():
    references = [["a", "b"]]
    assert (
        METRICS["sari"]
        .signature(references)
        .startswith("sari|nrefs:2|refs:pooled|agg:corpus|del:f1|case:lc|tok:13a|source:13a|sacrebleu:")
    )
    assert (
        METRICS["sari_legacy"]
        .signature(references)
        .startswith("sari_legacy|nrefs:2|refs:pooled|agg:corpus|del:f1|case:mixed|tok:13a|source:space|sacrebleu:")
    )
    assert METRICS["sari_t2t"].signature(references) == (
        "sari_t2t|nrefs:2|refs:weighted|agg:mean|del:precision|case:mixed|tok:space|version:1"
    )
