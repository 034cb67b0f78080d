"""The export is a folder that transformers alone understands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from encdec_train.batch import MicroBatch
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.errors import ModelError
from encdec_train.modeling.checkpoints import find
from encdec_train.modeling.export import load

BEAM = SearchSettings(num_beams=4, length_penalty=0.8, max_new_tokens=12, no_repeat_ngram=3, max_batch_tokens=10_000)
TEXTS = ["the cat sat on the mat", "a dog ran", "old bird flew over the red house", "she"]
ELSEWHERE = """
import json, sys
sys.modules["encdec_train"] = None
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
found = {}
for num_beams in (None, 1):
    options = {} if num_beams is None else {"num_beams": num_beams}
    outputs = [model.generate(**tokenizer(text, return_tensors="pt"), **options)[0] for text in texts]
    found[str(num_beams)] = [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]
try:
    import encdec_train
except ImportError:
    found["alone"] = True
print(json.dumps(found))
"""


def test_a_process_without_this_package_generates_the_same(
    talkative: Any, exported: Callable[..., Path], tiny_source: Any, tmp_path: Path
) -> None:
    folder, tokenizer = exported(talkative, BEAM), tiny_source.tokenizer
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder), json.dumps(TEXTS)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["alone"]
    sources = [tokenizer(text).input_ids for text in TEXTS]
    for name, num_beams in (("None", 4), ("1", 1)):
        settings = SearchSettings(num_beams, 0.8, max_new_tokens=12, no_repeat_ngram=3, max_batch_tokens=10_000)
        ours = [tokenizer.decode(ids, skip_special_tokens=True) for ids in decode(talkative, sources, settings)]
        assert theirs[name] == ours
        assert len(set(ours)) > 1
    for line in ("newly initialized", "MISSING", "UNEXPECTED"):
        assert line not in done.stderr


def test_the_folder(new_model: Callable[..., Any], exported: Callable[..., Path]) -> None:
    folder = exported(new_model(), BEAM)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder / "README.md").read_text() == "# A card\n"
    generation = json.loads((folder / "generation_config.json").read_text())
    wanted = {"num_beams": 4, "length_penalty": 0.8, "max_new_tokens": 12, "no_repeat_ngram_size": 3,
              "do_sample": False, "decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    assert {key: generation[key] for key in wanted} == wanted
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("encoder-decoder", ["EncoderDecoderModel"])
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert [path.name for path in folder.parent.iterdir()] == ["export"]  # nothing half-written is left


def test_the_tokenizer_keeps_its_own_limit(
    new_model: Callable[..., Any], exported: Callable[..., Path], tiny_source: Any
) -> None:
    before = tiny_source.tokenizer.model_max_length
    exported(new_model(), BEAM)
    assert tiny_source.tokenizer.model_max_length == before > 1000


def test_the_pooler_that_nobody_uses_is_zero(new_model: Callable[..., Any], exported: Callable[..., Path]) -> None:
    tensors = load_file(exported(new_model(), BEAM) / "model.safetensors")
    assert tensors["encoder.pooler.dense.weight"].shape == (32, 32)
    assert not tensors["encoder.pooler.dense.weight"].any()
    assert not tensors["encoder.pooler.dense.bias"].any()


@pytest.mark.parametrize("share", ["none", "embeddings", "all"])
def test_it_loads_with_the_same_logits(
    share: str, new_model: Callable[..., Any], exported: Callable[..., Path], eight: MicroBatch
) -> None:
    model = new_model(share, seed=1)
    reloaded, (source, target) = load(str(exported(model, BEAM)))
    assert not reloaded.training
    assert source is target
    assert source("the cat").input_ids == [2, 5, 7, 3]
    batch = {"input_ids": eight.source_ids_BS, "attention_mask": eight.source_mask_BS.long(),
             "decoder_input_ids": eight.decoder_ids_BT}  # fmt: skip
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, model.eval()(**batch).logits)


def test_a_wide_encoders_projection_is_exported(
    new_bert: Callable[..., Path], tiny_source: Any, exported: Callable[..., Path]
) -> None:
    from encdec_train.config import Init, Share
    from encdec_train.modeling.warm_start import build

    wide = find("model.encoder", str(new_bert("wide", 2, hidden_size=64)), None)
    model = build(wide, tiny_source, Share.none, Init.both, seed=0).model
    reloaded, _ = load(str(exported(model, BEAM)))
    assert torch.equal(reloaded.enc_to_dec_proj.weight, model.enc_to_dec_proj.weight)


def test_two_tokenizers_lie_in_two_folders(
    new_model: Callable[..., Any], exported: Callable[..., Path], tiny_bert: Path
) -> None:
    other = find("model.decoder", str(tiny_bert), None).tokenizer
    other.add_tokens(["unheard"])
    folder = exported(new_model(), BEAM, decoder_tokenizer=other)
    assert json.loads((folder / "decoder_tokenizer" / "tokenizer_config.json").read_text())["model_max_length"] == 12
    _, (source, target) = load(str(folder))
    assert (source("unheard").input_ids, target("unheard").input_ids) == ([2, 1, 3], [2, 32, 3])


def test_an_export_replaces_the_one_before(new_model: Callable[..., Any], exported: Callable[..., Path]) -> None:
    folder = exported(new_model(seed=1), BEAM)
    (folder / "stale.txt").write_text("of another time")
    (folder.parent / ".export.1").mkdir()  # left by a process that was killed
    model = new_model(seed=2)
    assert exported(model, BEAM) == folder
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    name = "decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    assert torch.equal(load_file(folder / "model.safetensors")[name], model.get_parameter(name))


def test_every_file_is_flushed_to_disk(
    new_model: Callable[..., Any], exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    folder = exported(new_model(), BEAM)
    assert {path.name for path in folder.iterdir()} <= set(flushed)
    assert flushed[-1] == folder.parent.name  # that the folder has its name


def test_greedy_with_a_length_penalty_can_be_saved(
    new_model: Callable[..., Any], exported: Callable[..., Path]
) -> None:
    """The library refuses to save a length penalty without beams; greedy search has no use for one."""
    settings = SearchSettings(num_beams=1, length_penalty=2.0, max_new_tokens=5, no_repeat_ngram=0, max_batch_tokens=9)
    found = json.loads((exported(new_model(), settings) / "generation_config.json").read_text())
    assert (found["num_beams"], found["length_penalty"], found["max_new_tokens"]) == (1, 1.0, 5)


def test_a_run_folder_stands_for_the_export_in_it(new_model: Callable[..., Any], exported: Callable[..., Path]) -> None:
    folder = exported(new_model(), BEAM)
    assert load(str(folder.parent))[0].config.model_type == "encoder-decoder"


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["decoder"]["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"a Hub id, got .*; there is no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"not a valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"a folder with model\.safetensors.*no weights in it"),
        (cut_off, r"expected a run folder, .*incomplete"),
        (without_a_tensor, r"all weights of its config.json, .*; 1 tensors are missing .* decoder.bert.encoder.layer"),
        (of_another_shape, r"all weights of its config.json, .*; 6 tensors are .* differ in shape, such as decoder.b"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"Expecting property name"),
    ],
    ids=["no config", "broken config", "no weights", "cut off", "a tensor lacks", "another shape", "broken tokenizer"],
)  # fmt: skip
def test_a_spoilt_export_is_refused(
    spoil: Callable[[Path], Any], message: str, new_model: Callable[..., Any], exported: Callable[..., Path]
) -> None:
    folder = exported(new_model(), BEAM)
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(folder))
    assert str(caught.value).startswith("checkpoint: expected ")
    assert not str(caught.value).endswith("..")


def test_what_is_no_export_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"an encoder-decoder model, got 'bert'.*`encdec train model.encoder="):
        load(str(tiny_bert))
    with pytest.raises(ModelError, match=r"got '.*nothing'; there is no such folder\.$"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"got 'nobody/nothing'; "):
        load("nobody/nothing")
