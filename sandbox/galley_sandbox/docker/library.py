"""The edge to docker-py: a client of the engine, and its errors turned into ours.

Nothing else loads docker-py, and this is loaded when an engine is first used: it takes
a fifth of a second and some memory, which a home without an engine should not pay.
"""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import requests
from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound

from galley_sandbox.docker.failures import NO_ENGINE, Conflict, Missing
from galley_sandbox.errors import SandboxUnavailable

_OLDEST_API = "1.41"
_ANSWER_WITHIN_S = 60
_GREET_WITHIN_S = 10


def client_at(url: str) -> DockerClient:
    """A client that speaks the engine's own version. Blocking."""
    address = urlsplit(url)
    if address.scheme == "unix":
        # docker-py leaks the socket that it could not connect.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(address.path)
    # docker-py can ask for the version by itself, but then leaks its connections if there is no good answer.
    with closing(DockerClient(base_url=url, version=_OLDEST_API, timeout=_GREET_WITHIN_S)) as first:
        version = first.version(api_version=False).get("ApiVersion")
    if not isinstance(version, str):
        raise DockerException("what answers is not a Docker engine")
    return DockerClient(base_url=url, version=version, timeout=_ANSWER_WITHIN_S)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """docker-py's errors, and those it lets through of the library below it, as ours."""
    try:
        yield
    except NotFound as e:
        raise Missing(f"Docker could not {what}: {e.explanation or e}") from e
    except APIError as e:
        if e.status_code == 409:
            raise Conflict(f"Docker could not {what}: {e.explanation or e}") from e
        raise SandboxUnavailable(
            f"Docker could not {what}: {e.explanation or e}", fix="see the engine's log, and `galley doctor`"
        ) from e
    except (DockerException, requests.RequestException, OSError) as e:
        message = f"Docker could not {what}: the engine does not answer ({type(e).__name__})."
        raise SandboxUnavailable(message, fix=NO_ENGINE) from e
