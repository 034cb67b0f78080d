"""The data sets of the tasks as they lie on the Hub: their columns, types, folders and odd rows, and few of them."""

import zipfile
from pathlib import Path
from typing import Any

from hub.server import Hub

from encdec_train.compose import compose
from encdec_train.data.load import Rows
from encdec_train.data.sources import splits_of

CNN = ("abisee/cnn_dailymail", "3.0.0")
XSUM = "EdinburghNLP/xsum"
GIGAWORD = "Harvard/gigaword"
DISCOFUSE = "google-research-datasets/discofuse"
SIZES = {"train": 12, "validation": 4, "test": 5}


def articles(split: str, size: int) -> list[dict[str, Any]]:
    return [
        {
            "article": f'LONDON, England (CNN) -- {split} story {n} .\nIt\'s "new" .',
            "highlights": f"The {split} story {n} .\nA second line of it .",
            "id": f"{split}{n:037d}",
        }
        for n in range(size)
    ]


def documents(split: str, size: int) -> list[dict[str, Any]]:
    return [
        {
            "document": f"The {split} club said {n}.\nMore was “said”.",
            "summary": f"A club has said {n}.",
            "id": f"{split[:2]}{n}",
        }
        for n in range(size)
    ]


def headlines(split: str, size: int) -> list[dict[str, Any]]:
    text = f"{split} shares rose UNK #.# percent -lrb-"
    return [{"document": f"{text} {n} -rrb- .", "summary": f"shares rise {n}"} for n in range(size)]


def translations(split: str, size: int) -> list[dict[str, Any]]:
    texts = [(f"Haus „{split}“ {n} ist grün.", f"House “{split}” {n} is green.") for n in range(size)]
    return [{"translation": {"de": german, "en": english}} for german, english in texts]


def fusions(split: str, size: int) -> list[dict[str, Any]]:
    """Every third pair is fused into one sentence, whose second one is then empty."""
    return [
        {
            "connective_string": "because" if n % 3 == 0 else "However ,",
            "discourse_type": "SINGLE_S_COORD" if n % 3 == 0 else "PAIR_CONN",
            "coherent_second_sentence": "" if n % 3 == 0 else f'However , he " ran {n} .',
            "has_coref_type_pronoun": 1.0,
            "incoherent_first_sentence": f"The {split} man sat {n} .",
            "incoherent_second_sentence": f'The man " ran {n} .',
            "has_coref_type_nominal": 0.0,
            "coherent_first_sentence": f"The {split} man sat {'because he ran ' if n % 3 == 0 else ''}{n} .",
        }
        for n in range(size)
    ]


def split_lines(split: str, size: int) -> list[str]:
    """Lines of the original files; quotes at the start of a field are characters like any other."""
    return [f"\" {split} {n} , '' a '' and b .\t\" {split} {n} , '' a '' . <::::> And b ." for n in range(size)]


def features(kind: str) -> Any:
    """The types that the data sets' own metadata gives to their columns."""
    from datasets import Features, Translation, Value

    text = Value("string")
    return {
        "cnn": Features({"article": text, "highlights": text, "id": text}),
        "xsum": Features({"document": text, "summary": text, "id": text}),
        "gigaword": Features({"document": text, "summary": text}),
        "wmt": Features({"translation": Translation(languages=["de", "en"])}),
        "discofuse": Features({
            "connective_string": text, "discourse_type": text, "coherent_second_sentence": text,
            "has_coref_type_pronoun": Value("float32"), "incoherent_first_sentence": text,
            "incoherent_second_sentence": text, "has_coref_type_nominal": Value("float32"),
            "coherent_first_sentence": text,
        }),
    }[kind]  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features(kind)).to_parquet(str(path))


def card(folder: Path, config: str, prefix: str, splits: dict[str, str]) -> None:
    """Write the part of a README.md from which `datasets` takes the files of each split."""
    files = "".join(f"  - split: {split}\n    path: {prefix}{pattern}\n" for split, pattern in splits.items())
    text = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(text)


def add_plain(hub: Hub, place: Path, name: str, config: str, kind: str, make: Any) -> str:
    """Serve `<config>/<split>-00000-of-0000N.parquet`; the training split is in two files."""
    folder = place / name.replace("/", "--")
    prefix = f"{config}/"
    for split, size in SIZES.items():
        rows = make(split, size)
        shards = [rows[: size // 2], rows[size // 2 :]] if split == "train" else [rows]
        for n, shard in enumerate(shards):
            write_parquet(folder / f"{prefix}{split}-{n:05d}-of-{len(shards):05d}.parquet", shard, kind)
    card(folder, config, prefix, {split: f"{split}-*" for split in SIZES})
    return hub.add(name, folder, kind="datasets")


def add_all(hub: Hub, place: Path) -> None:
    """Serve every data set of the tasks, and WikiSplit's original files at `<hub.endpoint>/files/`."""
    add_plain(hub, place, CNN[0], CNN[1], "cnn", articles)
    add_plain(hub, place, XSUM, "data", "xsum", documents)
    add_plain(hub, place, "wmt/wmt14", "de-en", "wmt", translations)
    add_plain(hub, place, DISCOFUSE, "discofuse-wikipedia", "discofuse", fusions)
    write_parquet(place / "wmt16" / "de-en" / "test-00000-of-00001.parquet", translations("2016", 3), "wmt")
    hub.add("wmt/wmt16", place / "wmt16", kind="datasets")
    script, converted = place / "gigaword", place / "gigaword-converted"
    script.mkdir(parents=True)
    (script / "gigaword.py").write_text("raise SystemExit('a builder script was run')\n")
    hub.add(GIGAWORD, script, kind="datasets")
    for split, size in SIZES.items():
        write_parquet(converted / "default" / split / "0000.parquet", headlines(split, size), "gigaword")
    hub.add(GIGAWORD, converted, kind="datasets", revision="refs/convert/parquet")
    add_wikisplit(hub, place / "wiki-split")


def add_wikisplit(hub: Hub, folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        file = folder / f"{split}.tsv"
        file.write_text("".join(f"{line}\n" for line in split_lines(split, size)), encoding="utf-8")
        if split == "train":
            with zipfile.ZipFile(folder / "train.tsv.zip", "w", zipfile.ZIP_DEFLATED) as packed:
                packed.write(file, "train.tsv")
            file = folder / "train.tsv.zip"
        hub.files[file.name] = file


def rows(task: str, cache: Path, *overrides: str) -> dict[str, Rows]:
    """Load every split of a task."""
    config = compose("train", [f"task={task}", "model.encoder=bert", *overrides]).task
    return {name: split.load() for name, split in splits_of(config, cache).items()}
