"""The Lightning module: training step, validation metrics and optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.utils import parameters_to_vector
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from training.augment import augment
from training.config import TrainConfig
from training.errors import ExportError
from training.loading import OUTLIER, Batch
from training.network import Network
from training.patches import room_for
from training.styles import mix_styles

BEST, LAST = "best.ckpt", "last.ckpt"


class Finetuning(LightningModule):
    """Trains with cross-entropy. Validation weighs classes equally, and photos equally within a class."""

    def __init__(self, network: Network, config: TrainConfig) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []
        self.rng = torch.Generator()
        if config.mixstyle:
            for stage in (network.trunk.layer1, network.trunk.layer2):
                stage.register_forward_hook(self.mix_styles)
        self.draws = torch.get_rng_state()  # state of the generator that samples the epochs' images

    def setup(self, stage: str) -> None:
        del stage
        # Lightning reseeds when it starts several processes; all must draw the sample of a single process.
        torch.set_rng_state(self.trainer.strategy.broadcast(self.draws))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["draws"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "draws" in checkpoint:  # version 0.1.0 did not save it
            torch.set_rng_state(checkpoint["draws"])

    def on_train_epoch_start(self) -> None:
        # The same augmentation after a resumption, another one on each device.
        self.rng.manual_seed(hash((self.config.seed, self.current_epoch, self.global_rank)))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        patches, labels, _weights = batch
        logits = self.network(self.vary(patches))[0]
        known = labels != OUTLIER
        loss: Tensor = self.loss(logits[known], labels[known]) if known.any() else logits.new_zeros(())
        if not known.all():
            loss = loss - self.config.outlier_weight * log_softmax(logits[~known], 1).mean()
        accuracy = (logits[known].argmax(1) == labels[known]).float().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train_accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def mix_styles(self, stage: nn.Module, _: object, maps: Tensor) -> Tensor:
        return mix_styles(maps, self.config.mixstyle, self.rng) if stage.training else maps

    @torch.no_grad()
    def vary(self, patches: Tensor) -> Tensor:
        """Return augmented images [n, size, size, 3]; size is `coarse_size` in the first epochs."""
        config = self.config
        coarse = self.current_epoch < config.coarse_epochs
        size = config.coarse_size if coarse else config.preprocessing.size
        with torch.autocast(patches.device.type, enabled=False):
            return augment(patches, size, room_for(config.augmentation), config.augmentation, self.rng)

    def on_after_backward(self) -> None:
        """Average batch-norm statistics over the processes; on GPUs, SyncBatchNorm has done it already."""
        norms = [layer for layer in self.network.modules() if isinstance(layer, nn.BatchNorm2d)]
        if self.trainer.world_size == 1 or not norms:
            return
        buffers = [values for layer in norms for values in layer.buffers() if values.is_floating_point()]
        mean = self.trainer.strategy.reduce(parameters_to_vector(buffers), reduce_op="mean")
        for buffer, values in zip(buffers, mean.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(values)

    def validation_step(self, batch: Batch, _: int) -> None:
        pixels, labels, weights = batch
        logits = self.network(pixels)[0].float()
        losses = cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(1) == labels).float()
        self.scored.append((losses, right, weights.float()))

    def on_validation_epoch_end(self) -> None:
        losses, right, weights = (self.gather(torch.cat(column)) for column in zip(*self.scored, strict=True))
        self.scored.clear()
        for name, values in (("val_loss", losses), ("val_accuracy", right)):
            mean = (values * weights).sum() / weights.sum()
            self.log(name, mean, prog_bar=True, sync_dist=True)

    def gather(self, share: Tensor) -> Tensor:
        """Return the values of all processes in the rows' order, without the padding of the last shares."""
        loader: Any = self.trainer.val_dataloaders
        shares = self.all_gather(share).reshape(self.trainer.world_size, -1)  # type: ignore[union-attr]
        return shares.T.reshape(-1)[: len(loader.dataset)]

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # Lightning's own union is not exported
        config = self.config
        optimizer = AdamW(
            self.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        if steps < 2:
            return optimizer
        # At least two steps of warm-up: with one, OneCycleLR divides by 0.
        warm_up = max(0.1, 2 / steps)
        schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_checkpoint(path: Path, config: TrainConfig) -> Network:
    """Return the checkpoint's network in evaluation mode; raise ExportError if the file is missing."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist; run `leuko-train fit` first") from error
    weights = {key.removeprefix("network."): t for key, t in state.items() if key.startswith("network.")}
    network = Network(len(weights["trunk.fc.bias"]), config.preprocessing)
    network.load_state_dict(weights)
    return network.eval()
