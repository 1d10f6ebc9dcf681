"""Every method with a configuration small enough for tests, and the real command to train it."""

import copy
import importlib
import os
import pkgutil
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor

from offline_meta_rl import cli, methods
from offline_meta_rl.methods.base import MetaModule
from tests.helpers import make_dataset
from tests.image_data import SHAPE, make_image_dataset

FILTER = {
    "latent": "recurrent",
    "recurrent": {"random_size": 3, "deterministic_size": 4, "hidden_size": 6},
    "image_network": "dense",
    "image_size": 6,
    "hidden_size": 6,
}
LOSS = {"conservatism": {"form": "logsumexp", "num_actions": 2}}
MODEL: dict[str, dict[str, Any]] = {
    "BeliefFilter": {"filter": FILTER},
    "CQL": {"network": {"width": 8}, "losses": LOSS},
    "Macaw": {"network": {"width": 8, "head_width": 4, "latent_size": 3}},
    "Pearl": {
        "network": {"width": 8, "depth": 2},
        "encoder": {"width": 6, "depth": 1, "latent_size": 3},
    },
    "MetaBehaviourCloning": {"network": {"width": 8, "latent_size": 3}},
    "MultitaskAWR": {"network": {"width": 8}},
    "ReflectiveExplorer": {
        "filter": FILTER,
        "filter_steps": 5,
        "network": {"width": 8},
        "losses": LOSS,
    },
    "SAC": {"network": {"width": 8}},
    "SAC_per_task": {
        "agents": "per_task",
        "num_tasks": 3,
        "network": {"width": 8},
        "losses": {"temperature_loss": "paper"},
    },
}
SIZES: dict[str, dict[str, Any]] = {
    "BeliefFilter": {"observation_shape": list(SHAPE), "action_size": 2},
    "MultitaskAWR": {"observation_size": 2, "action_size": 2, "num_tasks": 7},
    "ReflectiveExplorer": {"observation_shape": list(SHAPE), "action_size": 2},
    "SAC": {"observation_size": 2, "action_size": 2, "task_feature_size": 2},
}
# The replay overflows within twelve steps of the forty environments.
ONLINE = {
    "capacity": 300,
    "replay": {"warmup_steps": 2, "batch_size": 4, "updates_per_step": 1},
}
META_TRAJECTORIES = {
    "env": "nowhere_images",
    "num_episodes": 2,
    "batch_size": 4,
    "beliefs": {"count": 20, "batch_size": 6},
    "held_out": {"count": 8},
}
LIFETIMES = {
    "tasks": [0, 7, 20],
    "stages": 2,
    "replay": {"warmup_steps": 30, "batch_size": 4},
}
DATA = {
    "BeliefFilter": {"class_path": "MetaTrajectories", "init_args": META_TRAJECTORIES},
    "ReflectiveExplorer": {"class_path": "MetaTrajectories", "init_args": META_TRAJECTORIES},
    "SAC": {"class_path": "OnlineBuffer", "init_args": {"family": "point_robot", **ONLINE}},
    "SAC_per_task": {
        "class_path": "LifetimeBuffers",
        "init_args": {"family": "point_robot", "lifetime_steps": 700, **LIFETIMES},
    },
}
BUFFERS = {"batches": {"inner_size": 4, "outer_size": 4, "tasks": 5}}
TRANSITIONS = ["observation", "action", "reward", "next_observation", "terminated"]
FIELDS = {"CQL": TRANSITIONS, "Pearl": TRANSITIONS}
STEPS_PER_EPOCH = 6
PROTOCOL = {"episodes": 1, "context_size": 8}
EVALUATE = {"class_path": "Evaluate", "init_args": {"protocol": PROTOCOL}}


def _subclasses(parent: type[MetaModule]) -> set[type[MetaModule]]:
    below = set(parent.__subclasses__())
    return below.union(*(_subclasses(child) for child in below))


