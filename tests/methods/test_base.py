"""What every method inherits: the optimizer's step moves the parameters its gradients are for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from offline_meta_rl.methods.base import MetaModule
from tests.helpers import Batches, quiet_trainer


class Transposed(MetaModule):
    """Its gradient lies in memory column by column, as ``torch.autograd.grad`` may return it."""

    def __init__(self, gradient: Tensor, *, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(gradient.shape))
        self.gradient, self.fused = gradient.T.contiguous().T, fused
        assert self.gradient.stride() != self.weight.stride()

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        return self.apply_gradients([self.weight], [self.gradient], {"loss": torch.zeros(())})

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1, fused=self.fused)


def train(module: MetaModule, folder: Path) -> None:
    trainer = quiet_trainer(folder, max_steps=3)
    batches = [TensorDict({"x": torch.zeros(1, 1)}, [1]) for _ in range(3)]
    trainer.fit(module, train_dataloaders=Batches(*batches))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_of_any_memory_layout_move_their_own_weights(fused: bool, tmp_path: Path) -> None:
    gradient = torch.tensor([[-1.0, -2.0, 0.0], [3.0, 0.0, 4.0]])
    module = Transposed(gradient, fused=fused)
    train(module, tmp_path)
    torch.testing.assert_close(module.weight.detach(), -0.3 * gradient.sign())
