import errno
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encdec_train.config import Overlong
from encdec_train.data import preprocess, store
from encdec_train.data.load import Rows, load_file
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, codec_fingerprint, encode_split
from encdec_train.errors import ConfigError, DataError, ModelError

ROOMY = Limits(32, 32, Overlong.refuse)
# Of the vocabulary in conftest.py.
THE, CAT, DOG, SAT, RAN, AND, S, STOP, COMMA, A, B, C = range(5, 17)
CLS, SEP, UNK = 2, 3, 1


def encoded(rows: Rows, codec: TextCodec, limits: Limits = ROOMY, **options: Any) -> EncodedSplit:
    return encode_split(rows, codec, limits, **{"name": "train", "cache_dir": None, "cache_key": None, **options})


def as_lists(split: EncodedSplit) -> tuple[list[list[int]], list[list[int]]]:
    sources, targets = split.take(range(len(split)))
    return [ids.tolist() for ids in sources], [ids.tolist() for ids in targets]


def pairs(*texts: tuple[str, str]) -> Rows:
    sources, targets = [source for source, _ in texts], [target for _, target in texts]
    return Rows([f"r{n}" for n in range(len(texts))], sources, targets, [[target] for target in targets])


# The codec


def test_sources_have_the_tokenizers_special_tokens_and_d13_targets_only_the_end(codec: TextCodec) -> None:
    assert codec.encode_sources(["the cats sat.", "🙂"]) == [[CLS, THE, CAT, S, SAT, STOP, SEP], [CLS, UNK, SEP]]
    assert codec.encode_targets(["the cats", ""]) == [[THE, CAT, S, SEP], [SEP]]


def test_decoding_leaves_out_special_tokens_and_outer_space(codec: TextCodec, tokenizer: Any) -> None:
    ids = [CLS, THE, CAT, S, SEP, 0, 0]
    assert codec.decode(ids) == codec.decode(np.array(ids, np.int32)) == "the cats"
    assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert codec.decode([SEP]) == ""


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("thecatdogs .,'é🙂\u200d\n[SEP]")), max_size=6))
def test_ids_are_those_of_the_plain_tokenizer(letters: TextCodec, texts: list[str]) -> None:
    codec, plain = letters, letters.source_tokenizer
    assert codec.encode_sources(texts) == [plain(text)["input_ids"] for text in texts]
    assert codec.encode_targets(texts) == [[*plain(text, add_special_tokens=False)["input_ids"], SEP] for text in texts]


def test_truncation_and_padding_of_a_tokenizers_file_are_switched_off(codec: TextCodec, cutting: Any) -> None:
    assert [len(encoding.ids) for encoding in cutting.backend_tokenizer.encode_batch(["cat " * 9, "cat"])] == [4, 4]
    other = replace(codec, source_tokenizer=cutting, target_tokenizer=cutting)
    assert [len(ids) for ids in other.encode_sources(["cat " * 9, "cat"])] == [11, 3]
    assert [len(ids) for ids in other.encode_targets(["cat " * 9, "cat"])] == [10, 2]
    assert cutting.backend_tokenizer.truncation["max_length"] == 4  # the caller's own tokenizer is left alone
    assert codec_fingerprint(other) == codec_fingerprint(codec)
    cutting(["the cat"], truncation=True, max_length=3, padding="max_length")  # changes its backend
    assert codec_fingerprint(other) == codec_fingerprint(codec)


def test_special_tokens_in_a_text_are_split_where_the_tokenizer_splits_them(codec: TextCodec, cutting: Any) -> None:
    cutting.split_special_tokens = True
    other = replace(codec, source_tokenizer=cutting)
    assert codec.encode_sources(["a [SEP]"]) == [[CLS, A, SEP, SEP]]
    assert other.encode_sources(["a [SEP]"]) == [[CLS, A, UNK, UNK, UNK, SEP]]
    assert codec_fingerprint(other) != codec_fingerprint(codec)