def method_classes() -> list[type[MetaModule]]:
    """Return all classes in ``offline_meta_rl.methods`` that implement a method."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    own = (c for c in _subclasses(MetaModule) if c.__module__.startswith(methods.__name__))
    found = (c for c in own if c.outer_step is not MetaModule.outer_step)
    return sorted(found, key=lambda method: method.__name__)


VARIANTS = {"SAC_per_task": "SAC"}
"""Further cases of a class, which the same promises hold for: name of the case -> class."""

METHODS = sorted([*VARIANTS, *(method.__name__ for method in method_classes())])
ON_TASK_BUFFERS = [name for name in METHODS if name not in DATA]


def class_name(method: str) -> str:
    """Return the class that a case is of."""
    return VARIANTS.get(method, method)


def sizes(method: str) -> dict[str, Any]:
    """Return the arguments of a method that the data decides."""
    return SIZES.get(method, {"observation_size": 2, "action_size": 2})


def dataset(folder: Path) -> Path:
    """Write a dataset of six train tasks and one test task of the point robot's sizes.

    Beside it lies one of images.
    """
    make_image_dataset(folder / "images", length=(6, 4, 5, 6))
    return make_dataset(folder / "dataset", num_tasks=7, observation_size=2, action_size=2)


def config(
    method: str, data_path: Path, *, evaluate: bool = False, **trainer: Any
) -> dict[str, Any]:
    """Return the config of ten steps with a validation after every fourth.

    Args:
        method: class name. The filter that a ReflectiveExplorer acts on is trained at once.
        data_path: of ``dataset``.
        evaluate: measure returns at validation too, where the method adapts.
        trainer: options of the trainer that differ.
    """
    buffers = {"env": "point_robot", "path": str(data_path), **copy.deepcopy(BUFFERS)}
    if method in FIELDS:
        buffers["fields"] = FIELDS[method]
    data = DATA.get(method, {"class_path": "TaskBuffers", "init_args": buffers})
    model = {**sizes(method), **MODEL.get(method, {})}
    if data["class_path"] == "MetaTrajectories":
        images = {"path": str(data_path.parent / "images")}
        data = {**data, "init_args": {**data["init_args"], **images}}
    if method == "ReflectiveExplorer":
        model["filter_from"] = str(trained_filter(data_path))
    options: dict[str, Any] = {
        "max_steps": 10,
        "val_check_interval": 4,
        "log_every_n_steps": 1,
        "logger": False,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "callbacks": [EVALUATE] if evaluate and method in ON_TASK_BUFFERS else [],
    }
    found = {
        "seed_everything": 5,
        "model": {"class_path": class_name(method), "init_args": model},
        "data": {
            "class_path": data["class_path"],
            "init_args": {**data["init_args"], "steps_per_epoch": STEPS_PER_EPOCH},
        },
        "trainer": options | trainer,
        "checkpoint": {"every_n_train_steps": 1},
        "monitor": {"gradient_norms": False},
    }
    return copy.deepcopy(found)  # groups of settings are shared by all configs


def trained_filter(data_path: Path) -> Path:
    """Return the checkpoint of a filter, trained beside the data if it is not there."""
    folder = data_path.parent / "filter"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if (data_path.parent / "images").is_dir() and not checkpoint.is_file():
        fit(config("BeliefFilter", data_path, max_steps=5), folder)
    return checkpoint


def fit(settings: dict[str, Any], root: Path, *arguments: str) -> dict[str, Any]:
    """Train with the command; return the last checkpoint.

    Replays on the disk that a checkpoint of another folder goes on with are copied along.
    """
    write(settings, root)
    if "--ckpt_path" in arguments:
        checkpoint = Path(arguments[arguments.index("--ckpt_path") + 1])
        replays = checkpoint.parent.parent / "dataset.partial"
        if replays.is_dir() and replays.parent != root:
            shutil.copytree(replays, root / "dataset.partial", dirs_exist_ok=True)
    cli.run(command(root, *arguments))
    return last(root)


def write(settings: dict[str, Any], root: Path) -> None:
    """Write the config of a run into its folder."""
    root.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "trainer": {**settings["trainer"], "default_root_dir": str(root)}}
    (root / "given.yaml").write_text(yaml.safe_dump(settings))


def command(root: Path, *arguments: str) -> list[str]:
    """Return the arguments that train the config in a run's folder."""
    return ["fit", "--config", str(root / "given.yaml"), *arguments]


def last(root: Path) -> dict[str, Any]:
    """Load a run's last checkpoint, which must hold plain types."""
    path = root / "checkpoints" / "last.ckpt"
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what the further training depends on."""
    names = {"state_dict", "optimizer_states", "random_state", "global_step"}
    data = {"TaskBuffers", "OnlineBuffer", "LifetimeBuffers", "MetaTrajectories"}
    return {name: checkpoint[name] for name in (names | data) & {*checkpoint}}


def difference(first: Any, second: Any, where: str = "") -> str | None:
    """Return where two nested states are not equal, bit for bit; None if they are."""
    if isinstance(first, Tensor):
        same = isinstance(second, Tensor) and first.dtype == second.dtype
        return None if same and torch.equal(first, second) else where
    if type(first) is not type(second):
        return where
    if isinstance(first, dict | list | tuple):
        if len(first) != len(second):
            return where
        keys = first if isinstance(first, dict) else range(len(first))
        if isinstance(first, dict) and set(first) != set(second):
            return where
        found = (difference(first[key], second[key], f"{where}.{key}") for key in keys)
        return next((place for place in found if place is not None), None)
    return None if first == second else where


class PoisonAt(lightning.Callback):
    """Makes one parameter NaN just before an outer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: object
    ) -> None:
        if trainer.global_step + 1 == self.step:
            next(p for p in pl_module.parameters() if p.requires_grad).data.fill_(torch.nan)


class SignalAt(lightning.Callback):
    """Sends a signal to this process at an outer step: before it, during it, or validating."""

    def __init__(self, step: int, number: int, place: str) -> None:
        self.step, self.number, self.place = step, number, place

    def _send(self, place: str, step: int) -> None:
        if (place, step) == (self.place, self.step):
            os.kill(os.getpid(), signal.Signals(self.number))

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: object) -> None:
        self._send("before", trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *args: object) -> None:
        self._send("during", trainer.global_step + 1)

    def on_validation_start(self, trainer: lightning.Trainer, *args: object) -> None:
        self._send("validating", trainer.global_step)


class RecordSteps(lightning.Callback):
    """Keeps each outer step's gradient and metrics, and the rank's tasks, in a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.gradients: list[dict[str, Tensor]] = []
        self.metrics: list[dict[str, float]] = []
        self.tasks: list[list[int]] = []

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: object
    ) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        logged = trainer.callback_metrics.items()
        self.metrics.append({n: float(v) for n, v in logged if n.startswith("train/")})
        if "task" in batch.keys():
            self.tasks += batch["task"].tolist()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        kept = {"gradients": self.gradients, "metrics": self.metrics, "tasks": self.tasks}
        parameters = {n: p.detach() for n, p in pl_module.named_parameters()}
        torch.save({**kept, "parameters": parameters}, f"{self.path}.{trainer.global_rank}")


class RecordMemory(lightning.Callback):
    """Notes the process's resident memory in bytes after chosen steps."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: object) -> None:
        if trainer.global_step in self.steps:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
