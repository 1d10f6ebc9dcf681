"""Write the policies that ``lightning predict`` adapts, one folder for each task."""

from pathlib import Path

import lightning
from tensordict import TensorDict
from torch import nn

from offline_meta_rl.networks.policy import BatchedPolicy, save_policy


class SavePolicies(lightning.Callback):
    """Save every adapted policy as state dict (``policy.pt``) and program (``policy.pt2``).

    Args:
        folder: Below the trainer's root folder, unless absolute; gets ``task_<index>`` folders.
    """

    def __init__(self, folder: str = "policies") -> None:
        self.folder = folder

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: TensorDict,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save what ``predict_step`` returned.

        Args:
            trainer: The trainer.
            pl_module: The method.
            outputs: The policies of the batch's tasks, a BatchedPolicy.
            batch: Has ``task``, the index of every task, [T].
            batch_idx: Not used.
            dataloader_idx: Not used.

        Raises:
            TypeError: The method's ``predict_step`` returns something else.
        """
        if not isinstance(outputs, BatchedPolicy):
            raise TypeError(
                "SavePolicies needs a method whose predict_step returns a BatchedPolicy; found "
                f"{type(outputs).__name__}. Return one, of the batch's tasks."
            )
        root = Path(trainer.default_root_dir) / self.folder
        # One index for each task, or one for each of its rows.
        tasks = batch["task"].reshape(len(batch["task"]), -1)[:, 0].tolist()
        for index, task in enumerate(tasks):
            policy = outputs.task(index)
            save_policy(policy, root / f"task_{task}", observation_size(policy))


def observation_size(policy: nn.Sequential) -> int:
    """Return how many numbers a policy's first layer sees."""
    first = policy[0]
    assert isinstance(first, nn.Linear)
    return first.in_features
