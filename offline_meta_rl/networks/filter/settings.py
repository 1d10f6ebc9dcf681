"""Settings of the variational filter; the defaults are MELD's (Zhao et al., 2020).

The Reflective Explorer prints no numbers and says that it follows MELD.
"""

from dataclasses import dataclass
from typing import Literal

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.networks.filter.recurrent import RecurrentSizes
from offline_meta_rl.networks.filter.two_level import TwoLevelSizes


@dataclass(frozen=True)
class FilterSettings:
    """Networks and objective of a variational filter.

    Attributes:
        latent: The latent state: ``two_level``, which the paper has after MELD, or ``recurrent``,
            whose beliefs have a deterministic part beside mean and variance.
        two_level: Sizes of the latent state ``two_level``.
        recurrent: Sizes of the latent state ``recurrent``.
        image_network: ``convolutional``, or ``dense`` for very small images.
        image_size: Depth d of the convolutional networks, or width of the dense ones' hidden layer.
        hidden_size: Width of the reward decoder's two hidden layers.
        reward_copies: How often the reward is repeated beside the image's feature, as in MELD: one
            number among hundreds would be overlooked.
        image_std: Fixed standard deviation of every pixel; pixels are numbers from 0 to 1.
        reward_std: Fixed standard deviation of the reward.
        reward_weight: Factor of the reward's log-likelihood, beta of section 3.6.
        prior_reward_weight: Factor of the log-likelihood of each reward given a sample of the
            *prior* at the same step. 0 is the paper's formula, under which the filter may forget
            the task: the reward is an input, so decoding it needs no memory. Any other value is a
            departure from the paper.
        autocast: Run the image networks in bfloat16.

    Raises:
        ValueError: An unknown name, or a number out of its range.
    """

    latent: Literal["two_level", "recurrent"] = "two_level"
    two_level: TwoLevelSizes = TwoLevelSizes()
    recurrent: RecurrentSizes = RecurrentSizes()
    image_network: Literal["convolutional", "dense"] = "convolutional"
    image_size: int = 64
    hidden_size: int = 256
    reward_copies: int = 32
    image_std: float = 0.1**0.5
    reward_std: float = 0.2
    reward_weight: float = 10.0
    prior_reward_weight: float = 0.0
    autocast: bool = False

    def __post_init__(self) -> None:
        """Check names and ranges."""
        known = {"latent": LATENT_NAMES, "image_network": IMAGE_NETWORK_NAMES}
        for name, choices in known.items():
            found = vars(self)[name]
            if found not in choices:
                raise ValueError(f"{name}: expected one of {list(choices)}, found {found!r}.")
        check_at_least(self, 1, "image_size", "hidden_size", "reward_copies")
        check_at_least(self, 0, "reward_weight", "prior_reward_weight")
        for name in ("image_std", "reward_std"):
            if vars(self)[name] <= 0.0:
                raise ValueError(f"{name}: expected more than 0, found {vars(self)[name]}.")


LATENT_NAMES = ("two_level", "recurrent")
IMAGE_NETWORK_NAMES = ("convolutional", "dense")
