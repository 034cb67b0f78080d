"""What a job asks for, against what it does."""

import pytest

from encdec_train.compose import compose
from encdec_train.config import to_dict
from encdec_train.errors import ConfigError


def test_submit_reads_trains_keys_and_its_own() -> None:
    words = ["task=files", "task.train_file=x", "model=bertshare", "seed=3"]
    found, trains = (
        to_dict(compose("submit", [*words, "cluster.nodes=2-4", "cluster.time=90"])),
        compose("train", words),
    )
    assert {key: value for key, value in found.items() if key not in {"cluster", "submit"}} == to_dict(trains)
    assert (found["cluster"]["nodes"], found["cluster"]["time"], found["submit"]) == ("2-4", 90, {"dry_run": False})


@pytest.mark.parametrize("nodes", [1, 16, "2-4"])
def test_nodes_are_a_number_or_a_range(nodes: int | str) -> None:
    assert compose("submit", [f"cluster.nodes={nodes}"]).cluster.nodes == nodes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.nodes=0"], "cluster.nodes: expected 1 or more, or a range such as 2-4, got 0."),
        (["cluster.nodes=a"], "cluster.nodes: expected 1 or more, or a range such as 2-4, got 'a'."),
        (["trainer.num_nodes=2"], "trainer.num_nodes: expected 1, got 2; cluster.nodes says it to a job."),
        (["cluster.gpus_per_node=4", "trainer.devices=2"],
         "trainer.devices: expected cluster.gpus_per_node=4, got 2. Leave trainer.devices out."),
        (["trainer.accelerator=cpu"], "cluster.gpus_per_node: expected 0, got 1; trainer.accelerator=cpu."),
        (["trainer.accelerator=gpu", "cluster.gpus_per_node=0"],
         "cluster.gpus_per_node: expected 1 or more, got 0; trainer.accelerator=gpu."),
        (["cluster.gpus_per_node=-1"], "cluster.gpus_per_node: expected 0 or more, got -1."),
        (["cluster.partitoin=a"], "cluster.partitoin: expected a known key; 'cluster.partitoin=a' sets nothing. "
         "Did you mean cluster.partition."),
        (["seed=1,2"], "seed: expected one value, got 'seed=1,2'; several values make several runs. Add --multirun."),
    ],
)  # fmt: skip
def test_what_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as why:
        compose("submit", words)
    assert str(why.value) == message


def test_ranks_on_cpus_are_the_trainers_devices() -> None:
    assert compose("submit", ["cluster.gpus_per_node=0", "trainer.devices=8"]).trainer.devices == 8