def test_minilm_encodes_past_the_128_tokens_of_its_file(minilm: TextCodec) -> None:
    assert minilm.source_tokenizer.backend_tokenizer.truncation["max_length"] == 128
    text = "the cat sat on the mat . " * 100
    assert [len(ids) for ids in minilm.encode_sources([text, "a"])] == [702, 3]
    assert [len(ids) for ids in minilm.encode_targets([text, "a"])] == [701, 2]
    assert minilm.encode_sources(["a"]) == [[101, 1037, 102]]


def test_a_tokenizer_without_special_tokens_is_cut_to_its_first_tokens(codec: TextCodec) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = models.BPE(vocab={"x": 5, "y": 6, "z": 7, " w": 8}, merges=[])  # drops what it does not know, `a` too
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    codec = replace(codec, source_tokenizer=bare, target_tokenizer=bare)
    assert codec.num_source_specials == 0
    assert codec.cut_source(codec.encode_sources(["xyz"])[0], 2) == [5, 6]
    assert codec.decode([8]) == "w"


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7, 99])
def test_cutting_keeps_the_last_special_token(codec: TextCodec, limit: int) -> None:
    [ids] = codec.encode_sources(["the cats sat."])
    assert codec.cut_source(ids, limit) == [CLS, *[THE, CAT, S, SAT, STOP][: limit - 2], SEP]
    [ids] = codec.encode_targets(["the cats sat."])
    assert codec.cut_target(ids, limit) == [*[THE, CAT, S, SAT, STOP][: limit - 1], SEP]


def test_a_slow_tokenizer_is_refused(codec: TextCodec) -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match="ByT5Tokenizer: expected a fast tokenizer; it has no tokenizers backend"):
        replace(codec, source_tokenizer=ByT5Tokenizer()).encode_sources(["a"])


# The split


def test_a_split_holds_tokens_and_lengths_in_the_order_of_the_rows(rows: Rows, codec: TextCodec) -> None:
    split = encoded(rows, codec)
    sources, targets = as_lists(split)
    assert sources == [[CLS, THE, CAT, SAT, SEP], [CLS, THE, DOG, S, RAN, STOP, SEP], [CLS, CAT, SEP]]
    assert targets == [[CAT, SAT, SEP], [DOG, S, RAN, SEP], [DOG, SEP]]
    assert (split.source_lengths.tolist(), split.target_lengths.tolist()) == ([5, 7, 3], [3, 4, 2])
    assert split.source_lengths.dtype == split.target_lengths.dtype == split.source_ids[0].dtype == np.int32
    assert (len(split), split.rows, split.num_truncated_sources, split.num_truncated_targets) == (3, rows, 0, 0)


def test_examples_are_taken_in_any_order_and_more_than_once(rows: Rows, codec: TextCodec) -> None:
    split = encoded(rows, codec)
    sources, targets = split.take(np.array([2, 0, 2]))
    assert [ids.tolist() for ids in sources] == [[CLS, CAT, SEP], [CLS, THE, CAT, SAT, SEP], [CLS, CAT, SEP]]
    assert [ids.tolist() for ids in targets] == [[DOG, SEP], [CAT, SAT, SEP], [DOG, SEP]]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"example {index}: expected 0..2"):
            split.source_ids[index]


def test_examples_are_found_across_batches(codec: TextCodec, tmp_path: Path) -> None:
    words = ["a", "b", "c"]
    many = pairs(*((" ".join(words[: 1 + n % 3]), words[n % 3]) for n in range(2501)))
    for split in (encoded(many, codec), encoded(many, codec, cache_dir=tmp_path, cache_key="k")):
        assert len(split.tokens.table.column("source_ids").chunks) == 3
        for n in (0, 999, 1000, 1999, 2000, 2500):
            assert split.source_ids[n].tolist() == [CLS, *[A, B, C][: 1 + n % 3], SEP]
            assert split.target_ids[n].tolist() == [[A, B, C][n % 3], SEP]
        assert split.source_lengths.tolist() == [3 + n % 3 for n in range(2501)]


