"""The run that jobs make: as in `faults/runs.py`, without dropout, on CPUs."""

from faults.runs import BASE

SMALL = (
    *BASE, "model.dropout=0", "model.attention_dropout=0", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1",
    "cluster.memory=1000", "cluster.time=60",
)  # fmt: skip
