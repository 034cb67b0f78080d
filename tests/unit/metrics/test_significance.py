"""The tests of a difference beside sacreBLEU's own, beside exact enumeration, and with several runs a side."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from encdec_train.metrics import METRICS
from encdec_train.metrics import significance as module
from encdec_train.metrics.score import score
from encdec_train.metrics.significance import Tables, paired_tests

SACREBLEU_SEED = 12345  # its default
NUM_LINES = 100
SYSTEMS = ("Online-W", "Facebook-AI", "Online-Y")
Read = Callable[[str], list[dict[str, Any]]]


def tables(texts: Sequence[str], references: Sequence[Sequence[str]], *names: str) -> Tables:
    return {name: METRICS[name].statistics(texts, references, None) for name in names}


def mean_table(scores: Sequence[float]) -> Tables:
    """Make a run whose scores of the examples are given."""
    return {"exact_match": np.column_stack([scores, np.ones(len(scores))])}


@pytest.fixture(scope="module")
def newstest(read_rows: Read) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Real outputs of three systems, with their three references."""
    rows = read_rows("newstest2021_en_de/system_outputs.jsonl.gz")[:NUM_LINES]
    return {name: [row["outputs"][name] for row in rows] for name in SYSTEMS}, [row["references"] for row in rows]


def sacrebleus(outputs: dict[str, list[str]], references: list[list[str]], num_trials: int, *kinds: str) -> Any:
    """Run sacreBLEU's randomisation test of all other systems against the first."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER
    from sacrebleu.significance import PairedTest

    scorers = {kind: {"BLEU": BLEU, "chrF2": CHRF, "TER": TER}[kind]() for kind in kinds}
    return PairedTest([*outputs.items()], scorers, list(zip(*references, strict=True)), "ar", num_trials)()[1]


NAMES = {"sacrebleu": "BLEU", "chrf": "chrF2", "ter": "TER"}


@pytest.mark.slow
def test_p_values_are_those_of_sacrebleu(newstest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    outputs, references = newstest
    runs = [tables(texts, references, *NAMES) for texts in outputs.values()]
    theirs = sacrebleus(outputs, references, 4000, *NAMES.values())
    smallest = largest = 0.05
    for index, run in enumerate(runs[1:], start=1):
        found = paired_tests([run], runs[:1], seed=SACREBLEU_SEED, num_trials=4000)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_TIE", -module._TIE)  # count what is larger
            larger = paired_tests([run], runs[:1], seed=SACREBLEU_SEED, num_trials=4000)
        for name, their_name in NAMES.items():
            assert found[name]["a"] == pytest.approx(theirs[their_name][index].score, abs=1e-9)
            assert found[name]["b"] == pytest.approx(theirs[their_name][0].score, abs=1e-9)
            theirs_p, most = theirs[their_name][index].p_value, found[name]["p"]
            least = larger[name]["p"] + 1 / 4001  # the difference itself is counted once
            assert least - 1e-9 <= theirs_p <= most + 1e-9
            if name != "ter":  # its edits are whole numbers: of ties sacreBLEU counts those that rounding makes larger
                assert least == pytest.approx(most, abs=1e-9)  # the same coins, so the very same p
            smallest, largest = min(smallest, found[name]["p"]), max(largest, found[name]["p"])
    assert smallest < 0.05 < largest  # both outcomes are among them


def test_another_seed_gives_the_same_to_within_chance(newstest: Any) -> None:
    outputs, references = newstest
    runs = [tables(texts, references, "chrf") for texts in outputs.values()]
    results = sacrebleus(outputs, references, 2000, "chrF2")["chrF2"]
    for index in (1, 2):
        theirs = results[index].p_value
        ours = paired_tests([runs[index]], runs[:1], seed=7, num_trials=2000)["chrf"]["p"]
        assert ours == pytest.approx(theirs, abs=4 * (2 * theirs * (1 - theirs) / 2000) ** 0.5)


def test_the_interval_is_that_of_sacrebleus_resamples(newstest: Any) -> None:
    from sacrebleu.metrics.bleu import BLEU

    (one, other, _), references = list(newstest[0].values()), newstest[1]
    scorer, streams = BLEU(), list(zip(*references, strict=True))
    stats = [np.array(scorer._extract_corpus_statistics(texts, streams), dtype="float32") for texts in (one, other)]
    drawn = np.random.default_rng(SACREBLEU_SEED).choice(NUM_LINES, size=(500, NUM_LINES), replace=True)
    left, right = ([scorer._compute_score_from_stats(rows.sum(0)).score for rows in own[drawn]] for own in stats)
    found = paired_tests(
        [tables(one, references, "sacrebleu")], [tables(other, references, "sacrebleu")],
        seed=SACREBLEU_SEED, num_trials=1, num_resamples=500,
    )["sacrebleu"]  # fmt: skip
    assert found["ci95"] == pytest.approx(np.percentile(np.subtract(left, right), [2.5, 97.5]), abs=1e-4)


def test_equal_systems_have_a_p_of_1_where_sacrebleu_gives_its_least(newstest: Any) -> None:
    outputs, references = newstest
    run = tables(outputs["Online-W"], references, "sacrebleu", "ter", "rouge1")
    for found in paired_tests([run], [run], seed=0, num_trials=200, num_resamples=20).values():
        assert (found["difference"], found["ci95"], found["p"]) == (0, [0, 0], 1)
    theirs = sacrebleus(dict.fromkeys(("one", "again"), outputs["Online-W"]), references, 200, "BLEU")
    assert theirs["BLEU"][1].p_value == 1 / 201  # it counts only what is larger than the difference


def test_clearly_different_systems_have_the_least_p(newstest: Any) -> None:
    outputs, references = newstest
    good = tables(outputs["Online-W"], references, "sacrebleu", "ter", "rouge1")
    bad = tables([" ".join(text.split()[::2]) for text in outputs["Online-W"]], references, *good)
    found = paired_tests([good], [bad], seed=0, num_trials=500, num_resamples=50)
    for name, one in found.items():
        assert one["p"] == 1 / 501, name
        assert one["ci95"][0] <= one["difference"] <= one["ci95"][1]
    assert found["ter"]["difference"] < 0 < found["sacrebleu"]["difference"]


def exact_p(differences: Sequence[float]) -> float:
    """Go through all exchanges: the share with a mean difference at least as large."""
    observed = abs(sum(differences))
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    return float(np.mean([total >= observed - 1e-12 for total in sums]))


@pytest.mark.parametrize("differences", [[3, 1, 4, 1, 5, -9, 2, 6], [1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1, 0]])
def test_p_is_the_exact_one_to_within_chance(differences: list[float]) -> None:
    runs = [mean_table([10.0 + one for one in differences])], [mean_table([10.0] * len(differences))]
    expected = exact_p(differences)
    found = paired_tests(*runs, seed=1, num_trials=20_000, num_resamples=1)["exact_match"]["p"]
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5 + 1e-4)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(0)
    found = [
        paired_tests(*([mean_table(generator.normal(size=60).tolist())] for _ in "ab"),
                     seed=seed, num_trials=199, num_resamples=1)["exact_match"]["p"] for seed in range(400)
    ]  # fmt: skip
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=4 * (level * (1 - level) / 400) ** 0.5)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    generator = np.random.default_rng(3)
    a, b = (generator.normal(size=400) for _ in "ab")
    found = paired_tests([mean_table(a)], [mean_table(b)], seed=0, num_trials=1, num_resamples=4000)["exact_match"]
    half = 196 * np.std(a - b) / 20  # scores on 0-100
    assert found["difference"] == pytest.approx(100 * (a - b).mean())
    assert found["ci95"] == pytest.approx([found["difference"] - half, found["difference"] + half], abs=0.06 * half)


def test_the_examples_drawn_are_those_of_the_scores_own_intervals() -> None:
    texts, references = ["a b c d", "a b x d", "", "x y z", "a b c"], [["a b c d"]] * 5
    nothing = {"chrf": np.zeros((5, 18))}  # scores 0
    alone = score(texts, references, None, ["chrf"], seed=5)["chrf"]
    found = paired_tests([tables(texts, references, "chrf")], [nothing], seed=5, num_trials=1)["chrf"]
    assert (found["difference"], found["ci95"]) == (alone["value"], pytest.approx(alone["ci95"]))


# Several runs a side.


def test_copies_of_a_run_are_no_evidence(newstest: Any) -> None:
    outputs, references = newstest
    a, b = (tables(outputs[name], references, "sacrebleu", "ter", "rouge1") for name in SYSTEMS[1:])
    plain = paired_tests([a], [b], seed=0, num_trials=300, num_resamples=50)
    for num_a, num_b in ((3, 3), (2, 5), (1, 3)):
        pooled = paired_tests([a] * num_a, [b] * num_b, seed=0, num_trials=300, num_resamples=50)
        for name, found in pooled.items():
            assert found["p"] == plain[name]["p"], name
            assert found["ci95"] == pytest.approx(plain[name]["ci95"], abs=1e-9)
            assert found["difference"] == pytest.approx(plain[name]["difference"], abs=1e-9)


@pytest.mark.parametrize("shared", [0, 1])
def test_false_alarms_are_as_rare_as_they_should_be(shared: float) -> None:
    # equal systems of three runs; with `shared` the runs of a system agree beyond what is in the example
    generator, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        sides = [shared * generator.normal(size=60) + generator.normal(size=(3, 60)) for _ in "ab"]
        runs = [[mean_table(run) for run in side] for side in sides]
        alarms += paired_tests(runs[0], runs[1], 0, num_trials=199, num_resamples=1)["exact_match"]["p"] <= 0.05
    assert alarms / 300 == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 300) ** 0.5)


def test_the_effect_is_the_difference_of_the_means_over_runs() -> None:
    a = [mean_table([0.2, 0.4]), mean_table([0.4, 0.6]), mean_table([0.9, 0.9])]
    b = [mean_table([0.1, 0.1]), mean_table([0.2, 0.4])]
    found = paired_tests(a, b, seed=0, num_trials=10, num_resamples=10)["exact_match"]
    assert (found["a"], found["b"]) == (pytest.approx((30 + 50 + 90) / 3), pytest.approx((10 + 30) / 2))
    assert found["difference"] == pytest.approx(170 / 3 - 20)


def test_p_with_several_runs_is_that_of_their_means_for_a_mean() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.1, 1, (3, 80)), generator.normal(0, 1, (2, 80))
    pooled = paired_tests([mean_table(run) for run in a], [mean_table(run) for run in b], seed=4, num_resamples=1)
    plain = paired_tests([mean_table(a.mean(axis=0))], [mean_table(b.mean(axis=0))], seed=4, num_resamples=1)
    assert pooled["exact_match"]["p"] == plain["exact_match"]["p"]


def test_the_interval_has_the_seeds_share() -> None:
    # runs that differ by their seed alone, the same on all examples: what is left is the variance of the drawn runs
    levels_a, levels_b = [0.1, 0.2, 0.6], [0.3, 0.4]
    a, b = ([mean_table([level] * 50) for level in levels] for levels in (levels_a, levels_b))
    found = paired_tests(a, b, seed=0, num_trials=1, num_resamples=5000)["exact_match"]
    means_a = [100 * np.mean(drawn) for drawn in product(levels_a, repeat=3)]
    means_b = [100 * np.mean(drawn) for drawn in product(levels_b, repeat=2)]
    every = np.subtract.outer(np.repeat(means_a, 4), np.repeat(means_b, 27)).ravel()
    assert found["ci95"] == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=3.4)  # a step of 10 / 3 between values
    alone = paired_tests(a[:1], b[:1], seed=0, num_trials=1, num_resamples=50)["exact_match"]
    assert alone["ci95"] == pytest.approx([-20, -20])


def test_a_count_of_nothing_stays_nothing_when_runs_are_pooled() -> None:
    # a side that loses all of its few counts has 0 left, not 1e-16, which BLEU's smoothing of a count of 0 would miss
    for seed in range(3):
        generator = np.random.default_rng(seed)
        a = (generator.random((3, 40, 5)) < 0.04) * generator.integers(1, 4, (3, 40, 5)).astype(float)
        b = (generator.random((7, 40, 5)) < 0.006).astype(float)
        for side in module._swap(a, b, seed=0, num_trials=2000):
            assert np.sum(side == 0) > 300
            assert np.min(side[side != 0]) == pytest.approx(1 / 7)


def test_chunks_toss_the_same_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    runs = [[mean_table(generator.normal(size=45))] for _ in "ab"]
    whole = paired_tests(*runs, seed=0, num_trials=500, num_resamples=5)
    monkeypatch.setattr(module, "_CHUNK_TRIALS", 1000)
    assert paired_tests(*runs, seed=0, num_trials=500, num_resamples=5) == whole
    assert paired_tests(*runs, seed=1, num_trials=500, num_resamples=5) != whole
