"""TASKS: name -> what the task is made of. To add one: a YAML in `conf/task/`, a file and a line here."""

import re

from encdec_train.config import TaskConfig
from encdec_train.errors import fault
from encdec_train.tasks.cnn_dailymail import CNN_DAILYMAIL
from encdec_train.tasks.discofuse import BALANCED, DISCOFUSE, SUBSETS
from encdec_train.tasks.gigaword import GIGAWORD
from encdec_train.tasks.spec import TaskSpec
from encdec_train.tasks.wikisplit import WIKISPLIT
from encdec_train.tasks.wmt import WMT
from encdec_train.tasks.xsum import XSUM

TASKS: dict[str, TaskSpec] = {
    "files": TaskSpec(source="files"),
    "demo": TaskSpec(source="demo", test_splits=("test", "test_unseen_words")),
    "cnn_dailymail": CNN_DAILYMAIL,
    "xsum": XSUM,
    "gigaword": GIGAWORD,
    "wmt14_en_de": WMT,
    "wmt14_de_en": WMT,
    "discofuse": DISCOFUSE,
    "wikisplit": WIKISPLIT,
}
_PAIR = re.compile(r"([a-z]{2,3})-(?!\1$)[a-z]{2,3}")


def faults(task: TaskConfig) -> list[str]:
    """Collect what contradicts the task's own files: keys of other tasks, a missing choice, a set that is not there."""
    found = []
    for key in ("subset", "wmt_year"):
        value, is_read = getattr(task, key), key in TASKS[task.name].keys
        if (value is not None) != is_read:
            expected, reason = ("a value", "") if is_read else ("null", f"task={task.name} does not read it")
            found.append(fault(f"task.{key}", expected, "null" if value is None else value, reason))
    if found:
        return found
    if task.wmt_year is not None and not _PAIR.fullmatch(task.subset or ""):
        found.append(fault("task.subset", "two different languages, such as en-de", task.subset))
    if task.name == "discofuse" and task.subset not in SUBSETS:
        found.append(fault("task.subset", f"one of {', '.join(SUBSETS)}", task.subset))
    if task.subset == BALANCED and not task.files:
        reason = "the Hub has the full sets only; the balanced ones are files of the original release, *_balanced.tsv"
        remedy = "Set task.train_file, task.validation_file and task.test_file to them, or choose wikipedia or sport"
        found.append(fault("task.subset", "balanced with files", "balanced without", reason, remedy))
    return found
