"""Which model base URLs are this server itself."""

import pytest
from galley_server.errors import ConfigError
from galley_server.own_address import refuse_own_address


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("http://127.0.0.1:8420", "127.0.0.1"),
        ("http://localhost:8420/", "127.0.0.1"),
        ("http://LOCALHOST:8420/v1", "localhost"),
        ("http://127.0.0.1:8420", "0.0.0.0"),
        ("http://127.8.8.8:8420", "0.0.0.0"),
        ("http://0.0.0.0:8420", "127.0.0.1"),
    ],
)
def test_a_base_url_that_is_this_server_is_refused_by_name(base_url: str, host: str) -> None:
    with pytest.raises(ConfigError, match=r"this Galley server itself: set GALLEY_MODEL_BASE_URL"):
        refuse_own_address(base_url, host=host, port=8420)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.anthropic.com",
        "http://127.0.0.1:8421",
        "http://127.0.0.2:8420",  # another loopback address is another server
        "http://192.0.2.7:8420",
        "http://nowhere.invalid:8420",
    ],
)
def test_another_address_or_port_passes(base_url: str) -> None:
    refuse_own_address(base_url, host="127.0.0.1", port=8420)


def test_the_scheme_gives_the_port_that_the_url_does_not_name() -> None:
    with pytest.raises(ConfigError):
        refuse_own_address("http://127.0.0.1", host="127.0.0.1", port=80)
