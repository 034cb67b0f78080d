import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encdec_train.errors import DataError
from encdec_train.report.samples import MAX_CHARACTERS, mark_differences, pick_samples


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_samples_are_taken_at_even_distances(tmp_path):
    rows = [{"id": str(i), "source": "", "prediction": "p", "references": ["r"]} for i in range(100)]
    path = write(tmp_path / "test.jsonl", rows)
    assert [sample.id for sample in pick_samples(path, 4)] == ["0", "25", "50", "75"]
    assert [sample.id for sample in pick_samples(write(path, rows[:3]), 10)] == ["0", "1", "2"]
    assert pick_samples(write(path, []), 10) == []


def test_the_closest_reference_is_shown(tmp_path):
    row = {"source": "s", "prediction": "the cat sat", "references": ["a dog ran", "the cat sat down", "no"]}
    (sample,) = pick_samples(write(tmp_path / "a.jsonl", [row]), 1)
    assert (sample.id, sample.reference, sample.num_references) == ("0", "the cat sat down", 3)


def test_long_texts_are_cut_at_a_word(tmp_path):
    row = {"id": "a", "source": "word " * 1000, "prediction": "x" * 5000, "references": ["short"]}
    (sample,) = pick_samples(write(tmp_path / "a.jsonl", [row]), 1)
    assert sample.source.endswith("word […]")
    assert len(sample.source) <= MAX_CHARACTERS + 4
    assert sample.prediction == "x" * MAX_CHARACTERS + " […]"
    assert sample.reference == "short"


def test_files_of_others_may_lack_fields(tmp_path):
    rows = [{"prediction": "p", "references": "one"}, {"prediction": "p", "references": [], "source": None}]
    samples = pick_samples(write(tmp_path / "a.jsonl", rows), 2)
    assert [(s.source, s.reference) for s in samples] == [("", "one"), ("", "")]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\nx\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected a JSON object"):
        pick_samples(tmp_path / "a.jsonl", 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "ours", "theirs"),
    [
        ("a b c", "a b c", "a b c", "a b c"),
        ("a x y c", "a b c", "a <ins>x y</ins> c", "a <del>b</del> c"),
        ("a c", "a b c", "a c", "a <del>b</del> c"),
        ("", "b", "", "<del>b</del>"),
        ("<i>&", "&", "<ins>&lt;i&gt;&amp;</ins>", "<del>&amp;</del>"),
    ],
)
def test_differences_are_marked(prediction, reference, ours, theirs):
    assert mark_differences(prediction, reference) == (ours, theirs)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_marks_leave_the_words_as_they_are(ours, theirs):
    marked = mark_differences(" ".join(ours), " ".join(theirs))
    plain = [
        text.replace("<ins>", "").replace("</ins>", "").replace("<del>", "").replace("</del>", "") for text in marked
    ]
    assert plain == [" ".join(ours), " ".join(theirs)]
