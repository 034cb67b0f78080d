import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from encdec_train.metrics import METRICS

ORACLES = {"sacrebleu": BLEU(), "sacrebleu_uncased": BLEU(lowercase=True), "chrf": CHRF(), "ter": TER()}
DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def corpus(key, predictions, references):
    metric = METRICS[key]
    return metric.value(metric.statistics(predictions, references, None).sum(axis=0))


def oracle(key, predictions, references):
    width = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]
    return ORACLES[key].corpus_score(predictions, streams).score


def test_bleu_of_a_published_case():
    assert corpus("sacrebleu", DOGS, DOG_REFERENCES) == pytest.approx(48.530827, abs=1e-6)  # sacrebleu's test_bleu.py


@pytest.mark.parametrize("key", ORACLES)
def test_the_sum_of_statistics_gives_the_corpus_score(key):
    assert corpus(key, DOGS, DOG_REFERENCES) == pytest.approx(oracle(key, DOGS, DOG_REFERENCES), abs=1e-9)


@pytest.mark.parametrize("key", ORACLES)
def test_examples_may_have_different_numbers_of_references(key):
    references = [DOG_REFERENCES[0][:1], DOG_REFERENCES[1], [*DOG_REFERENCES[2], "He had bitten him."]]
    value = corpus(key, DOGS, references)
    assert value == pytest.approx(oracle(key, DOGS, references), abs=1e-9)
    assert value != pytest.approx(corpus(key, DOGS, [texts[:1] for texts in references]), abs=0.1)


@pytest.mark.parametrize(("key", "worst"), [("sacrebleu", 0), ("sacrebleu_uncased", 0), ("chrf", 0), ("ter", 100)])
def test_empty_predictions_score_worst(key, worst):
    assert corpus(key, ["", ""], [["one two three four"], ["five six seven eight"]]) == worst


@pytest.mark.parametrize("key", ORACLES)
def test_one_empty_prediction_is_not_left_out(key):
    references = [["one two three four"], ["five six seven eight"]]
    value = corpus(key, [references[0][0], ""], references)
    assert value == pytest.approx(oracle(key, [references[0][0], ""], references), abs=1e-9)
    assert value != pytest.approx(corpus(key, [references[0][0]], references[:1]), abs=1)


def test_case_counts_except_in_the_uncased_metric():
    shout = [text.upper() for text in DOGS]
    assert corpus("sacrebleu", shout, DOG_REFERENCES) < 10
    assert corpus("sacrebleu_uncased", shout, DOG_REFERENCES) == corpus("sacrebleu_uncased", DOGS, DOG_REFERENCES)


@pytest.mark.parametrize("key", ORACLES)
def test_the_signature_is_that_of_sacrebleu(key):
    score = ORACLES[key].corpus_score(DOGS, [list(stream) for stream in zip(*DOG_REFERENCES, strict=True)])
    expected = f"{score.name}|{ORACLES[key].get_signature().format()}"
    assert METRICS[key].signature(DOG_REFERENCES) == expected
    assert "|nrefs:2|" in expected


def test_signatures_to_the_letter():
    parts = METRICS["sacrebleu_uncased"].signature([["a"]]).split("|")
    assert parts[:-1] == ["BLEU", "nrefs:1", "case:lc", "eff:no", "tok:13a", "smooth:exp"]
    parts = METRICS["chrf"].signature([["a"]]).split("|")
    assert parts[:-1] == ["chrF2", "nrefs:1", "case:mixed", "eff:yes", "nc:6", "nw:0", "space:no"]


def test_tokenised_text_raises_no_warning(caplog):
    tokenised = ["one two three ."] * 101
    assert corpus("sacrebleu", tokenised, [[text] for text in tokenised]) == pytest.approx(100)
    assert not caplog.records


def test_published_cases(read_json):
    cases = read_json("bleu_reference/sacrebleu_cases.json")
    plain = [case for case in cases["corpus_bleu"] if case["options"] in ({}, {"tokenize": "13a"})]
    assert len(plain) == 3
    for case in plain:
        references = [list(texts) for texts in zip(*case["references"], strict=True)]
        assert corpus("sacrebleu", case["hypotheses"], references) == pytest.approx(case["score"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Facebook-AI", "ICL"])
def test_newstest2021_figures(system, read_rows, read_json):
    published = read_json("newstest2021_en_de/published_scores.json")["scores"][system]
    references = [row["references"] for row in read_rows("newstest2021_en_de/test.jsonl.gz")]
    outputs = [row["outputs"][system] for row in read_rows("newstest2021_en_de/system_outputs.jsonl.gz")]
    assert corpus("sacrebleu", outputs, references) == pytest.approx(published["bleu-all"], abs=1e-9)
    assert corpus("chrf", outputs, references) == pytest.approx(published["chrf-all"], abs=1e-9)
    for column, name in enumerate("ACD"):
        single = [[texts[column]] for texts in references]
        assert corpus("sacrebleu", outputs, single) == pytest.approx(published[f"bleu-{name}"], abs=1e-9)


@pytest.mark.slow
def test_newstest2021_uncased_and_ter_agree_with_sacrebleu(read_rows):
    references = [row["references"] for row in read_rows("newstest2021_en_de/test.jsonl.gz")[:60]]
    outputs = [row["outputs"]["ICL"] for row in read_rows("newstest2021_en_de/system_outputs.jsonl.gz")[:60]]
    for key in ("sacrebleu_uncased", "ter"):
        assert corpus(key, outputs, references) == pytest.approx(oracle(key, outputs, references), abs=1e-9)
