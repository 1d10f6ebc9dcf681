"""A method and a datamodule small enough to train a hundred steps in a blink."""

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn


class Counter:
    """Batches numbered from 1; the number is the whole state."""

    def __init__(self, size: int) -> None:
        self.served = 0
        self.size = size

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(len(self)):
            self.served += 1
            yield torch.full((2, self.size), float(self.served % 7))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class CountingData(lightning.LightningDataModule):
    """Serves the numbered batches."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size: expected at least 1, found {size}.")
        self.counter = Counter(size)

    def train_dataloader(self) -> Counter:
        return self.counter

    def val_dataloader(self) -> list[Tensor]:
        return [torch.ones(2, self.counter.size)]

    def test_dataloader(self) -> list[Tensor]:
        return [torch.ones(2, self.counter.size)]

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.counter.served}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counter.served = state_dict["served"]


class Small(lightning.LightningModule):
    """A noisy regression, stepped by hand like the methods of this project."""

    def __init__(self, size: int = 3, rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.layer = nn.Linear(size, 1)
        self.log_step_size = nn.Parameter(torch.full((2,), 0.5).log())
        self._random_state: Tensor | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None
        optimizer: Any = self.optimizers()
        error = self.layer(batch + torch.randn_like(batch)).square().mean()
        loss = error * self.log_step_size.exp().sum()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/loss", loss.detach(), prog_bar=True)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("eval/after_normalised_return", float(self.global_step))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/size", float(self.layer.in_features))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["rate"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint["random_state"]
