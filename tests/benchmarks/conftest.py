"""What benchmarks set for their process must not stay for the tests that follow in it."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Puts back the number of torch's threads: another number adds in another order, to other last digits."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
