import math
import re
import unicodedata
from collections import Counter

import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from encdec_train.metrics import METRICS

ORACLES = {
    "sacrebleu": BLEU(),
    "sacrebleu_uncased": BLEU(lowercase=True),
    "sacrebleu_intl": BLEU(tokenize="intl"),
    "sacrebleu_none": BLEU(tokenize="none"),
    "sacrebleu_zh": BLEU(tokenize="zh"),
    "chrf": CHRF(),
    "chrfpp": CHRF(word_order=2),
    "ter": TER(),
}
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


@pytest.mark.parametrize(
    ("key", "worst"),
    [("sacrebleu", 0), ("sacrebleu_uncased", 0), ("bleu_wmt14", 0), ("chrfpp", 0), ("chrf", 0), ("ter", 100)],
)
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
    parts = METRICS["bleu_wmt14"].signature([["a"]]).split("|")
    assert parts[:6] == ["BLEU", "nrefs:1", "case:lc", "eff:no", "tok:intl", "smooth:exp"]
    assert parts[7:] == ["quotes:ascii", "compounds:whole"]
    assert METRICS["chrfpp"].signature([["a"]]).startswith("chrF2++|nrefs:1|case:mixed|eff:yes|nc:6|nw:2|")


def test_tokenised_text_raises_no_warning(caplog):
    tokenised = ["one two three ."] * 101
    assert corpus("sacrebleu", tokenised, [[text] for text in tokenised]) == pytest.approx(100)
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "tokenize"), [("sacrebleu", "13a"), ("sacrebleu_none", "none"), ("sacrebleu_intl", "intl")]
)
def test_published_cases(key, tokenize, read_json):
    cases = read_json("bleu_reference/sacrebleu_cases.json")["corpus_bleu"]
    for case in [case for case in cases if case["options"].get("tokenize", "13a") == tokenize]:
        references = [list(texts) for texts in zip(*case["references"], strict=True)]
        assert corpus(key, case["hypotheses"], references) == pytest.approx(case["score"], abs=1e-6)


def test_chinese_is_compared_character_by_character():
    # 7 characters, the last one wrong: 6 of 7, 5 of 6, 4 of 5, 3 of 4
    assert corpus("sacrebleu_zh", ["我爱北京天安们"], [["我爱北京天安门"]]) == pytest.approx(100 * (3 / 7) ** 0.25)
    assert corpus("sacrebleu", ["我爱北京天安们"], [["我爱北京天安门"]]) == 0


def test_japanese_is_split_by_mecab():
    pytest.importorskip("MeCab")
    pytest.importorskip("ipadic")
    texts, references = ["私は東京に住んでいます。"], [["私は京都に住んでいます。"]]
    expected = BLEU(tokenize="ja-mecab").corpus_score(texts, [[references[0][0]]]).score
    assert 0 < corpus("sacrebleu_ja", texts, references) == pytest.approx(expected, abs=1e-9)


def test_chrfpp_by_hand():
    # Without spaces `abcd` and `abce`: 3 of 4, 2 of 3, 1 of 2, 0 of 1; words 1 of 2, pairs 0 of 1. No 5- or 6-grams.
    assert corpus("chrfpp", ["ab cd"], [["ab ce"]]) == pytest.approx(100 * (3 / 4 + 2 / 3 + 1 / 2 + 1 / 2) / 6)


def of_category(letter):
    return "".join(re.escape(c) for c in map(chr, range(0x11000)) if unicodedata.category(c).startswith(letter))


PUNCTUATION, SYMBOLS = of_category("P"), of_category("S")


def wmt14_words(text):
    # TensorFlow's official transformer: lower case, mteval-v14's international rules with \d for digits
    text = re.sub("[“”„‟«»]", '"', re.sub("[‘’‚‛‹›]", "'", text)).lower()
    text = re.sub(rf"([^\d])([{PUNCTUATION}])", r"\1 \2 ", text)
    text = re.sub(rf"([{PUNCTUATION}])([^\d])", r" \1 \2", text)
    return re.sub(rf"([{SYMBOLS}])", r" \1 ", text).split()


def wmt14(predictions, references):
    right, possible, lengths, smooth = [0] * 4, [0] * 4, [0, 0], 1
    for prediction, reference in zip(predictions, references, strict=True):
        hyp, ref = wmt14_words(prediction), wmt14_words(reference)
        lengths = [lengths[0] + len(hyp), lengths[1] + len(ref)]
        for n in range(4):
            grams = [Counter(tuple(words[i : i + n + 1]) for i in range(len(words) - n)) for words in (hyp, ref)]
            right[n] += (grams[0] & grams[1]).total()
            possible[n] += grams[0].total()
    logs = 0.0
    for hits, count in zip(right, possible, strict=True):
        smooth *= 1 if hits else 2
        logs += math.log(hits / count if hits else 1 / (smooth * count)) / 4
    return 100 * math.exp(logs + min(0.0, 1 - lengths[1] / lengths[0]))


def test_the_wmt14_form_makes_quotes_ascii_ignores_case_and_leaves_compounds_whole():
    prediction = "„Die EU-Kommission“, so ‚er‘, zahlt 3,5 €."
    assert wmt14_words(prediction)[:6] == ['"', "die", "eu", "-", "kommission", '"']
    reference = "\"die EU-kommission\", so 'Er', zahlt 3,5 €."
    assert corpus("bleu_wmt14", [prediction], [[reference]]) == pytest.approx(100)
    assert corpus("sacrebleu_uncased", [prediction], [[reference]]) < 50
    assert corpus("bleu_wmt14", ["«a» ‹b› c d"], [["\"a\" 'b' c d"]]) == pytest.approx(100)


def test_the_wmt14_form_smooths_as_tensorflows_script():
    columns = ["a b c x y", "d"], ["a b c d e", "d"]
    assert corpus("bleu_wmt14", columns[0], [[text] for text in columns[1]]) == pytest.approx(wmt14(*columns))


def test_the_wmt14_form_is_tensorflows_on_real_outputs(read_rows):
    rows = read_rows("bleu_reference/newstest2017_en_de.jsonl.gz")[:500]
    outputs = [row["outputs"]["newstest2017.uedin-nmt.4722.en-de"] for row in rows]
    references = [row["target"] for row in rows]
    found = corpus("bleu_wmt14", outputs, [[text] for text in references])
    assert found == pytest.approx(wmt14(outputs, references), abs=1e-6)
    assert found != pytest.approx(corpus("sacrebleu_uncased", outputs, [[text] for text in references]), abs=0.01)


@pytest.mark.slow
def test_newstest2021_uncased_and_ter_agree_with_sacrebleu(read_rows):
    references = [row["references"] for row in read_rows("newstest2021_en_de/test.jsonl.gz")[:60]]
    outputs = [row["outputs"]["ICL"] for row in read_rows("newstest2021_en_de/system_outputs.jsonl.gz")[:60]]
    for key in ("sacrebleu_uncased", "ter"):
        assert corpus(key, outputs, references) == pytest.approx(oracle(key, outputs, references), abs=1e-9)
