"""Which errors a command shows as one message."""

DEBUG_VARIABLE = "OFFLINE_META_RL_DEBUG"
PACKAGES = {"offline_meta_rl", "datamodules", "callbacks"}


def raised_in_project(error: BaseException) -> bool:
    """Whether the error was raised by this project's code, so that its message says all."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.split(".")[0] in PACKAGES
