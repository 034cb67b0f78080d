import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import encdec_train
from encdec_train import api, comparison, evaluation, run, session
from encdec_train.cluster import bundle
from encdec_train.compose import compose
from encdec_train.config import GenerateConfig, to_dict
from encdec_train.doctor import preflight
from encdec_train.errors import ConfigError, DataError, ModelError
from encdec_train.serving.generate import CHUNK


def test_the_verbs_are_importable_from_the_package() -> None:
    assert sorted(encdec_train.__all__) == [
        "bundle", "compare", "evaluate", "generate", "load", "pipeline", "score", "train", "verify", "warm_start",
    ]  # fmt: skip
    for name in encdec_train.__all__:
        assert getattr(encdec_train, name) is getattr(api, name)


def test_another_name_is_none_of_the_package() -> None:
    with pytest.raises(AttributeError, match="module 'encdec_train' has no attribute 'trian'"):
        _ = encdec_train.trian


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, encdec_train; encdec_train.train; print(sorted({'hydra', 'torch', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (run, "train", ["seed=3"]),
        (evaluation, "evaluate", ["checkpoint=x"]),
        (evaluation, "score", ["predictions=x"]),
        (comparison, "compare", ["a=x", "b=[y,z]"]),
        (session, "make_bundle", ["bundle.path=x"]),
        (bundle, "say_verified", ["bundle.path=x"]),
    ],
)
def test_a_function_is_its_verb(module: Any, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(module, name, lambda *given_now: given.extend(given_now) or "the answer")
    verb = {"make_bundle": "bundle", "say_verified": "verify"}.get(name, name)
    assert getattr(encdec_train, verb)(*arguments) == (None if verb == "verify" else "the answer")
    assert to_dict(given[0]) == to_dict(compose(verb, arguments))
    assert given[1:] == ([preflight] if name == "train" else [])


@pytest.mark.parametrize(
    ("name", "text"), [("train", "seed: expected"), ("evaluate", "checkpoint: expected"), ("score", "predictions: exp")]
)
def test_bad_input_is_one_clear_exception(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{text}"):
        getattr(encdec_train, name)(*(["seed=x"] if name == "train" else []))


class Shouting:
    """Stands in for a generator: upper case, and the sizes of the chunks that it was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, texts: Sequence[str]) -> list[str]:
        self.sizes.append(len(texts))
        return [text.upper() for text in texts]


@pytest.fixture
def shouting(monkeypatch: pytest.MonkeyPatch) -> tuple[Shouting, list[GenerateConfig]]:
    generator, given = Shouting(), list[GenerateConfig]()
    monkeypatch.setattr(api, "build_generator", lambda config: given.append(config) or generator)
    return generator, given


def test_generate_gives_an_output_a_text_in_order(shouting: tuple[Shouting, list[GenerateConfig]]) -> None:
    generator, given = shouting
    texts = [f"text {number}" for number in range(2 * CHUNK + 5)]
    assert list(api.generate(iter(texts), "x", "decoding.num_beams=2")) == [text.upper() for text in texts]
    assert generator.sizes == [CHUNK, CHUNK, 5]
    assert (given[0].checkpoint, given[0].decoding.num_beams) == ("x", 2)


def test_generate_reads_no_further_than_a_chunk(shouting: tuple[Shouting, list[GenerateConfig]]) -> None:
    endless: Iterator[str] = (f"text {number}" for number in itertools.count())
    assert next(api.generate(endless, "x")) == "TEXT 0"
    assert next(endless) == f"text {CHUNK}"


@pytest.mark.parametrize("name", ["a b", 'say "x"', "back\\slash", "end\\", "${seed}", "é,=(){}[]:'", "c:/x", "None"])
def test_a_checkpoint_may_be_called_anything(name: str, shouting: tuple[Shouting, list[GenerateConfig]]) -> None:
    assert list(api.generate(["a"], name)) == ["A"]
    assert shouting[1][0].checkpoint == name


def test_generate_takes_several_texts() -> None:
    with pytest.raises(
        DataError, match="^texts: expected several texts, got 'one'; one would be read letter by letter"
    ):
        api.generate("one", "x")


def test_generate_complains_before_it_is_iterated() -> None:
    with pytest.raises(ConfigError, match="decoding.num_beam: expected a known key"):
        api.generate(["a"], "x", "decoding.num_beam=2")


def test_load_and_warm_start(tiny_bert: Path) -> None:
    model = encdec_train.warm_start(str(tiny_bert), share="all", init="both", seed=3)
    assert type(model).__name__ == "EncoderDecoderModel"
    assert model.training
    with pytest.raises(ModelError, match="^checkpoint: expected an encoder-decoder model, got 'bert'"):
        encdec_train.load(str(tiny_bert))
    with pytest.raises(ModelError, match="^encoder: expected a folder or a Hub id .* there is no such folder"):
        encdec_train.warm_start("./nowhere")
