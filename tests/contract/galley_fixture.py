"""The fixture `galley`, for whoever names this module in `pytest_plugins`: one server for all tests of the wire."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from tests.contract.sdk_server import Galley, running_galley


@pytest.fixture(scope="session")
def galley(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Galley]:
    """In an event loop of its own: the sync SDK blocks its thread."""
    home = tmp_path_factory.mktemp("galley")
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running_galley(home)) as galley:
        yield galley
