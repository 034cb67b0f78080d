"""Lightning's Trainer, with everything off that is ours: checkpoints, samplers, logging, progress."""

import logging
import signal
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, Strategy

from encdec_train.config import Accelerator, TrainerConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.training.callbacks import EveryStep
from encdec_train.training.module import Seq2SeqModule


def fit(module: Seq2SeqModule, data: Seq2SeqDataModule, every_step: EveryStep, trainer: TrainerConfig) -> None:
    """Train until the last step of the plan, or until `every_step` stops.

    Raises:
        KeyboardInterrupt: On Ctrl-C, which Lightning would turn into exit status 1.
    """
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    lightning = pl.Trainer(
        accelerator="cuda" if torch.cuda.is_available() and trainer.accelerator is not Accelerator.cpu else "cpu",
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(trainer),
        max_epochs=1,
        callbacks=[every_step],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        # One item is a whole step and workers are the user's choice, so Lightning's advice on both is noise here.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            lightning.fit(module, datamodule=data)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
                raise KeyboardInterrupt from None
            raise


def _strategy(trainer: TrainerConfig) -> Strategy | str:
    if trainer.devices * trainer.num_nodes == 1:
        return "auto"
    backend = "gloo" if trainer.accelerator is Accelerator.cpu else None
    return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
