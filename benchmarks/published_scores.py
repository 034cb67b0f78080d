"""Every published figure of the reference data beside ours, and what ROUGE and the bootstrap cost.

`ENCDEC_DATA=… python -m benchmarks.published_scores` (or `make published-scores`) prints expected value, ours and the
difference for each figure. Exit status: 0 all within their tolerance, 1 one is not, 2 no data.
"""

import gzip
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from encdec_train.metrics import METRICS, rouge
from encdec_train.metrics.bleu import Option, sacrebleu_metric
from encdec_train.metrics.score import _intervals
from encdec_train.metrics.spec import Metric, References, Texts

PERL = (
    "The Perl script ROUGE-1.5.5 knows the stems of irregular forms (WordNet's exceptions) and splits hyphenated words"
    " otherwise than rouge_score, whose digits are ours. How much each of the two makes was not measured."
)
NO_TER = [name for name in METRICS if name not in {"ter", "sacrebleu_ja"}]


@dataclass(frozen=True)
class Figure:
    """One published number, on the published scale, and ours."""

    what: str
    expected: float
    ours: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Ours minus the published one."""
        return self.ours - self.expected

    @property
    def met(self) -> bool:
        """Whether the two agree."""
        return abs(self.difference) <= self.tolerance


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a `.jsonl.gz`."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def value(metric: Metric | str, predictions: Texts, references: References, sources: Texts | None = None) -> float:
    """Score a corpus without interval."""
    metric = METRICS[metric] if isinstance(metric, str) else metric
    return metric.value(metric.statistics(predictions, references, sources).sum(axis=0))


def per_example(streams: Sequence[Sequence[str]]) -> list[list[str]]:
    """Turn sacreBLEU's order of references (first those of all examples, …) into ours (all of an example)."""
    return [list(texts) for texts in zip(*streams, strict=True)]


def newstest2021(data: Path, systems: Sequence[str] | None = None) -> Iterator[Figure]:
    """BLEU and chrF of WMT21's systems, to each reference and to all three; `systems` None for all."""
    folder = data / "newstest2021_en_de"
    published = json.loads((folder / "published_scores.json").read_text(encoding="utf-8"))
    references = [row["references"] for row in rows_of(folder / "test.jsonl.gz")]
    columns = {"all": references}
    columns |= {name: [[texts[i]] for texts in references] for i, name in enumerate(published["reference_names"])}
    outputs = [row["outputs"] for row in rows_of(folder / "system_outputs.jsonl.gz")]
    for system in systems or published["scores"]:
        texts = [row[system] for row in outputs]
        for key, expected in published["scores"][system].items():
            kind, column = key.split("-")
            metric = {"bleu": "sacrebleu", "chrf": "chrf"}[kind]
            yield Figure(f"{system} {key}", expected, value(metric, texts, columns[column]), 1e-9)


def newstest2017(data: Path, systems: Sequence[str] | None = None) -> Iterator[Figure]:
    """BLEU (mteval-v13a prints two decimals) and chrF (four) of WMT17's systems."""
    folder = data / "bleu_reference"
    published = json.loads((folder / "newstest2017_en_de_published.json").read_text(encoding="utf-8"))["scores"]
    rows = rows_of(folder / "newstest2017_en_de.jsonl.gz")
    references = [[row["target"]] for row in rows]
    for system in systems or published:
        texts, figures = [row["outputs"][system] for row in rows], published[system]
        bleu = value("sacrebleu", texts, references)
        yield Figure(f"{system} mteval-v13a BLEU", figures["mteval_v13a_bleu"], bleu, 0.005)
        yield Figure(f"{system} sacreBLEU 2.6.0 BLEU", figures["sacrebleu_2_6_0_bleu"], bleu, 1e-9)
        if figures["chrf"] is not None:
            yield Figure(f"{system} chrF", figures["chrf"], value("chrf", texts, references), 5e-5)


def sacrebleu_cases(data: Path) -> Iterator[Figure]:
    """The cases of sacreBLEU's own tests, with each case's options; tolerances are the digits given there."""
    cases = json.loads((data / "bleu_reference" / "sacrebleu_cases.json").read_text(encoding="utf-8"))

    def score(kind: str, case: dict[str, Any], scale: float, tolerance: float, **options: Option) -> Figure:
        options.pop("force", None)
        ours = value(sacrebleu_metric("case", kind, **options), case["hypotheses"], per_example(case["references"]))
        form = " ".join(f"{key}={option}" for key, option in options.items() if option and key != "effective_order")
        what = f"{kind} {form} {' / '.join(case['hypotheses'])[:30]!r}"
        return Figure(what, scale * case["score"], ours, tolerance)

    for case in cases["corpus_bleu"]:
        yield score("BLEU", case, 1, 1e-6, **case["options"])
    for case in cases["raw_bleu_0_1"]:
        yield score("BLEU", case, 100, 1e-6, **case["options"])
    sentence = cases["sentence_bleu"]
    texts = {"hypotheses": [sentence["hypothesis"]], "references": [[sentence["reference"]]]}
    for case in sentence["cases"]:
        options = {key: option for key, option in case.items() if key != "score"}
        yield score("BLEU", texts | {"score": case["score"]}, 1, 1e-3, effective_order=True, **options)
    for case in cases["chrf_sentence"]:
        one = {"hypotheses": [case["hypothesis"]], "references": [[text] for text in case["references"]]}
        yield score("CHRF", one | {"score": case["score"]}, 1, 1e-6, eps_smoothing=True)
    for case in cases["chrf_corpus"]:
        yield score("CHRF", case, 1, 5e-5, beta=3, eps_smoothing=True)
    for case in cases["chrf_corpus_effective_order"]:
        yield score("CHRF", case, 1, 1e-6, beta=3)
    for case in cases["ter_0_1"]:
        yield score("TER", case, 100, 0.05)


