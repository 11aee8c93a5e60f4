"""The training step, and what is measured after each epoch."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from app.vision.torch import Network
from training.config import TrainConfig
from training.loading import Batch


class Finetuning(LightningModule):
    """Cross-entropy on the four logits. Validation weighs classes, and photos within them, equally."""

    def __init__(self, network: Network, config: TrainConfig) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        pixels, labels, _weights = batch
        logits = self.network(pixels)[0]
        loss: Tensor = self.loss(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train_accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        pixels, labels, weights = batch
        logits = self.network(pixels)[0].float()
        losses = cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(1) == labels).float()
        self.scored.append((losses, right, weights.float()))

    def on_validation_epoch_end(self) -> None:
        losses, right, weights = (torch.cat(parts) for parts in zip(*self.scored, strict=True))
        self.scored.clear()
        for name, values in (("val_loss", losses), ("val_accuracy", right)):
            mean = (values * weights).sum() / weights.sum()
            self.log(name, mean, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # Lightning's own union is not exported
        config = self.config
        optimizer = AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        if config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
