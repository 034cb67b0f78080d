"""The decoder-only model from its checkpoint to its export: a tiny GPT-2 with byte-level BPE learns to copy."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results import load, losses, read

from encdec_train.cli import main

Encdec = Callable[..., Any]
END = "<|endoftext|>"
BASE = (
    "task=files", "task.train_file=train.jsonl", "task.validation_file=validation.jsonl", "task.test_file=test.jsonl",
    "model=gpt", "model.decoder=gpt2", "run.output_dir=out", "tracking=none", "trainer.accelerator=cpu",
    "task.max_source_tokens=24", "task.max_target_tokens=24", "data.batch_examples=64", "optim.lr=3e-3",
    "decoding.num_beams=2",
)  # fmt: skip
NO_DROPOUT = ("model.dropout=0", "model.attention_dropout=0")
LEARNT = 60.0  # exact match on the test split after 300 steps; 82 on the machine where it was written
PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
outputs = model.generate(**inputs)[:, inputs.input_ids.shape[1]:]
json.dump(tokenizer.batch_decode(outputs, skip_special_tokens=True), sys.stdout)
sys.exit("encdec_train" in sys.modules)
"""


def make_gpt2(folder: Path, texts: list[str]) -> None:
    """Save a random GPT-2 and a byte-level BPE of these texts, as the published one has it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    names = {"bos_token": END, "eos_token": END, "unk_token": END}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "GPT2Tokenizer"}))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Lay out a checkpoint and pairs whose target is the source."""
    shared = next(one for one in request.config.pluginmanager.get_plugins() if hasattr(one, "furnish"))
    folder, draw = tmp_path_factory.mktemp("gpt"), random.Random(0)
    for name, number in (("train", 4000), ("validation", 20), ("test", 50)):
        texts = [" ".join(draw.choices(shared.WORDS, k=draw.randint(2, 7))) for _ in range(number)]
        shared.write_jsonl(folder / f"{name}.jsonl", [{"source": text, "target": text} for text in texts])
    make_gpt2(folder / "gpt2", [json.loads(line)["source"] for line in (folder / "train.jsonl").open()])
    return folder


