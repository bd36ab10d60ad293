"""Output: whole while short, then a preview with the whole in a file, in bounded memory."""

import json
from pathlib import Path

import pytest
from galley_sandbox.hand.results import MAX_TEXT, Output, bounded, create_result_file, result_json


def test_short_output_is_whole_and_clean(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "call")
    output.add(b"\x1b[1mbold\x1b[0m\n")
    output.add("é".encode()[:1])
    output.add("é".encode()[1:] + b"\n\n")
    assert output.text() == "bold\né"
    assert list(tmp_path.iterdir()) == []


def test_output_just_over_the_limit_is_previewed_from_memory(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "call")
    output.add(b"x" * (MAX_TEXT + 1))
    text = output.text()
    assert text.startswith(f"[output truncated]\n[100,001 characters in all; the whole output is in {tmp_path}")
    assert (tmp_path / "call.txt").read_bytes() == b"x" * (MAX_TEXT + 1)


@pytest.mark.parametrize("piece", [1000, 65_536, 3_000_000])
def test_huge_output_goes_to_a_file_as_it_comes(tmp_path: Path, piece: int) -> None:
    data = b"first\n" + b"m" * 3_000_000 + b"\nlast\n"
    output = Output(str(tmp_path), "call")
    for start in range(0, len(data), piece):
        output.add(data[start : start + piece])
    text = output.text()
    assert "first" in text
    assert text.endswith("\nlast")
    assert len(text) < 30_000
    assert (tmp_path / "call.txt").read_bytes() == data


def test_what_was_printed_before_the_command_comes_first(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "call", early=b"early\n")
    output.add(b"now\n")
    assert output.text() == "early\nnow"


def test_without_room_for_the_file_there_is_still_a_preview(tmp_path: Path) -> None:
    text = bounded("x" * (MAX_TEXT + 1), str(tmp_path / "absent"), "call")
    assert "could not be kept" in text


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "call.txt").symlink_to(tmp_path / "target")
    _, path = create_result_file(str(tmp_path), "call")
    assert path.endswith("call-1.txt")
    assert not (tmp_path / "target").exists()


def test_a_call_id_cannot_name_another_place(tmp_path: Path) -> None:
    _, path = create_result_file(str(tmp_path), "../../etc/x")
    assert Path(path).parent == tmp_path


def test_empty_text_is_no_block() -> None:
    assert json.loads(result_json("", is_error=False)) == {"content": [], "is_error": False}
