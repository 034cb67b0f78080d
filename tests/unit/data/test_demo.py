"""The demo's corpus: one right answer a source, splits apart, the same bytes everywhere."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from encdec_train.data import demo, demo_grammar
from encdec_train.data.demo import DemoSizes
from encdec_train.data.demo_corpus import fingerprint, write_corpus

SMALL = DemoSizes(train=360, validation=36, test=90, test_unseen_words=90, pretrain_passages=200)
# Of the small corpus under VERSION 1: when it changes, raise demo.VERSION, or caches keep the old text.
GOLDEN = {"version": "2", "sha256": "df33b1fd6c50967e019b8f2dca69d6d520b247af959f1a6edbaa15d1809c36f0"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    return write_corpus(tmp_path_factory.mktemp("demo"), SMALL)


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def test_the_bytes_are_those_of_the_version(corpus) -> None:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in corpus.values())).hexdigest()
    assert {"version": demo.VERSION, "sha256": digest} == GOLDEN


def test_sizes_and_ids(corpus) -> None:
    assert {name: len(records(path)) for name, path in corpus.items() if name != "pretrain"} == {
        "train": 360, "validation": 36, "test": 90, "test_unseen_words": 90,
    }  # fmt: skip
    assert len(corpus["pretrain"].read_text().splitlines()) == 200
    assert [record["id"] for record in records(corpus["test"])][:2] == ["test-0", "test-1"]


def test_a_source_has_one_target() -> None:
    for split in ("train", "test", "test_unseen_words"):
        pairs = demo.pairs(split, 600)
        assert len({pair.source for pair in pairs}) == 600
        # the two facts in the other order are the same two facts: where both orders occur, the sentence is the same
        # unless the order is what tells (two events without a time)
        assert all(pair.fused != pair.source for pair in pairs)


def test_copying_fails() -> None:
    pairs = demo.pairs("test", 300)
    assert sum(pair.source == pair.fused for pair in pairs) == 0
    assert all(pair.fused.count(".") == 1 and pair.source.count(".") == 2 for pair in pairs)


def test_no_test_pair_or_act_was_trained_on(corpus) -> None:
    train = {record["source"] for record in records(corpus["train"])}
    text = corpus["pretrain"].read_text()
    for split in ("validation", "test", "test_unseen_words"):
        for record in records(corpus[split]):
            assert record["source"] not in train
            assert record["target"] not in text


def test_the_unseen_words_are_in_the_pretraining_text_only() -> None:
    names = {word for person in demo_grammar.UNSEEN.people for word in words(person.name)} - {"the"}
    verbs = {verb.past for verb in demo_grammar.UNSEEN.verbs}
    trained = words(" ".join(pair.source + " " + pair.fused for pair in demo.pairs("train", 2000)))
    tested = words(" ".join(pair.source for pair in demo.pairs("test_unseen_words", 600)))
    assert not (names | verbs) & trained
    assert len((names | verbs) & tested) > 20
    sizes = DemoSizes()
    text = words(" ".join(_passages(sizes.pretrain_passages // 6)))
    assert names | verbs <= text


def _passages(count: int) -> list[str]:
    import random

    generator = random.Random(1)
    return [demo.passage(generator) for _ in range(count)]


def test_every_relation_occurs_equally_often() -> None:
    pairs = demo.pairs("train", len(demo.RELATIONS) * 3)
    openings = [pair.fused.split()[0] for pair in pairs]
    assert len(demo.RELATIONS) == 18
    assert len(set(openings)) > 5


def test_a_corpus_is_written_once(tmp_path) -> None:
    first = write_corpus(tmp_path, SMALL)
    stamp = first["train"].stat().st_mtime_ns
    assert write_corpus(tmp_path, SMALL)["train"].stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [fingerprint(SMALL)[:12]]


def test_other_sizes_are_another_corpus() -> None:
    assert fingerprint(SMALL) != fingerprint(DemoSizes())