@pytest.fixture
def there(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the furnished folder."""
    folder = shutil.copytree(furnished, tmp_path / "there")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def learnt(furnished: Path) -> Path:
    """Make one whole run, `out/run`."""
    before = Path.cwd()
    os.chdir(furnished)
    try:
        assert main(["train", *BASE, *NO_DROPOUT, "trainer.max_steps=300", "run.name=run"]) == 0
    finally:
        os.chdir(before)
    return furnished


def environment() -> dict[str, str]:
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.mark.slow
def test_it_learns_and_its_export_needs_no_package(
    learnt: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(learnt)
    assert load("out/run/metrics.json")["test"]["exact_match"]["value"] >= LEARNT
    parameters = load("out/run/manifest.json")["parameters"]
    assert (parameters["decoder"]["fresh"], "encoder" in parameters) == (0, False)
    rows = read("out/run/predictions/test.jsonl")
    sources, ours = [row["source"] for row in rows], [row["prediction"] for row in rows]
    command = [sys.executable, "-c", PLAIN, "out/run/export"]
    done = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours
    assert "inputs.input_ids.shape[1]:]" in Path("out/run/export/README.md").read_text(encoding="utf-8")
    Path("in.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
    assert encdec("generate", "checkpoint=out/run", "input=in.txt", "trainer.accelerator=cpu").out.splitlines() == ours
    files = ("task=files", "task.test_file=test.jsonl", "trainer.accelerator=cpu", "run.output_dir=out")
    one = ("evaluate", "checkpoint=out/run", *files)
    assert encdec(*one, "run.name=one").status == 0
    assert load("out/one/metrics.json")["test"] == load("out/run/metrics.json")["test"]
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "encdec_train")
    subprocess.run([sys.executable, "-m", *torchrun, *one, "run.name=two"], env=environment(), check=True)
    assert load("out/two/metrics.json") == load("out/one/metrics.json")
    assert read("out/two/predictions/test.jsonl") == read("out/one/predictions/test.jsonl")


@pytest.mark.slow
def test_two_ranks_make_the_run_of_one(there: Path) -> None:
    given = (*BASE, *NO_DROPOUT, "trainer.max_steps=4", "data.batch_examples=7", "data.max_micro_tokens=60")
    for devices in (1, 2):
        command = [sys.executable, "-m", "encdec_train", "train", *given, f"trainer.devices={devices}"]
        subprocess.run([*command, f"run.name=ranks{devices}"], env=environment(), check=True, capture_output=True)
    assert losses("out/ranks2") == pytest.approx(losses("out/ranks1"), rel=1e-5)
    assert read("out/ranks2/predictions/test.jsonl") == read("out/ranks1/predictions/test.jsonl")


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_run_goes_on_to_the_same_end(there: Path, shared: ModuleType) -> None:
    """Killed by SIGKILL; with dropout."""
    given = (*BASE, "trainer.max_steps=40", "trainer.checkpoint_every_steps=4", "trainer.validate_every_steps=20")
    assert main(["train", *given, "run.name=killed", "run.output_dir=undisturbed"]) == 0
    command = [sys.executable, "-m", "encdec_train", "train", *given, "run.name=killed"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not (there / "out/killed/checkpoints/step_00000008").exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(losses("out/killed")) < 40
    assert main(["train", *given, "run.name=killed"]) == 0
    disturbed, undisturbed = (shared.snapshot(there / name / "killed") for name in ("out", "undisturbed"))
    equal = [name for name in undisturbed if name.startswith(("export/model", "predictions/", "checkpoints/"))]
    assert len(equal) >= 6
    assert [name for name in [*equal, "metrics.json"] if disturbed.get(name) != undisturbed[name]] == []
    assert losses("out/killed") == losses("undisturbed/killed")


def test_a_few_steps_end_in_a_report(there: Path, encdec: Encdec, shared: ModuleType) -> None:
    given = ("trainer.max_steps=2", "task.num_test_examples=4", "task.num_train_examples=200", "run.name=short")
    done = encdec("train", *BASE, *given, "trainer.gradient_checkpointing=true", "optim.layer_decay=0.9")
    assert done.status == 0, done.err
    assert "a plain Hugging Face model: AutoModelForCausalLM.from_pretrained(...)" in done.err
    assert "attention_mask" not in done.err  # the library's warning of padding that nothing hides
    assert (there / "out/short/report.html").exists()
    before = shared.snapshot(there)
    for overrides, message in (
        (
            ("task.max_source_tokens=50",),
            "task.max_source_tokens: expected at most 64 together with task.max_target_to",
        ),
        (("model.decoder=elsewhere",), "model.decoder: expected a folder, or a Hub id"),
    ):
        done = encdec("train", *BASE, *overrides)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"encdec train: {message}")
        assert len(done.err.splitlines()) == 1
    assert shared.snapshot(there) == before


def test_the_same_run_comes_out_of_a_bundle(there: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "WANDB_MODE"):  # a bundle sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    words = (*BASE, "trainer.max_steps=2", "optim.warmup_steps=0", "run.baselines=[]", "decoding.max_new_tokens=8")

    def done(*arguments: str) -> Any:
        found = encdec(*arguments)
        assert found.status == 0, found.err
        return found

    done("bundle", *words, "bundle.path=b")
    assert sorted(path.name for path in Path("b/models").iterdir()) == ["decoder"]
    done("train", *words, "run.output_dir=without")
    for name in ("gpt2", "train.jsonl", "validation.jsonl", "test.jsonl"):
        Path(name).rename(f"gone-{name}")
    assert "there is no encoder" in done("doctor", "bundle.path=b").out
    done("train", "bundle.path=b", "run.output_dir=with")
    [one], [other] = (sorted(Path(name).glob("files-gpt-*")) for name in ("with", "without"))
    assert one.name == other.name
    assert (one / "predictions/test.jsonl").read_bytes() == (other / "predictions/test.jsonl").read_bytes()
    evaluated = ("task=files", "bundle.path=b", "trainer.accelerator=cpu", "run.output_dir=out", "run.name=again")
    done("evaluate", f"checkpoint={one}", *evaluated)
    assert load("out/again/metrics.json") == load(one / "metrics.json")