def turkcorpus(data: Path) -> Iterator[Figure]:
    """SARI of TurkCorpus systems: EASSE's test values in both forms, and those computed with its code."""
    folder = data / "turkcorpus"
    expected = json.loads((folder / "expected_sari.json").read_text(encoding="utf-8"))
    example = expected["readme_example"]
    ours = value("sari", example["sys"], per_example(example["refs"]), example["orig"])
    yield Figure("EASSE's README, sari", example["sari"], ours, 1e-4)
    for metric, name, scores in (
        ("sari_legacy", "system_outputs_legacy", expected["legacy"]),
        ("sari", "system_outputs", expected["easse"]),
        ("sari", "system_outputs", expected["computed_with_easse_code"]["scores"]),
    ):
        rows = rows_of(folder / f"{name}.jsonl.gz")
        sources, references = [row["source"] for row in rows], [row["references"] for row in rows]
        origin = "computed with EASSE" if len(scores) > 6 else "published"
        for system, score in scores.items():
            ours = value(metric, [row["outputs"][system] for row in rows], references, sources)
            yield Figure(f"{system} {metric}, {origin}", score, ours, 1e-4)


@contextmanager
def stemmer(on: bool) -> Iterator[None]:
    """Let our ROUGE keep words as they are if need be: some published cases do, our metrics never do."""
    rouge._tokenize.cache_clear()
    with nullcontext() if on else patch.object(rouge, "_stem", lambda: str):
        yield
    rouge._tokenize.cache_clear()


def rouge_cases(data: Path) -> Iterator[Figure]:
    """The small cases of google's rouge_score: the Perl script's values, Lin's example, unit tests."""
    cases = json.loads((data / "rouge_reference" / "rouge_cases.json").read_text(encoding="utf-8"))["cases"]
    for number, case in enumerate(cases):
        with stemmer(case["use_stemmer"]):
            ours = value(case["type"], [case["prediction"]], [[case["target"]]])
        stem = "" if case["use_stemmer"] else " without stemmer"
        yield Figure(f"case {number} {case['type']}{stem}, {case['note']}", 100 * case["fmeasure"], ours, 5e-4)


def summaries(data: Path) -> tuple[list[str], list[list[str]]]:
    """Return SimCLS's outputs for CNN/DailyMail and the references, one sentence a line."""
    rows = rows_of(data / "rouge_reference" / "simcls_cnndm.jsonl.gz")
    lines = [[re.sub(r" ([.!?]) ", r" \1\n", row[key]) for row in rows] for key in ("prediction", "target")]
    return lines[0], [[text] for text in lines[1]]


