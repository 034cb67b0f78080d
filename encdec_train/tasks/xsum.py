"""XSum: an article of the BBC becomes one sentence; cased."""

from encdec_train.tasks.spec import TaskSpec, splits_on_hub

XSUM = TaskSpec(source="hub", on_hub=lambda _: splits_on_hub("EdinburghNLP/xsum", "default", "data", ""))
