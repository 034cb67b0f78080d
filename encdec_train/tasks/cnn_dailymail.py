"""CNN/DailyMail: an article becomes its highlights, a line a sentence; cased, entities not anonymised (3.0.0)."""

from encdec_train.tasks.spec import TaskSpec, splits_on_hub

CNN_DAILYMAIL = TaskSpec(source="hub", on_hub=lambda _: splits_on_hub("abisee/cnn_dailymail", "3.0.0"))
