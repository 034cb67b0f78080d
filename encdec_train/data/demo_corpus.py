"""The demo's files: the splits of pairs, and the text that the demo's checkpoint is pretrained on."""

import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

from encdec_train.data import demo
from encdec_train.data.demo import DemoSizes
from encdec_train.fingerprint import json_sha256

SPLITS = ("train", "validation", "test", "test_unseen_words")
TEXT_SEED = 1


def fingerprint(sizes: DemoSizes) -> str:
    """Name a corpus without writing it: the generator's version and the sizes decide every byte."""
    return json_sha256([demo.VERSION, asdict(sizes)])


def write_corpus(folder: Path, sizes: DemoSizes) -> dict[str, Path]:
    """Write the corpus where it is not there yet, whole or not at all; the same bytes on every platform.

    Args:
        folder: Holds a folder for each version and sizes.
        sizes: Pairs of each split, passages of the text.

    Returns:
        The file of each split by name, and the text's under `pretrain`.
    """
    place = folder / fingerprint(sizes)[:12]
    files = {name: place / f"{name}.jsonl" for name in SPLITS} | {"pretrain": place / "pretrain.txt"}
    if place.is_dir():
        return files
    beside = folder / f".{place.name}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in SPLITS:
        pairs = demo.pairs(name, getattr(sizes, name))
        records = [{"id": f"{name}-{n}", "source": pair.source, "target": pair.fused} for n, pair in enumerate(pairs)]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        _write(beside / files[name].name, lines)
    generator = random.Random(TEXT_SEED)
    _write(beside / files["pretrain"].name, [demo.passage(generator) for _ in range(sizes.pretrain_passages)])
    try:
        beside.rename(place)
    except OSError:  # another process was faster; its files are the same
        if not place.is_dir():
            raise
        shutil.rmtree(beside)
    return files


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
