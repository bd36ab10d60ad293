"""The scripted model as a process of its own, as crash tests and benches use it; and the edges of its HTTP."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anthropic
import httpx2
import pytest
from galley_server.demo.messages import MAX_BODY

HEADERS = {"x-api-key": "k", "anthropic-version": "2023-06-01"}


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    command = [sys.executable, "-m", "galley_server.demo.messages", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip().removeprefix("ready ")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with running("--delay-ms", "1") as url:
        yield url


def said(url: str, text: str) -> str:
    with (
        anthropic.Anthropic(api_key="k", base_url=url, max_retries=0, timeout=10) as client,
        client.messages.stream(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": text}]) as stream,
    ):
        return stream.get_final_text()


def test_without_a_script_it_echoes(echo: str) -> None:
    assert said(echo, "Hello") == "Hello"


def test_a_script_file_decides_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"rules": [{"when": {"asked": "ping"}, "reply": {"text": "pong"}}]}))
    for _ in range(2):
        with running("--script", str(script)) as url:
            assert said(url, "ping") == "pong"


def test_a_bad_script_file_ends_it_with_a_sentence(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"rules": [{"reply": "shout"}]}')
    command = [sys.executable, "-m", "galley_server.demo.messages", "--script", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert "rules.0.reply: expected an object" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "words"),
    [
        ("POST", "/v1/messages", HEADERS, b"{", 400, "The request body is not valid JSON"),
        ("POST", "/v1/messages", HEADERS, b"\xff", 400, "The request body is not valid JSON"),
        ("POST", "/v1/messages", HEADERS, b'{"model": NaN}', 400, "not valid JSON: unexpected token NaN"),
        ("POST", "/v1/messages", HEADERS, b'["\\ud83c"]', 400, "not valid JSON: no low surrogate in string"),
        ("POST", "/v1/messages", HEADERS, b"[" * 100_000, 400, "The request body is not valid JSON"),
        ("POST", "/v1/messages", {"x-api-key": "k"}, b"{}", 400, "anthropic-version: header is required"),
        ("POST", "/v1/messages", {}, b"{}", 401, "x-api-key header is required"),
        ("POST", "/v1/complete", HEADERS, b"{}", 404, "Not found"),
        ("GET", "/v1/messages", HEADERS, b"", 404, "Not found"),
        ("GET", "/v1/models?limit=0", HEADERS, b"", 400, "limit: Input should be between 1 and 1000"),
        ("POST", "/v1/messages", HEADERS, b" " * (MAX_BODY + 1), 413, "Request exceeds the maximum size"),
    ],
)
def test_a_bad_request_gets_the_official_envelope(
    echo: str, method: str, path: str, headers: dict[str, str], content: bytes, status: int, words: str
) -> None:
    answer = httpx2.request(method, echo + path, headers=headers, content=content, timeout=20)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert words in answer.json()["error"]["message"]
    assert answer.json()["request_id"].startswith("req_")


def test_an_unknown_model_is_not_found(echo: str) -> None:
    body = {"model": "gpt-4", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    answer = httpx2.post(f"{echo}/v1/messages", json=body, headers=HEADERS)
    assert answer.status_code == 404
    assert answer.json()["error"] == {"type": "not_found_error", "message": "model: gpt-4"}