def rouge_corpus(data: Path) -> Iterator[Figure]:
    """ROUGE of the 11,490 outputs: rouge_score's figures (three decimals) and the Perl script's."""
    path = data / "rouge_reference" / "published_rouge.json"
    expected = json.loads(path.read_text(encoding="utf-8"))["simcls_cnndm"]
    texts, references = summaries(data)
    ours = {name: value(name, texts, references) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    for name, score in expected["python"].items():
        yield Figure(f"{name}, rouge_score 0.1.2", score, ours[name.removesuffix("_sentence")], 0.01)
    for name, score in expected["published"].items():
        ours_name = "rougeLsum" if name == "rougeL" else name  # the Perl script's ROUGE-L is the summary-level one
        yield Figure(f"{name}, the Perl script (ours: {ours_name})", score, ours[ours_name], 0.3)
    with stemmer(on=False):
        for name, score in expected["python_no_stemmer"].items():
            bare = value(name.removesuffix("_sentence"), texts, references)
            yield Figure(f"{name} without stemmer, rouge_score 0.1.2", score, bare, 0.01)


SECTIONS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "newstest2021 en-de, WMT21": newstest2021,
    "newstest2017 en-de, WMT17": newstest2017,
    "sacreBLEU's test cases": sacrebleu_cases,
    "TurkCorpus, SARI": turkcorpus,
    "rouge_score's test cases": rouge_cases,
    "CNN/DailyMail outputs of SimCLS, ROUGE": rouge_corpus,
}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds (those of the clock where a core is free; on a busy machine the fairer ones) and result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def rouge_speed(data: Path, num_sample: int = 2000, rounds: int = 3) -> bool:
    """Print what ROUGE costs beside rouge_score, and return whether all F1 of the sample are equal."""
    from rouge_score.rouge_scorer import RougeScorer

    texts, references = summaries(data)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]

    def ours(count: int) -> list[list[float]]:
        rouge._tokenize.cache_clear()
        rouge._stem.cache_clear()
        tables = [METRICS[name].statistics(texts[:count], references[:count], None) for name in names]
        return [table[:, 0].tolist() for table in tables]

    def theirs() -> list[list[float]]:
        scorer = RougeScorer(names, use_stemmer=True)
        found = [
            scorer.score(ref[0], hyp) for hyp, ref in zip(texts[:num_sample], references[:num_sample], strict=True)
        ]
        return [[one[name].fmeasure for one in found] for name in names]

    whole = min(timed(lambda: ours(len(texts)))[0] for _ in range(rounds))
    pairs = [(timed(lambda: ours(num_sample)), timed(theirs)) for _ in range(rounds)]
    equal = all(mine[1] == other[1] for mine, other in pairs)
    mine, other = (min(pair[side][0] for pair in pairs) for side in (0, 1))
    print(
        f"ROUGE-1, -2, -L, -Lsum, CPU seconds of one process, empty caches, fastest of {rounds} rounds that alternate:"
    )
    print(f"  {len(texts):,} outputs: {whole:.1f} s")
    print(f"  {num_sample} outputs: {mine:.2f} s; rouge_score {other:.2f} s, {other / mine:.1f} times as long")
    print(f"  F1 of {num_sample} outputs x {len(names)}: {'all digits equal' if equal else 'DIFFERENT'}")
    return equal


def bootstrap_speed(data: Path) -> None:
    """Print what statistics cost on sentences, and 1,000 resamples of 10,000 pairs for all metrics."""
    rows = rows_of(data / "bleu_reference" / "newstest2017_en_de.jsonl.gz")
    texts, sources = ([row["outputs"][key] for row in rows] for key in list(rows[0]["outputs"])[:2])
    references, tables = [[row["target"]] for row in rows], {}
    print(f"statistics of {len(rows):,} sentences, CPU seconds:", end="")
    for name in NO_TER:
        seconds, table = timed(lambda name=name: METRICS[name].statistics(texts, references, sources))
        tables[name] = np.resize(table, (10_000, table.shape[1]))  # rows repeat; what they say does not matter here
        print(f" {name} {seconds:.2f}", end="")
    seconds, _ = timed(lambda: METRICS["ter"].statistics(texts[:300], references[:300], None))
    print(f"; ter, 300 sentences {seconds:.2f}")
    seconds, _ = timed(lambda: _intervals({"sacrebleu": tables["sacrebleu"]}, 0, 1000))
    print(f"bootstrap, 10,000 pairs x 1,000 resamples: {seconds:.2f} CPU seconds for sacrebleu alone", end="")
    seconds, _ = timed(lambda: _intervals(tables, 0, 1000))
    print(f", {seconds:.2f} for {len(tables)} metrics together")


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print a section."""
    width = max(len(figure.what) for figure in figures)
    print(f"\n{name}\n{'':{width}}  {'expected':>12} {'ours':>12} {'difference':>11} {'tolerance':>9}")
    for one in figures:
        numbers = f"{one.expected:12.6f} {one.ours:12.6f} {one.difference:+11.1e} {one.tolerance:9.0e}"
        print(f"{one.what:{width}}  {numbers}{'' if one.met else '  OUTSIDE'}")


def main() -> int:
    """Print all sections, a summary and the times."""
    if not os.environ.get("ENCDEC_DATA") or not (data := Path(os.environ["ENCDEC_DATA"])).is_dir():
        print("ENCDEC_DATA: expected the folder with the published figures", file=sys.stderr)
        return 2
    versions = ", ".join(f"{name} {version(name)}" for name in ("sacrebleu", "rouge_score", "nltk", "numpy"))
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    found = {name: list(section(data)) for name, section in SECTIONS.items()}
    for name, figures in found.items():
        show(name, figures)
    print(f"\n{PERL}\n\nsummary: figures, outside their tolerance, largest difference")
    for name, figures in found.items():
        for tolerance in sorted({figure.tolerance for figure in figures}):
            group = [figure for figure in figures if figure.tolerance == tolerance]
            outside, largest = sum(not one.met for one in group), max(abs(one.difference) for one in group)
            print(f"  {name}, tolerance {tolerance:g}: {len(group)}, {outside}, {largest:.1e}")
    print()
    equal = rouge_speed(data)
    bootstrap_speed(data)
    return 0 if equal and all(figure.met for figures in found.values() for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