def test_truncation_is_counted_and_keeps_the_ends(rows: Rows, codec: TextCodec) -> None:
    split = encoded(rows, codec, Limits(4, 3, Overlong.truncate))
    sources, targets = as_lists(split)
    assert sources == [[CLS, THE, CAT, SEP], [CLS, THE, DOG, SEP], [CLS, CAT, SEP]]
    assert targets == [[CAT, SAT, SEP], [DOG, S, SEP], [DOG, SEP]]
    assert (split.num_truncated_sources, split.num_truncated_targets) == (2, 1)
    assert split.rows.sources == rows.sources


def test_refused_overlong_pairs_are_named_and_counted_on_both_sides(rows: Rows, codec: TextCodec) -> None:
    assert len(encoded(rows, codec, Limits(7, 4, Overlong.refuse))) == 3  # exactly the longest
    with pytest.raises(DataError) as caught:
        encoded(rows, codec, Limits(4, 3, Overlong.refuse))
    assert str(caught.value).split("\n") == [
        "task.max_source_tokens: expected at most 4 tokens, got 5; train has 2 source(s) above it, the first is "
        "example 'x'. Raise task.max_source_tokens, or set task.overlong=truncate.",
        "task.max_target_tokens: expected at most 3 tokens, got 4; train has 1 target(s) above it, the first is "
        "example 'y'. Raise task.max_target_tokens, or set task.overlong=truncate.",
    ]


def test_a_source_limit_without_room_for_a_token_is_refused(rows: Rows, codec: TextCodec) -> None:
    with pytest.raises(ConfigError, match="task.max_source_tokens: expected 3 or more, got 2; 2 of them are spec"):
        encoded(rows, codec, Limits(2, 9, Overlong.truncate))


EMPTY = "expected a text; no token is left of it but special ones."


@pytest.mark.parametrize(
    ("pair", "place"),
    [
        (("\u200b", "a"), "source"),  # the normaliser drops it: no white space for Python
        (("[SEP] [PAD]", "a"), "source"),
        (("[SEP] [SEP] [SEP] a", "a"), "source"),  # nothing is left of it after truncation to 4
        (("a", "\u200b\ufeff"), "target"),
        (("a", "[SEP] [CLS]"), "target"),
    ],
)
def test_a_text_without_tokens_is_refused(codec: TextCodec, pair: tuple[str, str], place: str) -> None:
    with pytest.raises(DataError) as caught:
        encoded(pairs(("a", "b"), pair), codec, Limits(4, 4, Overlong.truncate))
    assert str(caught.value) == f"train:example 'r1':{place}: {EMPTY}"


def test_an_end_token_that_the_tokenizer_does_not_call_special_is_no_text(codec: TextCodec) -> None:
    with pytest.raises(DataError, match=f"example 'r0':target: {EMPTY}"):
        encoded(pairs(("a", "\u200b")), replace(codec, eos_id=STOP))


def test_five_texts_without_tokens_are_shown_and_all_are_counted(codec: TextCodec) -> None:
    with pytest.raises(DataError) as caught:
        encoded(pairs(*[("\u200b", "a")] * 7), codec)
    lines = [f"train:example 'r{n}':source: {EMPTY}" for n in range(5)]
    assert str(caught.value).split("\n") == [*lines, "train: 2 more sources without tokens."]


def test_words_that_the_vocabulary_lacks_are_text(codec: TextCodec) -> None:
    assert as_lists(encoded(pairs(("👩‍👩‍👧", "שלום")), codec)) == ([[CLS, UNK, SEP]], [[UNK, SEP]])


# The cache


