"""What benchmarks share."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[int]:
    """Give both sides as many threads, two where there are two cores; return how many."""
    before = torch.get_num_threads()
    number = min(2, os.cpu_count() or 1)
    torch.set_num_threads(number)
    yield number
    torch.set_num_threads(before)
