"""The audit counts what was planted, and says nothing where nothing is."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encdec_train.config import Overlong
from encdec_train.data.audit import WARN_ABOVE, audit, lost_characters, sides
from encdec_train.data.hub_data import taken
from encdec_train.data.load import Rows
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, encode_split

LIMITS = Limits(5, 4, Overlong.truncate)


def split_of(codec: TextCodec, *pairs: tuple[str, str]) -> EncodedSplit:
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    rows = Rows([str(n) for n in range(len(pairs))], sources, targets, [[target] for target in targets])
    return encode_split(rows, codec, LIMITS, name="x", cache_dir=None, cache_key=None)


TRAIN = [
    ("the cat sat and ran", "cat"),  # cut: 7 tokens of 5
    ("The  cat sat and ran", "CAT"),  # the same pair after normalisation
    ("the cat sat and ran", "dog"),  # the same source
    ("a dog", "a  dog"),  # equal
    ("a", "the cat sat and ran"),  # the target is cut, and longer
]


def test_what_is_planted_is_counted(codec: TextCodec) -> None:
    found = audit({"test": split_of(codec, ("A dog", "b"), ("c", "b")), "train": split_of(codec, *TRAIN)}, codec)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["pairs"], train["repeated_sources"], train["repeated_pairs"], train["equal"]) == (5, 2, 1, 1)
    assert (train["source"]["cut"], train["target"]["cut"], train["longer_targets"], train["empty"]) == (3, 1, 1, 0)
    assert train["source"]["histogram"] == {"width": 1, "counts": [0, 0, 0, 1, 1, 3]}
    assert (train["source"]["median"], train["source"]["longest"], train["target"]["tokens"]) == (5.0, 5, 13)
    assert (test["seen_sources"], test["pairs"]) == (1, 2)
    assert "seen_sources" not in train
    shares = {(one["split"], one["name"]): one["share"] for one in found["warnings"]}
    assert shares == {
        ("train", "cut sources"): 0.6,
        ("train", "cut targets"): 0.2,
        ("train", "repeated pairs"): 0.2,
        ("train", "targets equal to their source"): 0.2,
        ("train", "lost characters in targets"): pytest.approx(3 / 28),  # C, A and T
        ("test", "sources seen in training"): 0.5,
    }
    assert {name for _, name in shares} <= set(WARN_ABOVE)


def test_records_that_were_set_aside_are_counted(codec: TextCodec) -> None:
    split = split_of(codec, ("the cat", "cat"), ("a dog", "dog"), ("the dog ran", "it ran"))
    split.rows = replace(split.rows, set_aside=({"file": "f", "line": 3, "reason": "line 3: expected a text."},))
    found = audit({"train": split}, codec)
    assert found["splits"]["train"]["set_aside"] == 1
    assert found["warnings"] == [{"split": "train", "name": "records set aside", "share": 0.25, "above": 0.0}]
    split.rows = replace(taken(split.rows, np.array([0, 2])), set_aside=split.rows.set_aside)
    [warning] = audit({"train": split}, codec)["warnings"]
    assert warning["share"] == 0.25  # of what was read, not of what was drawn from it


def test_clean_data_has_no_warning(codec: TextCodec) -> None:
    clean = [("the cat", "cat"), ("a dog", "dog"), ("the dog ran", "it ran")]
    splits = {"train": split_of(codec, *clean), "test": split_of(codec, ("b c", "it"))}
    assert audit(splits, codec)["warnings"] == []


def test_lost_characters_are_unknown_or_normalised(codec: TextCodec) -> None:
    found = lost_characters(["The cät 🙂🙂", "dog"], codec.target_backend, 1)
    assert found["unknown"] == {"🙂": 2}
    assert found["normalised"] == {"T": 1, "ä": 1}
    assert found["unknown_share"] == pytest.approx(2 / 11)
    assert found["normalised_share"] == pytest.approx(2 / 11)
    assert lost_characters([], codec.target_backend, 1)["unknown_share"] == 0


ENGLISH = ["the dog runs home", "a cat sees the house", "the men build a house", "a dog sees the cat"]
GERMAN = ["der Hund läuft heim", "eine Katze sieht das Haus", "die Männer bauen ein Haus", "der Hund sieht die Katze"]
CHINESE = ["狗跑回家", "猫看房子", "人们建房子", "狗看见猫"]


@pytest.mark.parametrize("others", [GERMAN, CHINESE])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_exchanged_sides_of_a_translation_are_counted(others: list[str], share: float) -> None:
    generator, pairs, num_exchanged = random.Random(0), [], 0
    for number in range(1000):
        pair = ENGLISH[number % 4], others[number % 4]
        exchanged = generator.random() < share
        num_exchanged += exchanged
        pairs.append(pair[::-1] if exchanged else pair)
    found = sides([one for one, _ in pairs], [two for _, two in pairs])
    assert found == {"examined": 1000, "told_apart": True, "exchanged": num_exchanged, "one_side": 0}


def test_untranslated_targets_are_counted_apart() -> None:
    sources, targets = ENGLISH * 250, [*GERMAN * 225, *ENGLISH * 25]
    assert sides(sources, targets) == {"examined": 1000, "told_apart": True, "exchanged": 0, "one_side": 100}


@pytest.mark.parametrize("targets", [ENGLISH * 250, ["the dog"] * 1000, [text.upper() for text in ENGLISH] * 250])
def test_sides_of_one_language_are_not_told_apart(targets: list[str]) -> None:
    found: dict[str, Any] = sides(ENGLISH * 250, targets)
    assert (found["told_apart"], found["exchanged"]) == (False, 0)


def test_few_pairs_say_nothing_about_sides() -> None:
    assert not sides(ENGLISH, GERMAN)["told_apart"]
