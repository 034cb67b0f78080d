"""Lightning's Trainer, with everything off that is ours: checkpoints, samplers, logging, progress."""

import logging
import warnings
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from encdec_train import distributed
from encdec_train.config import Accelerator, TrainerConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.errors import EncDecError, StoppedError, fault
from encdec_train.training.callbacks import EveryStep
from encdec_train.training.memory import keep_freed_memory, ran_out
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.profile import ProfileSteps
from encdec_train.training.stop import agreed, held, shield_workers


def fit(module: Seq2SeqModule, data: Seq2SeqDataModule, every_step: EveryStep, trainer: TrainerConfig) -> None:
    """Train until the last step of the plan, or until `every_step` stops.

    Raises:
        StoppedError: When a rank was asked to stop; every rank has then left the same step, and it is saved.
        KeyboardInterrupt: On a second Ctrl-C, which Lightning would turn into exit status 1.
    """
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    on_gpu = torch.cuda.is_available() and trainer.accelerator is not Accelerator.cpu
    if not on_gpu:
        keep_freed_memory()
    lightning = pl.Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(trainer),
        max_epochs=1,
        callbacks=[every_step, ProfileSteps(every_step.root)] if trainer.profile else [every_step],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        # named, not detected: `SLURMEnvironment` overlooks jobs with some names, and its handlers of signals deadlock
        plugins=[TorchElasticEnvironment() if distributed.launched_tasks() else LightningEnvironment()],
    )
    # Lightning's own SIGTERM handler calls a collective, ends with status 0, and makes every step wait for a broadcast;
    # ours notes the signal, and the note travels with the loss (known_defects R1, R2, R10).
    lightning._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    lightning.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    launcher: Any = lightning.strategy.launcher
    if launcher is not None:  # of further ranks on this machine
        launcher._call_children_scripts = held()(launcher._call_children_scripts)
        launcher.kill = lambda _: None  # they end with this process; before, Lightning's observer would kill it, too
    with warnings.catch_warnings():
        # One item is a whole step and workers are the user's choice, so Lightning's advice on both is noise here.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings(
            "ignore", message=".*broadcast_buffers. is deprecated"
        )  # torch 2.10 knows no other name
        warnings.filterwarnings("ignore", message=".*srun. command is available.*")  # `cluster.launch` knows better
        try:
            with module.stop_wish.patiently() as wish:
                shield_workers()
                lightning.fit(module, datamodule=data)
                if module.sharded is not None:
                    module.sharded.fill(torch.device("cpu"))
                device = lightning.strategy.root_device  # the module itself is on the CPU by now
                counts = distributed.all_sum(torch.tensor(wish.counts(), device=device))
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = f"after step {every_step.step}, outside a micro-batch: {str(error).splitlines()[0]}"
            remedy = "Free memory of the device, or take a larger one; the same command goes on"
            raise EncDecError(fault("memory", "room for what a run holds besides", None, reason, remedy)) from error
    if (why := agreed(counts.tolist())) is not None:
        raise StoppedError(why, every_step.step)


def _strategy(trainer: TrainerConfig) -> Strategy | str:
    if trainer.devices * trainer.num_nodes == 1:
        return "auto"
    backend = "gloo" if trainer.accelerator is Accelerator.cpu else None
    patience = timedelta(seconds=1800 if trainer.stall_seconds is None else trainer.stall_seconds + 60)
    if trainer.sharding:
        ranks = trainer.devices * trainer.num_nodes
        return ModelParallelStrategy(ranks, 1, process_group_backend=backend, timeout=patience)
    return DDPStrategy(
        process_group_backend=backend,
        timeout=patience,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        find_unused_parameters=False,
    )
