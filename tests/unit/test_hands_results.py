"""What a hostile hand may put into the log: little."""

import base64

import pytest
from galley_sandbox.port import Block, MediaBlock, TextBlock, ToolResult
from galley_server.hands import results
from galley_server.hands.results import MAX_BLOCKS, MAX_CHARACTERS, MAX_IMAGE_BASE64, from_sandbox, with_notes
from galley_server.wire.content import DocumentBlock, ImageBlock
from galley_server.wire.content import TextBlock as WireText

PIXELS = base64.b64encode(b"not really a picture").decode()


def passed(*blocks: Block, is_error: bool = False) -> list[str]:
    outcome = from_sandbox(ToolResult(blocks, is_error))
    return [block.text if isinstance(block, WireText) else block.type for block in outcome.content]


def test_text_passes_as_it_is() -> None:
    assert passed(TextBlock("h\u00e9llo\n\0")) == ["h\u00e9llo\n\0"]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_blank_text_is_dropped_because_the_messages_api_refuses_it(text: str) -> None:
    assert passed(TextBlock(text)) == []


def test_an_error_always_says_something() -> None:
    assert passed(is_error=True) == ["The tool failed without any output."]
    assert passed(TextBlock(" "), is_error=True) == ["The tool failed without any output."]


def test_text_is_cut_at_the_limit_over_all_blocks_with_a_note() -> None:
    first, second, note = passed(TextBlock("a" * 60_000), TextBlock("b" * 60_000))
    assert len(first) + len(second) == MAX_CHARACTERS
    assert note == "[output truncated: 60000 characters, the limit is 100000]"


def test_text_at_the_limit_is_not_cut() -> None:
    assert passed(TextBlock("a" * MAX_CHARACTERS)) == ["a" * MAX_CHARACTERS]


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    assert passed(TextBlock("a\ud83d")) == ["a\ufffd"]
    assert passed(TextBlock("\ud83d\ude00")) == ["\U0001f600"]


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/gif", "image/webp"])
def test_an_image_passes(media_type: str) -> None:
    outcome = from_sandbox(ToolResult((MediaBlock("image", media_type, PIXELS),), is_error=False))
    assert isinstance(outcome.content[0], ImageBlock)


def test_a_pdf_passes() -> None:
    outcome = from_sandbox(ToolResult((MediaBlock("document", "application/pdf", PIXELS),), is_error=False))
    assert isinstance(outcome.content[0], DocumentBlock)


@pytest.mark.parametrize(
    ("block", "note"),
    [
        (MediaBlock("image", "image/svg+xml", PIXELS), "[left out an image of a type that cannot be shown]"),
        (MediaBlock("image", "application/pdf", PIXELS), "[left out an image of a type that cannot be shown]"),
        (MediaBlock("document", "text/html", PIXELS), "[left out a document of a type that cannot be shown]"),
        (MediaBlock("image", "image/png", "%%%"), "[left out an image that is not valid base64]"),
        (MediaBlock("image", "image/png", "\u00e9\u00e9\u00e9\u00e9"), "[left out an image that is not valid base64]"),
        (
            MediaBlock("image", "image/png", "A" * (MAX_IMAGE_BASE64 + 4)),
            "[left out an image that is too large to be shown]",
        ),
    ],
)
def test_media_that_cannot_be_shown_is_left_out_with_a_note(block: MediaBlock, note: str) -> None:
    assert passed(block) == [note]


def test_the_number_of_blocks_is_bounded() -> None:
    said = passed(*[TextBlock("x")] * (MAX_BLOCKS + 3))
    assert said[-1] == f"[3 more blocks left out, the limit is {MAX_BLOCKS}]"
    assert len(said) == MAX_BLOCKS + 1


def test_a_call_that_may_have_run_says_so_in_the_agreed_words() -> None:
    outcome = results.interrupted("the sandbox was lost")
    assert outcome.is_error
    assert outcome.content == (WireText(text="interrupted, may have run: the sandbox was lost"),)


def test_notes_come_before_what_the_tool_said() -> None:
    outcome = with_notes(from_sandbox(ToolResult((TextBlock("out"),), is_error=False)), ["one", "two"])
    assert outcome.content == (WireText(text="[one]\n[two]"), WireText(text="out"))
    assert with_notes(outcome, []) is outcome
