"""Every store and every sandbox driver, one after another: each claim of the contract suite is made of all of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.catalogue_kit import Kitchen, open_kitchen
from tests.contract.sandbox_kit import backend, driver, hand, nothing_blocks_the_loop, sandbox
from tests.contract.store_kit import Kit, open_kit

__all__ = ["backend", "driver", "hand", "kit", "kitchen", "nothing_blocks_the_loop", "sandbox"]


@pytest.fixture(params=["memory", "file"])
async def kit(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    async with open_kit(":memory:" if request.param == "memory" else tmp_path / "galley.db") as opened:
        yield opened


@pytest.fixture
async def kitchen(tmp_path: Path) -> AsyncIterator[Kitchen]:
    async with open_kitchen(tmp_path / "home") as opened:
        yield opened
