"""Whether there is a login for Weights & Biases, found without asking anybody."""

import os
from netrc import NetrcParseError, netrc
from urllib.parse import urlparse


def logged_in() -> bool:
    """Whether there is an API key, in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
