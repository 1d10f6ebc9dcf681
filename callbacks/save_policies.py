"""Write the policies that ``lightning predict`` adapts, one folder for each task."""

from pathlib import Path
from typing import Any

import lightning

from offline_meta_rl.networks.policy import save_policy


class SavePolicies(lightning.Callback):
    """Save every adapted policy as state dict (``policy.pt``) and program (``policy.pt2``).

    Args:
        folder: below the trainer's root folder, unless absolute; gets ``task_<index>`` folders.
    """

    def __init__(self, folder: str = "policies") -> None:
        self.folder = folder

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save what ``predict_step`` returned.

        Args:
            trainer: the trainer.
            pl_module: the method.
            outputs: the policies of the batch's tasks, a BatchedPolicy.
            batch: has ``task``, the index of every task, [T].
            batch_idx: not used.
            dataloader_idx: not used.
        """
        root = Path(trainer.default_root_dir) / self.folder
        tasks = batch["task"].reshape(len(batch["task"]), -1)[:, 0].tolist()
        for index, task in enumerate(tasks):
            policy = outputs.task(index)
            save_policy(policy, root / f"task_{task}", policy[0].in_features)
