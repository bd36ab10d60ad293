"""How requests to the model endpoint share connections."""

from contextlib import ExitStack

import pytest
from galley_server.brain.endpoint import POOL, Endpoint
from galley_server.secret import Secret
from galley_server.settings import ModelSettings

pytestmark = pytest.mark.anyio

SETTINGS = ModelSettings(api_key=Secret("k"), base_url="http://127.0.0.1:1")


async def test_requests_one_after_another_keep_to_one_pool() -> None:
    async with Endpoint.open(SETTINGS) as endpoint:
        for _ in range(3 * POOL):
            with endpoint.client() as client:
                assert client is endpoint.first
        assert endpoint.pools == 1


async def test_requests_at_once_spread_over_small_pools() -> None:
    async with Endpoint.open(SETTINGS) as endpoint:
        with ExitStack() as stack:
            clients = [stack.enter_context(endpoint.client()) for _ in range(3 * POOL)]
            assert endpoint.pools == 3
            assert max(clients.count(client) for client in clients) == POOL
        with endpoint.client() as client:
            assert client is endpoint.first


async def test_every_client_asks_the_same_endpoint_in_the_same_way() -> None:
    async with Endpoint.open(SETTINGS) as endpoint:
        with ExitStack() as stack:
            clients = [stack.enter_context(endpoint.client()) for _ in range(POOL + 1)]
        other, first = clients[-1], endpoint.first
        assert other is not first
        assert (other.base_url, other.api_key, other.max_retries) == (first.base_url, first.api_key, first.max_retries)
        assert other.timeout == first.timeout


async def test_leaving_closes_every_pool() -> None:
    async with Endpoint.open(SETTINGS) as endpoint:
        with ExitStack() as stack:
            clients = [stack.enter_context(endpoint.client()) for _ in range(POOL + 1)]
    assert all(client.is_closed() for client in clients)
