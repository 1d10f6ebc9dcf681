"""Methods that are trained in two runs: ``lightning fit`` does both, one after the other.

The Reflective Explorer needs a trained filter. That is an ordinary run of another method, with a
config, checkpoints and logs of its own in a folder below the policy's run. If its end is there
already it is not done again, and where it was cut off it continues: give the same command again.
"""

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import yaml

from callbacks.store_config import relative_to_root
from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.interruption import Interrupted

Config = Mapping[str, Any]
"""A config, plain and complete: ``seed_everything``, ``trainer``, ``model``, ``data``, and more."""

CHECKPOINTS = ("last.ckpt", "interrupted.ckpt")
INDIFFERENT = ("device", "steps_per_epoch", "collect")
"""Settings of data that change nothing of what is learned."""

_LOGGER = logging.getLogger(__name__)


@runtime_checkable
class HasFirstStage(Protocol):
    """The class of a method that builds on what another run has trained."""

    def first_stage(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what that run's config differs in; None where no such run is needed.

        Args:
            settings: The method's arguments, plain.

        Returns:
            ``trainer`` with ``max_steps`` and ``default_root_dir``, the name of a folder below the
            method's own; ``model``; and the ``init_args`` of ``data`` that differ.
        """


def train_first_stage(
    config: Config,
    method: object,
    arguments: Sequence[str],
    run: Callable[[list[str]], object],
) -> bool:
    """Train what a run builds on, unless that was done.

    Args:
        config: Of the run.
        method: Class of its model; None where that is not known.
        arguments: That the command was given, for the message after an interruption.
        run: Does one command of ``lightning``.

    Returns:
        Whether anything was trained.

    Raises:
        Interrupted: That run was stopped by a signal.
    """
    if not isinstance(method, HasFirstStage):
        return False
    changes = method.first_stage(config["model"]["init_args"])
    if changes is None:
        return False
    wanted = with_changes(config, changes)
    checkpoint, done = latest(Path(wanted["trainer"]["default_root_dir"]) / "checkpoints", wanted)
    if done >= wanted["trainer"]["max_steps"]:
        return False
    with TemporaryDirectory() as folder:
        file = Path(folder) / "first_stage.yaml"
        file.write_text(yaml.safe_dump(wanted))
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        try:
            run(["fit", "--config", str(file), *resume])
        except Interrupted as interrupted:
            stage = changes["trainer"]["default_root_dir"]
            raise Interrupted(
                f"{interrupted.done} of the {stage}",
                shlex.join(["lightning", *arguments]),
                interrupted.signal_number,
            ) from interrupted
    return True


def with_changes(config: Config, changes: Config) -> dict[str, Any]:
    """Return the config of a first stage.

    Args:
        config: Of the run that needs it.
        changes: What ``first_stage`` of its method returned.
    """
    root = config["trainer"]["default_root_dir"]
    moved = relative_to_root(dict(config), root)
    assert isinstance(moved, dict)  # as the config is
    found: dict[str, Any] = {key: value for key, value in moved.items() if key != "ckpt_path"}
    folder = str(Path(root) / changes["trainer"]["default_root_dir"])
    found["trainer"] = {**found["trainer"], **changes["trainer"], "default_root_dir": folder}
    found["model"] = changes["model"]
    arguments = {**found["data"]["init_args"], **changes["data"]["init_args"]}
    found["data"] = {**found["data"], "init_args": arguments}
    return found


def latest(folder: Path, wanted: Config) -> tuple[Path | None, int]:
    """Return the checkpoint of a first stage that has most steps, and their number.

    Args:
        folder: Of its checkpoints.
        wanted: Its config as it would be begun today.

    Returns:
        None and 0 where there is none with these settings.
    """
    found: tuple[Path | None, int] = (None, 0)
    for path in (folder / name for name in CHECKPOINTS):
        if not path.is_file():
            continue
        checkpoint = Checkpoint.read(path, mapped=True)
        other = difference(deciding(wanted), deciding(checkpoint.config or {}))
        if other:
            _LOGGER.warning("%s is not used, its settings are others: %s.", path, other)
        elif checkpoint.global_step > found[1]:
            found = path, checkpoint.global_step
    return found


def deciding(config: Config) -> dict[str, Any]:
    """Return the parts of a config that decide what a run learns."""
    trainer, model, data = (config.get(part) or {} for part in ("trainer", "model", "data"))
    given = data.get("init_args") or {}
    return {
        "seed_everything": config.get("seed_everything"),
        "trainer": {name: trainer.get(name) for name in ("max_steps", "precision")},
        "model": model.get("init_args") or {},
        "data": {name: value for name, value in given.items() if name not in INDIFFERENT},
    }


def difference(wanted: object, found: object, where: str = "") -> str | None:
    """Say which setting is another one; settings that are not wanted may be anything."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        pairs = ((wanted[name], found.get(name), f"{where}.{name}") for name in wanted)
        return next((text for pair in pairs if (text := difference(*pair))), None)
    if wanted == found:
        return None
    return f"{where.removeprefix('.')} is {wanted}, there it is {found}"
