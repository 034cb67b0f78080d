"""What a stranger may get wrong: one clear message each, exit status 2, nothing written, nothing lost."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOOD = b'{"source": "the cat", "target": "cat the"}'
Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """A mistake.

    Attributes:
        name: Of the row.
        text: What the message starts with, after `encdec train: `; `…` stands for anything.
        overrides: Added to those of a run that works.
        prepare: Lays out what is wrong.
        command: Instead of `train`, the overrides of a run that works, and `overrides`.
    """

    name: str
    text: str
    overrides: Sequence[str] = ()
    prepare: Prepare = field(default=lambda here: None)
    command: Sequence[str] = ()


def lines(*data: bytes, name: str = "bad.jsonl") -> Prepare:
    """Write a file of lines."""
    return lambda here: (here / name).write_bytes(b"".join(line + b"\n" for line in data))


def bert(change: Callable[[Path], object]) -> Prepare:
    """Copy the checkpoint to `other` and change the copy."""

    def prepare(here: Path) -> None:
        change(Path(shutil.copytree(here / "bert", here / "other")))

    return prepare


def edited(name: str, *path: str, value: object) -> Callable[[Path], None]:
    """Set a value in a JSON file of a checkpoint."""

    def change(folder: Path) -> None:
        file = folder / name
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        file.write_text(json.dumps(values), encoding="utf-8")

    return change


def without(pattern: str) -> Callable[[Path], None]:
    """Remove files of a checkpoint."""
    return lambda folder: [path.unlink() for path in folder.glob(pattern)] and None


def shortened(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change tensors of a checkpoint."""
    from safetensors.torch import load_file, save_file

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def remade(**changes: Any) -> Callable[[Path], None]:
    """Put random weights of another shape or family in a checkpoint, with the tokenizer that it has."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    def make(folder: Path) -> None:
        shape = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
        config = AutoConfig.for_model(**{"model_type": "bert", **shape, **changes})
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)

    return make


def yaml_with_a_target(here: Path) -> None:
    (here / "own" / "optim").mkdir(parents=True)
    (here / "own" / "optim" / "mine.yaml").write_text("defaults: [adamw]\n_target_: os.system\n", encoding="utf-8")


def somebody_elses(here: Path) -> None:
    (here / "out" / "x").mkdir(parents=True)
    (here / "out" / "x" / "thesis.tex").write_text("five years", encoding="utf-8")


BAD = ("task.train_file=bad.jsonl",)
OTHER = ("model.encoder=other",)
NAMES = "letters, digits, `.`, `_` and `-`, a letter or digit first"
CONFIG = [
    Row("unknown key", "optim.lrr: expected a known key; 'optim.lrr=1' sets nothing. Did you mean optim.lr.",
        ["optim.lrr=1"]),
    Row("key without its section", "lr: expected a known key; 'lr=1' sets nothing. Did you mean optim.lr.", ["lr=1"]),
    Row("unknown choice", "model: expected one of bert2bert, bert2bert_large, bert2gpt, bert2rnd, bertshare, "
        "bertshare_large, gpt, rnd2bert, rnd2gpt, rnd2rnd, roberta2gpt, robertashare, robertashare_large, "
        "got 'bert2bart'. Did you mean bert2bert.", ["model=bert2bart"]),
    Row("mistyped value", "optim.lr: expected a number, got 'fast'.", ["optim.lr=fast"]),
    Row("number for text", "run.name: expected text or null, got 2024. Quote it to make it text: 'run.name=\"2024\"'.",
        ["run.name=2024"]),
    Row("out of range", "model.dropout: expected 0 to below 1, got 1.5.", ["model.dropout=1.5"]),
    Row("two batch sizes", "data.batch_examples: expected either it or data.batch_target_tokens, got 24 and 100. "
        "Set the one that you do not want to null.", ["data.batch_target_tokens=100"]),
    Row("warm-up longer than the run", "optim.warmup_steps: expected below trainer.max_steps=30, got 30; the "
        "learning rate would never reach optim.lr.", ["optim.warmup_steps=30"]),
    Row("neither steps nor epochs", "trainer.max_steps: expected it or trainer.max_epochs, got null for both. "
        "Set one (steps win).", ["trainer.max_steps=null", "trainer.max_epochs=null"]),
    Row("unknown metric", "task.metrics: expected names out of sacrebleu, … got 'rogue'. The nearest is "
        "rouge.", ["task.metrics=[rogue]"]),
    Row("best metric that nobody measures", "trainer.best_metric: expected one of loss, sacrebleu, … got 'chrf'. "
        "Add chrf to task.metrics.", ["trainer.best_metric=chrf", "task.validation_file=validation.jsonl"]),
    Row("run name that leads elsewhere", f"run.name: expected {NAMES}, got '../x'; it is the run's folder below "
        "run.output_dir.", ["run.name=../x"]),
    Row("run name with a separator", f"run.name: expected {NAMES}, got 'a/b'; it is the run's folder below "
        "run.output_dir.", ["run.name=a/b"]),
    Row("sweep without --multirun", "seed: expected one value, got 'seed=1,2'; several values make several runs. "
        "Add --multirun.", ["seed=1,2"]),
    Row("unquoted characters", "task.train_file: expected a value in Hydra's grammar, got 'für=mich.jsonl'; token "
        "recognition error at: 'ü'. Quote the value, and all of it for the shell: "
        "'task.train_file=\"für=mich.jsonl\"'.", ["task.train_file=für=mich.jsonl"]),
    Row("unquoted space", "argument: expected key=value, got 'data.jsonl'. Quote spaces: "
        "'task.train_file=\"my file.csv\"'.", ["task.train_file=my", "data.jsonl"]),
    Row("code in an override", "optim._target_: expected values only; a config never names code. Remove it.",
        ["+optim._target_=os.system"]),
    Row("code in a file", "optim._target_: expected values only; a config never names code. Remove it.",
        ["--config-dir", "own", "optim=mine"], yaml_with_a_target),
    Row("folder of YAML that is not there", "--config-dir: expected a folder of YAML files, got 'own'.",
        ["--config-dir=own"]),
    Row("validation on the training file", "task.validation_file: expected another file than task.train_file, got "
        "'./train.jsonl'; scores on training data say nothing.", ["task.validation_file=./train.jsonl"]),
    Row("files for the demo", "task.train_file: expected null, got 'train.jsonl'; the demo writes its own files. "
        "Add task=files.", command=["train", "task.train_file=train.jsonl"]),
    Row("no training file", "task.train_file: expected a file of pairs; task=files has nothing to train on.",
        command=["train", "task=files"]),
    Row("missing value", "checkpoint: expected a value, got none. Set checkpoint=….", command=["evaluate"]),
    Row("unknown verb", "verb: expected one of train, doctor, evaluate, score, compare, generate, report, submit, "
        "bundle, verify, info, got 'trian'. "
        "Did you mean train.", command=["trian"]),
    Row("unknown flag", "argument: expected --cfg, --multirun, --config-dir DIR or key=value, got '--max-steps=5'.",
        ["--max-steps=5"]),
]  # fmt: skip
FILES = [
    Row("missing file", "task.train_file: expected a file, got 'tran.jsonl'; there is no such file. "
        "Set task.train_file; the nearest name is 'train.jsonl'.", ["task.train_file=tran.jsonl"]),
    Row("missing column", "task.source_column: expected a column of train.jsonl (task.train_file), whose first row has "
        "'id', 'source', 'target', got 'sorce'. Set task.source_column; the nearest name is 'source'.",
        ["task.source_column=sorce"]),
    Row("empty file", "task.train_file: expected a file with rows, got 'bad.jsonl'; it has none.", BAD, lines()),
    Row("unreadable row", "task.train_file: bad.jsonl:line 2: expected a JSON object; Expecting ':' delimiter at "
        "character 11.", BAD, lines(GOOD, b'{"source"')),
    Row("field of another type", "task.train_file: bad.jsonl:line 2:source: expected a text, got 3; its type is int.",
        BAD, lines(GOOD, b'{"source": 3, "target": "x"}')),
    Row("empty source", "task.train_file: bad.jsonl:line 2:source: expected a text; it is empty.", BAD,
        lines(GOOD, b'{"source": "", "target": "x"}')),
    Row("empty target", "task.train_file: bad.jsonl:line 3:target: expected a text; it is only white space.", BAD,
        lines(GOOD, GOOD, b'{"source": "x", "target": " "}')),
    Row("row that is too short", "task.train_file: bad.csv:line 3: expected 2 fields as in the header, got 1.",
        ["task.train_file=bad.csv"], lines(b"source,target", b"a,b", b"c", name="bad.csv")),
    Row("same id twice", "task.train_file: bad.jsonl:line 2:id: expected an id of its own, got 'a'; line 1 has the "
        "same.", BAD, lines(b'{"id": "a", ' + GOOD[1:], b'{"id": "a", ' + GOOD[1:])),
    Row("file cut off", "task.train_file: expected a file that can be read to its end, got 'bad.jsonl.gz'; after … "
        "rows: Compressed file ended before the end-of-stream marker was reached. Write or fetch the file again",
        ["task.train_file=bad.jsonl.gz"],
        lambda here: (here / "bad.jsonl.gz").write_bytes(gzip.compress(b"\n".join([GOOD] * 999), mtime=0)[:-30])),
    Row("unknown kind of file", "task.train_file: expected a file that ends in .jsonl, .json, .csv, .tsv, .parquet, or "
        "one of these and .gz, got 'bad.xlsx'.", ["task.train_file=bad.xlsx"], lines(GOOD, name="bad.xlsx")),
    Row("references that cannot be sources", "task.reverse: expected false, got True; bad.jsonl:line 1 has references "
        "besides its target", [*BAD, "task.reverse=true"], lines(GOOD[:-1] + b', "references": ["a", "b"]}')),
    Row("overlong pairs, to be refused", "task.max_source_tokens: expected at most 6 tokens, got 7; train has 16 "
        "source(s) above it, the first is example 'row2'. Raise task.max_source_tokens, or set task.overlong=truncate.",
        ["task.max_source_tokens=6", "task.overlong=refuse"]),
    Row("validation on the training rows", "task.validation_file: expected other rows than task.train_file, got "
        "'copy.jsonl'; the two have the same content, and scores on training data say nothing.",
        ["task.validation_file=copy.jsonl"], lambda here: shutil.copy(here / "train.jsonl", here / "copy.jsonl")),
    Row("no whole batch", "data.last_batch: expected ragged, got 'drop'; 24 examples do not fill one batch.",
        ["data.last_batch=drop", "data.batch_examples=100"]),
    Row("warm-up longer than the epochs", "optim.warmup_steps: expected below 3, got 3; trainer.max_epochs=3 makes "
        "3 steps.", ["trainer.max_steps=null", "optim.warmup_steps=3"]),
    Row("output folder that is a file", "run.output_dir: expected a folder that can be written, got 'out'; ",
        prepare=lambda here: (here / "out").touch()),
    Row("run folder of somebody else's", "run.name: expected a new name, or the folder of an earlier run, got 'x'; "
        "out/x holds thesis.tex, and no training run made it. Choose another run.name", ["run.name=x"], somebody_elses),
]  # fmt: skip
CHECKPOINTS = [
    Row("limit past the positions", "task.max_source_tokens: expected 2..64, got 65; bert has 64 positions. "
        "Lower it or choose another checkpoint.", ["task.max_source_tokens=65"]),
    Row("no such folder", "model.encoder: expected a folder or a Hub id such as google-bert/bert-base-uncased, got "
        "'./nowhere'; there is no such folder.", ["model.encoder=./nowhere"]),
    Row("not in the cache", "model.encoder: expected a folder, or a Hub id that can be reached or is cached, "
        "got 'someone/no-such-bert'; HF_HUB_OFFLINE is set, … run `hf download someone/no-such-bert` into the same …",
        ["model.encoder=someone/no-such-bert"]),
    Row("empty encoder folder", "model.encoder: other: expected a checkpoint folder; it has neither a config nor "
        "weights nor a tokenizer.", OTHER, lambda place: (place / "other").mkdir()),
    Row("no weights", "model.encoder: expected a folder with model.safetensors, got 'other'; there are no weights in "
        "it.", OTHER, bert(without("*.safetensors"))),
    Row("only a pickle", "model.encoder: expected a folder with model.safetensors, got 'other'; pytorch_model.bin is a "
        "pickle, which can run code. Load it once with transformers and save_pretrained() it as safetensors.", OTHER,
        bert(lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"))),
    Row("code in a checkpoint", "model.encoder: expected an architecture of the transformers library, got 'other'; its "
        "config.json has an auto_map, which asks to run code from the checkpoint.", OTHER,
        bert(edited("config.json", "auto_map", value={"AutoModel": "modeling_x.X"}))),
    Row("damaged config.json", "model.encoder: expected a readable config.json, got 'other/config.json'; ", OTHER,
        bert(lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"))),
    Row("another model's tokenizer", "model.encoder: expected a tokenizer of at most 32 tokens, the rows of the "
        "embedding, got 33; the highest id is 5000: other holds another model's tokenizer.", OTHER,
        bert(edited("tokenizer.json", "model", "vocab", "zebra", value=5000))),
    Row("no tokenizer", "model.encoder: expected a tokenizer with a vocabulary, got '5 tokens'; the tokenizer files of "
        "other are missing.", OTHER, bert(without("*token*"))),
    Row("another architecture", "model.encoder: expected a checkpoint of this architecture, got 'other'; none of its "
        "tensors fits.", OTHER, bert(edited("config.json", "model_type", value="gpt2"))),
    Row("no encoder", "model.encoder: expected an encoder such as bert, roberta or gpt2, got 'bart'; other is no "
        "encoder of text, but a pair of its own.", OTHER, bert(edited("config.json", "model_type", value="bart"))),
    Row("no cross-attention", "model.decoder: expected a decoder that can attend to an encoder: bart, bert, ",
        ["model.decoder=other"], bert(edited("config.json", "model_type", value="llama"))),
    Row("no layers left", "model.encoder_layers: expected layers in ascending order, such as [1,2,5-8], got '[]'; no "
        "layers are left.", ["model.encoder_layers=[]"]),
    Row("a layer too many", "model.decoder_layers: expected layers 1..2, got 3; the checkpoint has no more.",
        ["model.decoder_layers=[1-3]"]),
    Row("nothing to freeze", "optim.freeze: expected names of parameters, got 'nothing.*'; no parameter is called so;",
        ["optim.freeze=[nothing.*]"]),
    Row("weights of another shape", "model.encoder: expected weights in the shapes of config.json, got 'other'; 35 "
        "differ, such as embeddings.LayerNorm.bias.", OTHER, bert(edited("config.json", "hidden_size", value=48))),
    Row("NaN in the weights", "model.encoder: expected finite weights, got 'other'; 1 tensors hold NaN or infinity, "
        "such as encoder.layer.1.output.dense.weight. Fetch the checkpoint again.", OTHER,
        bert(weights(lambda tensors: tensors["bert.encoder.layer.1.output.dense.weight"][3, 4].fill_(float("nan"))))),
    Row("vocabulary larger than its embedding", "model.encoder: expected a tokenizer of at most 20 tokens, the rows of "
        "the embedding, got 32; the highest id is 31: other holds another model's tokenizer.", OTHER,
        bert(remade(vocab_size=20))),
    Row("sharing all of two checkpoints", "model.share: expected none or embeddings, got 'all'; sharing all needs one "
        "checkpoint for both halves, got other and bert. Leave model.decoder out, or share less.",
        [*OTHER, "model.decoder=bert", "model.share=all"], bert(remade(hidden_size=64))),
    Row("sharing between widths", "model.share: expected none, got 'embeddings'; embeddings.word_embeddings.weight is "
        "(32, 64) in the encoder and (32, 32) in the decoder.", [*OTHER, "model.decoder=bert"],
        bert(remade(hidden_size=64))),
    Row("sharing between architectures", "model.share: expected none, or [word_embeddings], got 'embeddings'; the "
        "encoder is roberta and the decoder bert.", [*OTHER, "model.decoder=bert"], bert(remade(model_type="roberta"))),
    Row("sharing between depths", "model.share: expected none, got 'all'; only one half has encoder.layer.1.attention",
        ["model.encoder_layers=[1]", "model.share=all"]),
    Row("gradients that overflow", "gradients: … with one that is not finite, such as encoder.… `encdec doctor` with "
        "the same keys makes all checks.", OTHER,
        bert(weights(lambda tensors: tensors["bert.encoder.layer.1.attention.self.query.weight"].fill_(3e38)))),
    Row("weights cut off", "model.encoder: expected a checkpoint whose weights load, got 'other'; ", OTHER,
        bert(shortened)),
]  # fmt: skip
TABLE = [*CONFIG, *FILES, *CHECKPOINTS]


def expect(message: str, text: str) -> None:
    """Find the parts of a text around `…` in a message, in order, the first at its start."""
    first, *others = text.split("…") if "… " in text else [text]
    assert message.startswith(first)
    place = len(first)
    for part in others:
        place = message.index(part, place) + len(part)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_a_mistake_is_one_clear_message(row: Row, here: Path, encdec: Callable[..., Any], shared: ModuleType) -> None:
    row.prepare(here)
    before = shared.snapshot(here)
    done = encdec(*(row.command or ["train", *shared.BASE, *row.overrides]))
    head = f"encdec {row.command[0] if row.command else 'train'}: "
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("encdec ") - row.text.count("encdec ") == 1
    assert "Traceback" not in done.err
    expect(done.err[done.err.index(head) + len(head) :], row.text)
    assert shared.snapshot(here) == before
    if row in CONFIG:
        assert len(done.err.splitlines()) == 1


def test_the_table_is_long_enough() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) == 68


def test_a_run_that_exists_is_never_lost(finished: Path, encdec: Callable[..., Any], shared: ModuleType) -> None:
    before = shared.snapshot(finished)
    for changes, difference in (
        (["seed=1"], ["  seed: 0 there, 1 here"]),
        (["optim.lr=1e-3", "model=bertshare"], [
            "  model.name: 'bert2bert' there, 'bertshare' here", "  model.share: 'embeddings' there, 'all' here",
            "  optim.lr: 0.01 there, 0.001 here",
        ]),
    ):  # fmt: skip
        done = encdec("train", *shared.BASE, *shared.SPLITS, "run.name=run", *changes)
        assert done.status == 2
        assert done.err.splitlines() == [
            "encdec train: run.name: run is another run; nothing was changed. It differs in",
            *difference,
            "Choose another run.name, or leave it out.",
        ]
        assert shared.snapshot(finished) == before


def test_changed_data_is_another_run(finished: Path, encdec: Callable[..., Any], shared: ModuleType) -> None:
    with (finished / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "new", "source": "the cat", "target": "cat the"}\n')
    before = shared.snapshot(finished)
    done = encdec("train", *shared.BASE, *shared.SPLITS, "run.name=run")
    assert done.status == 2
    assert "\n  data.test: '" in done.err
    assert shared.snapshot(finished) == before


def test_an_evaluation_does_not_replace_a_run(finished: Path, encdec: Callable[..., Any], shared: ModuleType) -> None:
    before = shared.snapshot(finished)
    done = encdec("evaluate", "checkpoint=out/run", "task=files", "task.test_file=test.jsonl", "run.output_dir=out",
                  "run.name=run")  # fmt: skip
    assert done.status == 2
    assert done.err == (
        "encdec evaluate: run.name: expected a new name, got 'run'; out/run is a training run, "
        "whose scores this would replace.\n"
    )
    assert shared.snapshot(finished) == before


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["generate", "checkpoint=nowhere/at/all"],
         "generate: checkpoint: expected a folder or a Hub id such as google-bert/bert-base-uncased, got "
         "'nowhere/at/all'; "
         "there is no such folder."),
        (["generate", "checkpoint=bert"],
         "generate: checkpoint: expected an encoder-decoder model, got 'bert'; bert is no export. Pretrained halves"),
        (["generate", "checkpoint=out/run", "input=none.txt"],
         "generate: input: expected a file, or - for standard input, got 'none.txt'; No such file or directory."),
        (["generate", "checkpoint=out/run", "input=test.jsonl", "output=none/out.txt"],
         "generate: output: expected a file that can be written, got 'none/out.txt'; No such file or directory."),
        (["generate", "checkpoint=out/run", "input=test.jsonl", "output=new.jsonl", "decoding.max_new_tokens=99"],
         "generate: decoding.max_new_tokens: expected at most 64, the model's positions, got 99."),
        (["generate", "checkpoint=out/run", "input=test.jsonl", "output=new.jsonl", "task.source_column=text"],
         "generate: input:1:text: expected a text; its fields are 'id', 'source', 'target'. "
         "Name the column with task.source_column."),
        (["evaluate", "checkpoint=out/run", "task=files"],
         "evaluate: task.test_file: expected a file of pairs, got 'null'; split=test reads it."),
        (["evaluate", "checkpoint=out/run", "task.test_file=test.jsonl"],
         "evaluate: task.test_file: expected null, got 'test.jsonl'; the demo writes its own files. Add task=files."),
        (["score", "predictions=none.jsonl"],
         "score: predictions: expected a file, got 'none.jsonl'; there is no such file."),
        (["score", "predictions=lines.txt", "task.test_file=test.jsonl"],
         "score: lines.txt: expected 8 predictions, one an example, got 1; example 'row201' is left over."),
        (["score", "predictions=lines.txt"], "score: lines.txt:line 1:references: expected a list of texts. "),
        (["score", "predictions=out/run/predictions/test.jsonl", "task.metrics=[bleu]"],
         "score: task.metrics: expected names out of"),
        (["score", "predictions=test.jsonl"], "score: test.jsonl:line 1:prediction: expected text, got"),
    ],
)  # fmt: skip
def test_mistakes_with_a_finished_run(
    command: list[str], text: str, finished: Path, encdec: Callable[..., Any], shared: ModuleType
) -> None:
    (finished / "lines.txt").write_text("one\n", encoding="utf-8")
    before = shared.snapshot(finished)
    done = encdec(*command)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"encdec {text}")
    assert len(done.err.splitlines()) == 1
    assert shared.snapshot(finished) == before


def test_from_a_shell_a_mistake_is_quick_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from encdec_train.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'pytorch_lightning', 'wandb'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    command = [sys.executable, "-c", code, "train", "task=files", "task.train_file=none.jsonl", "model.encoder=x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    message = "encdec train: task.train_file: expected a file, got 'none.jsonl'; there is no such file. "
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message + "Set task.train_file.\n")
    assert list(tmp_path.iterdir()) == []
