import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from encdec_train import compose as compose_module
from encdec_train.compose import compose, conf_dir, quoted, sweep, valid_keys
from encdec_train.config import Accelerator, Baseline, Init, Order, Share, TrackerName, TrainConfig
from encdec_train.errors import ConfigError

ADAMW = (conf_dir() / "optim" / "adamw.yaml").read_text(encoding="utf-8")
METRICS = (
    "sacrebleu, sacrebleu_uncased, sacrebleu_intl, sacrebleu_none, sacrebleu_zh, sacrebleu_ja, bleu_wmt14, bleu_nltk, "
    "chrf, chrfpp, ter, rouge1, rouge2, rougeL, rougeLsum, sari, sari_legacy, sari_t2t, exact_match, "
    "exact_match_normalized, length_ratio, novel_bigrams, repetition, empty, rouge"
)


def faults(verb: str, *overrides: str, config_dir: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(verb, overrides, config_dir)
    return caught.value.faults


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Write a folder of the user's own YAML: `own(**{"optim/mine.yaml": text})` returns it."""

    def write(files: dict[str, str], name: str = "own") -> str:
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_train_without_arguments_is_the_demo() -> None:
    config = compose("train")
    assert (config.task.name, config.model.encoder, config.model.decoder) == ("demo", "demo", "demo")
    assert config.run.baselines == [Baseline.copy, Baseline.ceiling, Baseline.random]
    assert (config.run.output_dir, config.run.cache_dir, config.run.name) == ("outputs", "outputs/.cache", None)
    assert config.seed == 0


def test_another_task_leaves_the_demos_settings_behind() -> None:
    config = compose("train", ["task=files"])
    assert config.model.encoder == "google-bert/bert-base-uncased"
    assert config.run.baselines == [Baseline.copy, Baseline.ceiling]


def test_overrides_are_typed() -> None:
    config = compose("train", [
        "optim.lr=1", "model=bertshare", "model.init=encoder", "data.order=length_pooled", "tracking=csv",
        "trainer.accelerator=cpu", "run.name=a.b_c-1", "optim.max_grad_norm=null", "model.dropout=0",
        "task.metrics=[chrf,ter]", "data.max_micro_tokens=512",
    ])  # fmt: skip
    assert (config.optim.lr, type(config.optim.lr)) == (1.0, float)
    assert (config.model.share, config.model.init) == (Share.all, Init.encoder)
    assert (config.data.order, config.trainer.accelerator) == (Order.length_pooled, Accelerator.cpu)
    assert (config.tracking.kind, config.run.name, config.optim.max_grad_norm) == (TrackerName.csv, "a.b_c-1", None)
    assert (config.model.dropout, config.task.metrics, config.data.max_micro_tokens) == (0.0, ["chrf", "ter"], 512)


def test_the_decoder_follows_the_encoder() -> None:
    assert compose("train", ["model.encoder=x"]).model.decoder == "x"
    assert compose("train", ["model.encoder=x", "model.decoder=y"]).model.decoder == "y"


def test_the_last_override_wins() -> None:
    assert compose("train", ["seed=1", "seed=2"]).seed == 2


def test_other_verbs_keep_what_the_export_says() -> None:
    generate = compose("generate", ["checkpoint=x"])
    assert (generate.task.max_source_tokens, generate.decoding.num_beams, generate.input) == (None, None, "-")
    evaluate = compose("evaluate", ["checkpoint=x", "task=files"])
    assert (evaluate.task.max_target_tokens, evaluate.decoding.length_penalty, evaluate.split) == (None, None, "test")
    assert compose("score", ["predictions=x"]).task.metrics == ["sacrebleu", "rouge", "sari", "exact_match"]


UNKNOWN = [
    ("trainer.max_step=5", "trainer.max_step: expected a known key; 'trainer.max_step=5' sets nothing. "
     "Did you mean trainer.max_steps."),
    ("lr=1", "lr: expected a known key; 'lr=1' sets nothing. Did you mean optim.lr."),
    ("optim.batch_examples=3", "optim.batch_examples: expected a known key; 'optim.batch_examples=3' sets nothing. "
     "Did you mean data.batch_examples."),
    ("epochs=3", "epochs: expected a known key; 'epochs=3' sets nothing. Did you mean trainer.max_epochs."),
    ("optim.learning_rate=1", "optim.learning_rate: expected a known key; 'optim.learning_rate=1' sets nothing. "
     "optim has name, lr, schedule, warmup_steps, …; --cfg prints every key."),
    ("+foo=1", "foo: expected a known key; '+foo=1' sets nothing. --cfg prints every key."),
    ("@x=1", "@x=1: expected a known key; '@x=1' sets nothing. --cfg prints every key."),
    ("hydra.run.dir=x", "hydra.run.dir: expected a known key; 'hydra.run.dir=x' sets nothing. "),
    ("hydra/launcher=basic", "hydra/launcher: expected a known key; 'hydra/launcher=basic' sets nothing. "),
    ("model@other=bert2bert", "model: expected a known key; 'model@other=bert2bert' sets nothing. "),
    ("defaults_of=demo", "defaults_of: expected a known key; 'defaults_of=demo' sets nothing. "),
]  # fmt: skip


@pytest.mark.parametrize(("override", "text"), UNKNOWN, ids=[override for override, _ in UNKNOWN])
def test_an_unknown_key_is_named_with_the_nearest(override: str, text: str) -> None:
    (found,) = faults("train", override)
    assert found.startswith(text)


@pytest.mark.parametrize("override", ["optim.lr=3", "model=bert2bert", "run.name=x"])
def test_a_key_of_another_verb_is_said_to_be_that(override: str) -> None:
    key = override.partition("=")[0]
    assert faults("generate", "checkpoint=x", override) == [
        f"{key}: expected a known key; `encdec generate` does not read it. Leave it out."
    ]


UNREAD = {
    "evaluate": ["trainer.max_steps=3", "trainer.devices=2", "data.batch_examples=8", "run.baselines=[]"],
    "generate": ["trainer.devices=2", "data.num_workers=1", "task.test_file=x", "task.metrics=[ter]", "task.name=demo"],
    "score": ["task.max_source_tokens=9", "task.overlong=refuse", "run.name=x", "run.output_dir=x"],
}
READ = {
    "evaluate": [
        "trainer.precision=bf16",
        "trainer.stall_seconds=60",
        "data.max_micro_tokens=64",
        "run.name=x",
        "task.max_source_tokens=9",
    ],
    "generate": ["trainer.accelerator=cpu", "task.source_column=text", "task.max_target_tokens=9"],
    "score": ["task=demo", "task.test_file=null", "task.num_test_examples=9", "run.cache_dir=x", "split=validation"],
}
NEEDED = {"evaluate": "checkpoint=x", "generate": "checkpoint=x", "score": "predictions=x"}


@pytest.mark.parametrize(("verb", "override"), [(verb, one) for verb, several in UNREAD.items() for one in several])
def test_a_key_of_a_shared_section_that_a_verb_does_not_read_is_refused(verb: str, override: str) -> None:
    key = override.partition("=")[0]
    (found,) = faults(verb, NEEDED[verb], override)
    assert found.startswith(f"{key}: expected a known key; ")
    assert found.endswith(f"`encdec {verb}` does not read it. Leave it out.")


@pytest.mark.parametrize("verb", READ)
def test_what_a_verb_reads_can_be_set(verb: str) -> None:
    assert compose(verb, [NEEDED[verb], *READ[verb]]) != compose(verb, [NEEDED[verb]])


WRONG = [
    (
        "task=fles",
        "task: expected one of cnn_dailymail, demo, discofuse, files, gigaword, wikisplit, wmt14_de_en, wmt14_en_de, "
        "xsum, got 'fles'. Did you mean files.",
    ),
    ("optim=sgd", "optim: expected one of adamw, got 'sgd'."),
    ("optim=null", "optim: expected one of adamw, got 'null'."),
    ("optim=[adamw]", "optim: expected one of adamw, got ['adamw']."),
    ("optim={lr: 3}", "optim: expected one of adamw, got {'lr': 3}."),
    ("~optim", "optim: expected a section of keys, got 'nothing'."),
    ("~optim.lr", "optim.lr: expected a value, got none. Set optim.lr=…."),
    ("optim.lr=", "optim.lr: expected a number, got ''."),
    ("optim.lr=fast", "optim.lr: expected a number, got 'fast'."),
    ("optim.lr=true", "optim.lr: expected a number, got True."),
    ("optim.lr=nan", "optim.lr: expected a finite number, got nan."),
    ("optim.lr=inf", "optim.lr: expected a finite number, got inf."),
    ("optim.lr=-1", "optim.lr: expected 0 or more, got -1.0."),
    ("seed=1.5", "seed: expected a whole number, got 1.5."),
    ("seed=4294967296", "seed: expected 0..4294967295, got 4294967296."),
    ("trainer.max_steps=many", "trainer.max_steps: expected a whole number or null, got 'many'."),
    ("trainer.precision=16", "trainer.precision: expected one of fp32, bf16, got 16."),
    ("task.reverse=yes", "task.reverse: expected true or false, got 'yes'."),
    ("run.name=2024", "run.name: expected text or null, got 2024. Quote it to make it text: 'run.name=\"2024\"'."),
    ("task.source_column=null", "task.source_column: expected text, got 'null'."),
    ("task.metrics=rouge", "task.metrics: expected a list, each text, got 'rouge'. Write task.metrics=[rouge]."),
    ("task.metrics=[sari,3]", "task.metrics[1]: expected text, got 3. "),
    ("run.baselines=[copy,none]", "run.baselines[1]: expected one of copy, lead3, ceiling, random, got 'none'."),
    ("task.metrics=[bleu]", f"task.metrics: expected names out of {METRICS}, got 'bleu'. The nearest is sacrebleu."),
    (
        "task.name=news",
        "task.name: expected one of files, demo, cnn_dailymail, xsum, gigaword, wmt14_en_de, wmt14_de_en, discofuse, "
        "wikisplit, got 'news'; it says where the rows come from.",
    ),
    ("trainer.best_metric=chrf", "trainer.best_metric: expected one of loss, sacrebleu, rouge1, rouge2, rougeL, "
     "rougeLsum, sari, exact_match, got 'chrf'. Add chrf to task.metrics."),
    ("trainer.best_metric=exact", "trainer.best_metric: expected one of loss, sacrebleu, rouge1, rouge2, rougeL, "
     "rougeLsum, sari, exact_match, got 'exact'. Did you mean exact_match."),
    ("seed=1,2", "seed: expected one value, got 'seed=1,2'; several values make several runs. Add --multirun."),
    ("optim._target_=os.system", "optim._target_: expected values only; a config never names code. Remove it."),
    ("tracking.tags=[{_target_: x}]", "tracking.tags.0._target_: expected values only; a config never names code. "
     "Remove it."),
    ("optim.lr=${sed}", "config: expected values that compose; Interpolation key 'sed' not found"),
    ("seed", "argument: expected key=value, got 'seed'. Quote spaces: 'task.train_file=\"my file.csv\"'."),
    ("task.train_file=a=b", "task.train_file: expected a value in Hydra's grammar, got 'a=b'; mismatched input '=' "
     "expecting <EOF>. Quote the value, and all of it for the shell: 'task.train_file=\"a=b\"'."),
    ("model.encoder=~/bert", "model.encoder: expected a value in Hydra's grammar, got '~/bert'; token recognition "
     "error at: '~'. Write $HOME/bert: nothing expands the ~ here."),
]  # fmt: skip


@pytest.mark.parametrize(("override", "text"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_named_with_what_would_do(override: str, text: str) -> None:
    (found,) = faults("train", "task=files", "task.validation_file=x", override)
    assert found.startswith(text)


@pytest.mark.parametrize(
    ("verb", "key"), [("evaluate", "checkpoint"), ("generate", "checkpoint"), ("score", "predictions")]
)
def test_what_a_verb_needs_is_missing(verb: str, key: str) -> None:
    assert faults(verb) == [f"{key}: expected a value, got none. Set {key}=…."]


def test_all_faults_come_at_once() -> None:
    found = faults("train", "optim.lr=fast", "seed=-1", "trainer.devices=0", "data.num_workers=some")
    keys = ["data.num_workers", "optim.lr", "seed", "trainer.devices"]
    assert sorted(text.partition(":")[0] for text in found) == keys


def test_all_unknown_keys_come_at_once() -> None:
    assert len(faults("train", "a=1", "b=2", "seed=1,2", "task=no")) == 4


def test_a_file_may_be_called_anything() -> None:
    names = ["task.train_file=my_target_file.csv", "task.test_file=x/_target_.csv", 'task.validation_file="Ähm, 1=2"']
    config = compose("train", ["task=files", *names])
    assert config.task.test_file == "x/_target_.csv"
    assert config.task.validation_file == "Ähm, 1=2"
    assert compose("train", ["task=files", "task.train_file=my file.csv"]).task.train_file == "my file.csv"


def test_own_yaml_is_found_beside_ours(own: Callable[..., str]) -> None:
    folder = own({"optim/mine.yaml": ADAMW.replace("1.0e-4", "7.0"), "task/news.yaml": "defaults: [files]\n"})
    config = compose("train", ["optim=mine", "task=news", "task.train_file=x"], folder)
    assert (config.optim.lr, config.task.name, config.task.train_file) == (7.0, "files", "x")


def test_own_yaml_may_lie_anywhere(own: Callable[..., str]) -> None:
    folder = own({"optim/mine.yaml": ADAMW}, name="mein Ordner, é = [1]")
    assert compose("train", ["task=files", "optim=mine"], folder).optim.lr == 1e-4


def test_own_yaml_of_one_concern_can_be_added(own: Callable[..., str]) -> None:
    folder = own({"experiment/short.yaml": "# @package _global_\ntrainer:\n  max_steps: 3\nseed: 5\n"})
    config = compose("train", ["experiment=short"], folder)
    assert (config.trainer.max_steps, config.seed) == (3, 5)
    (found,) = faults("train", "experiment=shirt", config_dir=folder)
    assert found.startswith("experiment: expected one of paper/cnn_dailymail/bert2bert, paper/cnn_dailymail/bert2gpt, ")
    assert found.endswith(", …, got 'shirt'. Did you mean short.")
    assert faults("train", "+experiment=short", config_dir=folder) == [
        "experiment: expected experiment=short, got '+experiment=short'; it has its place among the defaults."
    ]


OWN = [
    ("lr: [1\nfoo: :\n", "config: expected values that compose; while parsing a flow sequence"),
    ("- 1\n- 2\n", "optim: expected a section of keys, got [1, 2]."),
    (ADAMW + "momentum: 0.9\n", "optim.momentum: expected a known key; nothing reads it. "),
    (ADAMW + "warmup: 10\n", "optim.warmup: expected a known key; nothing reads it. Did you mean optim.warmup_steps."),
    (ADAMW + "_target_: os.system\n", "optim._target_: expected values only; a config never names code. Remove it."),
    (ADAMW + "x: {y: [{_target_: a}]}\n", "optim.x.y.0._target_: expected values only; a config never names code. "),
    (ADAMW.replace("lr: 1.0e-4", "lr: ???"), "optim.lr: expected a value, got none. Set optim.lr=…."),
    (ADAMW.replace("lr: 1.0e-4", "lr: ${nothing}"), "config: expected values that compose; Interpolation key"),
    ("defaults: [missing]\n", "config: expected values that compose; In 'optim/mine': Could not load 'optim/missing'"),
]


@pytest.mark.parametrize(("text", "message"), OWN)
def test_own_yaml_that_cannot_be_used(own: Callable[..., str], text: str, message: str) -> None:
    (found,) = faults("train", "task=files", "optim=mine", config_dir=own({"optim/mine.yaml": text}))
    assert found.startswith(message)


def test_own_yaml_cannot_hide_behind_ours(own: Callable[..., str]) -> None:
    (found,) = faults("train", config_dir=own({"optim/adamw.yaml": ADAMW, "optim/mine.yaml": ADAMW}))
    assert re.search("--config-dir: .*; optim/adamw.yaml would hide behind ours of the same name. Rename them.", found)
    assert compose("train", [], str(conf_dir())).seed == 0


@pytest.mark.parametrize("folder", ["", "missing"])
def test_the_folder_of_own_yaml_is_there(folder: str) -> None:
    assert faults("train", config_dir=folder) == [f"--config-dir: expected a folder of YAML files, got {folder!r}."]


SWEEPS = [
    ([], [[]]),
    (["seed=1"], [["seed=1"]]),
    (["seed=1,2", "optim.lr=3"], [["seed=1", "optim.lr=3"], ["seed=2", "optim.lr=3"]]),
    (["a=1,2", "b=x,y"], [["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]),
    (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
    (["seed=choice(4,5)"], [["seed=4"], ["seed=5"]]),
    (["task.metrics=[sari],[ter,chrf]"], [["task.metrics=[sari]"], ["task.metrics=[ter,chrf]"]]),
    (['a="x y","p=q"'], [['a="x y"'], ['a="p=q"']]),
    (["+a=1,2"], [["+a=1"], ["+a=2"]]),
    (["task.metrics=[sari,ter]"], [["task.metrics=[sari,ter]"]]),
]


@pytest.mark.parametrize(("overrides", "jobs"), SWEEPS)
def test_a_sweep_has_a_job_for_every_combination(overrides: list[str], jobs: list[list[str]]) -> None:
    assert sweep(overrides) == jobs


def test_the_jobs_of_a_sweep_compose() -> None:
    configs = [
        compose("train", job) for job in sweep(["seed=1,2", "model=bert2bert,bertshare", "task.reverse=true,false"])
    ]
    assert len(configs) == 8
    assert len({(c.seed, c.model.name, c.task.reverse) for c in configs}) == 8


@pytest.mark.parametrize("override", ["optim.lr=interval(0,1)", "model=glob(*)"])
def test_a_sweep_needs_values(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: expected values to choose from: 1,2,3 or range\(1,4\), got "):
        sweep([override])


def test_a_sweep_says_what_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="^task.train_file: expected a value in Hydra's grammar, got 'a=b'"):
        sweep(["seed=1,2", "task.train_file=a=b"])


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_quoted_text_means_itself(text: str) -> None:
    value = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert OmegaConf.create({"key": value}).key == text


@pytest.mark.parametrize(
    "text", ["", "a b", 'say "x"', "back\\slash", "end\\", '\\"', "${seed}", "é,=(){}[]:'", "null"]
)
def test_quoted_text_goes_through_a_config(text: str) -> None:
    assert compose("score", [f"predictions={quoted(text)}"]).predictions == text


def test_valid_keys_are_full_names() -> None:
    keys = list(valid_keys(TrainConfig))
    assert {"seed", "run.name", "task.metrics", "optim.lr", "tracking.tags"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert not {"run", "task", "optim"} & set(keys)


def test_the_yaml_of_a_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "encdec_train"
    package.mkdir(parents=True)
    monkeypatch.setattr(compose_module, "__file__", str(package / "compose.py"))
    assert conf_dir() == tmp_path / "site-packages" / "conf"
    (package / "conf").mkdir()
    assert conf_dir() == package / "conf"


def test_hydra_of_the_caller_is_left_as_it_was() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose("train")
        assert GlobalHydra.instance().hydra is before
    compose("train")
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a-${oc.env:HOME}", "${oc.decode:'1'}"])
def test_no_resolver_is_called(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "canary")
    with pytest.raises(ConfigError, match=r"expected a value or \$\{another\.key\}; a config calls nothing") as said:
        compose("train", [f"task.source_column={value}"])
    assert "canary" not in str(said.value)


def test_another_keys_value_and_quoted_text_are_no_call() -> None:
    config = compose("train", ["model.encoder=${task.name}", f"task.source_column={quoted('${oc.env:HOME}')}"])
    assert (config.model.encoder, config.task.source_column) == ("demo", "${oc.env:HOME}")
