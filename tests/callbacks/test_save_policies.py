"""SavePolicies: ``predict`` writes one policy for each task."""

from pathlib import Path

import lightning
import torch

from callbacks.save_policies import SavePolicies
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.networks.policy import load_policy
from tests.helpers import build, make_dataset, task_buffers


def test_predict_saves_the_policy_of_every_task(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "data", num_tasks=4, test_tasks=(1, 3))
    method = build(Macaw, observation_size=4, action_size=2, width=8, latent_size=4)
    data = task_buffers(path, inner_size=32)
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[SavePolicies(folder="adapted")],
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.predict(method, data, return_predictions=False)

    assert sorted(p.name for p in (tmp_path / "adapted").iterdir()) == ["task_1", "task_3"]
    observation = torch.randn(5, 4)
    for task in (1, 3):
        context = data.context([task], 32, seed=0)[0]
        expected = method.adapt(context)(observation)
        folder = tmp_path / "adapted" / f"task_{task}"
        torch.testing.assert_close(load_policy(folder / "policy.pt")(observation), expected)
        program = torch.export.load(folder / "policy.pt2").module()
        torch.testing.assert_close(program(observation), expected)