def test_the_cache_is_used_again_and_says_the_same(
    rows: Rows, codec: TextCodec, tmp_path: Path, counted: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    limits = Limits(4, 3, Overlong.truncate)
    fresh = encoded(rows, codec, limits)
    for _ in range(3):
        split = encoded(rows, codec, limits, cache_dir=tmp_path / "ünï x", cache_key="k")
        assert as_lists(split) == as_lists(fresh)
        assert (split.num_truncated_sources, split.num_truncated_targets) == (2, 1)
        assert split.tokens.pages is not None  # memory-mapped
        assert split.tokens.lengths.tolist() == [[4, 3], [4, 3], [3, 2]]
    assert counted == ["train"] * 2  # the one without a cache, and the first with one
    assert [path.name for path in (tmp_path / "ünï x" / "tokens").iterdir()] == ["k"]
    assert capfd.readouterr() == ("", "")


def arrow_file(folder: Path) -> Path:
    [path] = folder.glob("*.arrow")
    return path


def zero_middle(folder: Path) -> None:
    path = arrow_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 32] = bytes(32)
    path.write_bytes(data)
    os.utime(path, (1, 1))  # the clock of a file system may tick too slowly for a test


DAMAGE = {
    "cut": lambda folder: os.truncate(arrow_file(folder), arrow_file(folder).stat().st_size - 8),
    "zeroed": zero_middle,
    "no shard": lambda folder: arrow_file(folder).unlink(),
    "no lengths": lambda folder: (folder / "lengths.npy").unlink(),
    "one file more": lambda folder: (folder / "more").touch(),
    "no manifest": lambda folder: (folder / "MANIFEST.json").unlink(),
    "cut manifest": lambda folder: os.truncate(folder / "MANIFEST.json", 20),
    "list manifest": lambda folder: (folder / "MANIFEST.json").write_text("[]"),
    "empty manifest": lambda folder: (folder / "MANIFEST.json").write_text("{}"),
    "other rows": lambda folder: (folder / "MANIFEST.json").write_text('{"rows": 4}'),
    "only a folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(
    rows: Rows, codec: TextCodec, tmp_path: Path, counted: list[str], damage: str
) -> None:
    good = as_lists(encoded(rows, codec, cache_dir=tmp_path, cache_key="k"))
    folder = tmp_path / "tokens" / "k"
    DAMAGE[damage](folder)
    for _ in range(2):
        assert as_lists(encoded(rows, codec, cache_dir=tmp_path, cache_key="k")) == good
    assert counted == ["train"] * 2  # the second of the two found it whole
    assert [path.name for path in folder.parent.iterdir()] == ["k"]


def test_a_folder_that_cannot_be_written_is_named(rows: Rows, codec: TextCodec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.cache_dir: expected a folder to write to, got '.*file'; .* Not a dir"):
        encoded(rows, codec, cache_dir=tmp_path / "file", cache_key="k")


@pytest.mark.faults
def test_a_full_disk_leaves_nothing_behind(
    rows: Rows, codec: TextCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("encdec_train.data.preprocess.np.save", fill)  # after the tokens, half of the folder
    with pytest.raises(ConfigError, match="No space left on device. Free space there or set run.cache_dir"):
        encoded(rows, codec, cache_dir=tmp_path, cache_key="k")
    assert list((tmp_path / "tokens").iterdir()) == []


@pytest.mark.faults
def test_without_locks_whoever_comes_second_leaves_the_first_ones_folder(
    rows: Rows, codec: TextCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, inodes = preprocess._encoded, []

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(preprocess, "_encoded", original)
        encoded(rows, codec, cache_dir=tmp_path, cache_key="k")  # another process, meanwhile
        inodes.append((tmp_path / "tokens" / "k").stat().st_ino)
        return original(*args)

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(preprocess, "_encoded", overtaken)
    split = encoded(rows, codec, cache_dir=tmp_path, cache_key="k")
    assert as_lists(split) == as_lists(encoded(rows, codec))
    assert inodes == [(tmp_path / "tokens" / "k").stat().st_ino]
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["k"]


NUM_ROUNDS = 20


def build_often(cache: Path, rows: Rows, codec: TextCodec, start: Any) -> None:
    expected = as_lists(encoded(rows, codec))
    start.wait()
    for index in range(NUM_ROUNDS):
        split = encoded(rows, codec, cache_dir=cache, cache_key=f"k{index}")
        if as_lists(split) != expected:
            raise SystemExit(3)


@pytest.mark.faults
def test_two_processes_that_build_at_once_leave_whole_caches(letters: TextCodec, tmp_path: Path) -> None:
    rows = pairs(*((f"the {'cat ' * (n % 5)}sat", "the dog") for n in range(200)))
    for index in range(0, NUM_ROUNDS, 2):  # every other one is there already, and damaged
        (tmp_path / "tokens" / f"k{index}").mkdir(parents=True)
        (tmp_path / "tokens" / f"k{index}" / "MANIFEST.json").touch()
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    processes = [context.Process(target=build_often, args=(tmp_path, rows, letters, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    folders = {tmp_path / "tokens" / f"k{index}" for index in range(NUM_ROUNDS)}
    assert set((tmp_path / "tokens").iterdir()) == folders
    assert all((store.facts(folder) or {})["rows"] == len(rows) for folder in folders)


def test_a_split_is_pickled_by_the_name_of_its_file(codec: TextCodec, tmp_path: Path) -> None:
    rows = pairs(*[("a b c", "the cat")] * 3000)
    split = encoded(rows, codec, cache_dir=tmp_path, cache_key="k")
    data = pickle.dumps(split.source_ids)
    assert len(data) < 4000 < split.source_lengths.sum()
    assert pickle.loads(data)[2999].tolist() == [CLS, A, B, C, SEP]
    in_memory = pickle.loads(pickle.dumps(encoded(rows, codec).target_ids))
    assert in_memory[2999].tolist() == [THE, CAT, SEP]


# The keys


def test_every_part_of_a_codec_is_in_its_fingerprint(codec: TextCodec, letters: TextCodec) -> None:
    ids = ("decoder_start_id", "eos_id", "pad_id", "source_pad_id")
    changed = [replace(codec, **{name: 9}) for name in ids]
    changed += [replace(codec, **{name: letters.source_tokenizer}) for name in ("source_tokenizer", "target_tokenizer")]
    assert len({codec_fingerprint(one) for one in [codec, *changed]}) == 7


def test_every_part_of_the_key_counts() -> None:
    keys = [preprocess.split_key(rows, codec, limits) for rows in "ab" for codec in "ab" for limits in (
        ROOMY, Limits(31, 32, Overlong.refuse), Limits(32, 31, Overlong.refuse), Limits(32, 32, Overlong.truncate)
    )]  # fmt: skip
    assert len(set(keys)) == 16
    assert all(len(key) == 64 for key in keys)


@pytest.mark.skipif("ENCDEC_DATA" not in os.environ, reason="ENCDEC_DATA is not set: no real data")
def test_real_pairs_are_counted_as_the_plain_tokenizer_counts_them(minilm: TextCodec, tmp_path: Path) -> None:
    path, plain = Path(os.environ["ENCDEC_DATA"]) / "cnn_dailymail/validation.jsonl.gz", minilm.source_tokenizer
    rows = load_file(path, ("source", "target"), key="task.validation_file")
    split = encoded(rows, minilm, Limits(512, 64, Overlong.truncate), cache_dir=tmp_path, cache_key="k")
    expected = [plain(text, truncation=True, max_length=512)["input_ids"] for text in rows.sources]
    assert [ids.tolist() for ids in split.take(range(100))[0]] == expected
    full = [len(plain(text, add_special_tokens=False)["input_ids"]) + 1 for text in rows.targets]
    assert split.target_lengths.tolist() == [min(length, 64) for length in full]
    assert split.num_truncated_targets == sum(length > 64 for length in full)
