"""Taking secrets out of what comes back from outside, in every encoding that a server may echo them in. Pure.

Found: a secret verbatim; with any of its characters escaped for JSON, once or several times over; percent-encoded,
once or several times over; as HTML entities; as hex; as base64 at each of its three alignments, in both alphabets,
broken into lines or not; in UTF-16 and in Latin-1; and all of it when it is split over chunks. A server that hides a
secret on purpose cannot be stopped here: it has the secret. This is for the honest server that echoes what it was sent.
"""

import re
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from galley_vault_proxy.secret import Secret

MARK: Final = b"[redacted]"
SHORTEST: Final = 4
"""A secret shorter than this many bytes is not looked for: it would be found in every other word."""

Span: TypeAlias = tuple[int, int]

# A fragment of a base64 form is looked for before the whole is: a line break can be in one of two neighbours only.
_FRAGMENT: Final = 8
# The most bytes that one character takes: `%25252541`, `&#x0000041;`, or eight backslashes and `u0041`.
_WIDEST: Final = 14
# An escape of an escape is undone too: `%5Cu0041` within JSON within a URL.
_DEEPEST: Final = 3
_MOST_MEANINGS: Final = 4096
_PIECE: Final = 1 << 17
_LINE_BREAKS: Final = (rb"\\\\{0,7}[rn][ \t]?", rb"\r[ \t]?", rb"\n[ \t]?")
# What may be the beginning of an escape at the end of a chunk.
_CUT: Final = re.compile(
    rb"(?:(?:\\{1,8}u[0-9a-f]{0,4}){1,2}|\\{1,8}(?:x[0-9a-f]{0,2})?|%[0-9a-f]{0,8}|&[#a-z0-9]{0,9})\Z", re.IGNORECASE
)
_NAMED: Final = {"&": b"amp", "<": b"lt", ">": b"gt", '"': b"quot", "'": b"apos"}


class Patterns:
    """What to look for, worked out once for a set of secrets. Without secrets it finds nothing and costs nothing."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        texts = sorted({secret.reveal() for secret in secrets})
        texts = [text for text in texts if len(text.encode("utf-8", "replace")) >= SHORTEST]
        characters = {character for text in texts for character in text}
        # Whether there is an escape shows its last backslash, however many stand before it.
        self._telling = re.compile(b"|".join(_escapes(characters, run=rb"\\")), re.IGNORECASE)
        escapes = _escapes(characters, run=rb"\\\\{0,7}")
        self._escape = re.compile(
            b"|".join([*escapes, rb"\\\\{0,7}(?=[/\"'])", *_LINE_BREAKS, rb"\\\\{1,15}"]), re.IGNORECASE
        )
        self._meanings: dict[bytes, bytes] = {}
        verbatim = [text.encode("utf-8", "replace") for text in texts]
        encoded = [form for raw in verbatim for form in _encodings(raw)]
        spaced = [raw.replace(b" ", b"+") for raw in verbatim if b" " in raw]
        charsets = [form for text in texts for form in _in_other_charsets(text)]
        self._raw = tuple(dict.fromkeys([*verbatim, *encoded, *spaced, *charsets]))
        # What stands in a text whose escapes are undone is the secret with its own escapes undone.
        plain = dict.fromkeys(text for form in self._raw for text in self._plainer(form))
        self._plain = tuple(form for form in plain if len(form) >= SHORTEST)
        self._hints = tuple(dict.fromkeys(hint for form in self._raw for hint in _hints(form)))
        widest = max((len(raw) for raw in verbatim), default=0)
        longest = max((len(form) for form in self._raw), default=0)
        # How far back from the end of what has come the beginning of a secret can lie.
        self.reach = max(widest * _WIDEST, longest * 2) + 64 if self._raw else 0

    def __bool__(self) -> bool:
        return bool(self._raw)

    def redact(self, data: bytes) -> bytes:
        """The data with a mark in place of every secret; the same object if there is none in it."""
        return _marked(data, self.find(data))

    def find(self, data: bytes) -> list[Span]:
        """Where the secrets stand: spans in order, none touching the next."""
        if not self._raw:
            return []
        if len(data) <= _PIECE:
            return _merged(self._found(data))
        spans: list[Span] = []
        # In pieces that overlap, so that no step of it is so long that nothing else can run meanwhile.
        for base in range(0, len(data), _PIECE):
            start = max(0, base - self.reach)
            piece = data[start : base + _PIECE + self.reach]
            spans += ((start + first, start + last) for first, last in self._found(piece))
        return _merged(spans)

    def _found(self, data: bytes) -> list[Span]:
        if not self._suspicious(data):
            return []
        spans = [span for form in self._raw for span in _occurrences(data, form)]
        views = _Views(data, self._escape, self._meant)
        for depth, text in enumerate(self._plainer(data), 1):
            found = [span for form in self._plain for span in _occurrences(text, form)]
            spans += [views.mapped(depth, span) for span in found]
        return spans

    def held_from(self, data: bytes) -> int:
        """From where on the data must be kept: what follows may turn it into a secret. Its length if nothing need."""
        if not self._raw:
            return len(data)
        base = max(0, len(data) - self.reach)
        tail = data[base:]
        first = min((_beginning(tail, form) for form in self._raw), default=len(tail))
        cuts: list[bytes] = []  # what each text was without the half of an escape at its end
        text = tail
        while True:
            # What may be half an escape is no text yet: it may become any character.
            cut = _CUT.search(text)
            whole = text[: cut.start()] if cut else text
            place = min((_beginning(whole, form) for form in self._plain), default=len(whole))
            if place < len(text):
                span = (place, place + 1)
                for shorter in reversed(cuts):
                    span = _View.of(shorter, self._escape, self._meant).span(*span)
                first = min(first, span[0])
            if len(cuts) == _DEEPEST:
                return base + first
            cuts.append(whole)
            text = self._escape.sub(self._meant, whole)
            if text == whole:
                return base + first

    def _suspicious(self, data: bytes) -> bool:
        # Almost all that passes is not, and then this is all that it costs.
        return any(hint in data for hint in self._hints) or self._telling.search(data) is not None

    def _plainer(self, data: bytes) -> Iterator[bytes]:
        """The text with its escapes undone, once and, where that makes new ones, again."""
        for _ in range(_DEEPEST):
            text = self._escape.sub(self._meant, data)
            yield text
            if text == data:
                return
            data = text

    def _meant(self, escape: re.Match[bytes]) -> bytes:
        """What an escape stands for. A text may be made of nothing else, so each is worked out once."""
        known = self._meanings.get(escape[0])
        if known is None:
            if len(self._meanings) >= _MOST_MEANINGS:
                self._meanings.clear()
            known = self._meanings[escape[0]] = _meaning(escape[0])
        return known


class Redactor:
    """Redacts a stream: give each chunk to `feed`, pass on what it returns, and at the end what `flush` returns.

    It keeps back only what may be the beginning of a secret, and never more than `Patterns.reach`.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._held = b""
        self.hits = 0

    def feed(self, chunk: bytes) -> bytes:
        if not self._patterns or not chunk:
            return chunk
        data = self._held + chunk
        spans = self._patterns.find(data)
        until = self._patterns.held_from(data)
        # A secret that ends inside what is kept back may be the beginning of a longer one: it is kept back too.
        for start, end in reversed(spans):
            if end > until:
                until = min(until, start)
        until = max(until, len(data) - self._patterns.reach)
        return self._pass(data, spans, until)

    def flush(self) -> bytes:
        data = self._held
        if not data:
            return b""
        return self._pass(data, self._patterns.find(data), len(data))

    def _pass(self, data: bytes, spans: list[Span], until: int) -> bytes:
        done = [span for span in spans if span[0] < until]
        if done:
            until = max(until, done[-1][1])
        self.hits += len(done)
        self._held = data[until:]
        return _marked(data[:until], done)


@dataclass(frozen=True, slots=True)
class _View:
    """A text with its escapes undone, and where each part of it stood.

    Part i begins at `at[i]` in the view and at `raw[i]` in the data; `ends[i]` is where an escape ends there, 0 for a
    part that stands as it is.
    """

    text: bytes
    at: list[int]
    raw: list[int]
    ends: list[int]

    @classmethod
    def of(cls, data: bytes, escape: re.Pattern[bytes], meant: Callable[[re.Match[bytes]], bytes]) -> "_View":
        parts: list[bytes] = []
        at, raw, ends = [0], [0], [0]
        position = length = 0
        for match in escape.finditer(data):
            start, end = match.span()
            parts.append(data[position:start])
            length += start - position
            plain = meant(match)
            if plain:
                at.append(length)
                raw.append(start)
                ends.append(end)
                parts.append(plain)
                length += len(plain)
            at.append(length)
            raw.append(end)
            ends.append(0)
            position = end
        parts.append(data[position:])
        return cls(b"".join(parts), at, raw, ends)

    def start(self, position: int) -> int:
        part = bisect_right(self.at, position) - 1
        return self.raw[part] if self.ends[part] else self.raw[part] + position - self.at[part]

    def span(self, start: int, end: int) -> Span:
        last = bisect_right(self.at, end - 1) - 1
        return self.start(start), self.ends[last] or self.raw[last] + end - self.at[last]


class _Views:
    """The views of a text, each made of the one before. They are made only for a text in which something was found."""

    def __init__(self, data: bytes, escape: re.Pattern[bytes], meant: Callable[[re.Match[bytes]], bytes]) -> None:
        self._next = data
        self._escape = escape
        self._meant = meant
        self._made: list[_View] = []

    def mapped(self, depth: int, span: Span) -> Span:
        """Where something in the view of this depth stands in the text itself."""
        while len(self._made) < depth:
            self._made.append(_View.of(self._next, self._escape, self._meant))
            self._next = self._made[-1].text
        for view in reversed(self._made[:depth]):
            span = view.span(*span)
        return span


def _escapes(characters: Collection[str], *, run: bytes) -> list[bytes]:
    """What matches the escapes of the characters in question, and of no others: most in a text are not theirs."""
    # Beside the secrets' own characters, those of base64 that some encoders escape.
    wanted = sorted({*characters, *"+/=-_"})
    single = sorted({byte for character in wanted for byte in character.encode("utf-8", "replace")})
    units = b"|".join(_utf16(character) for character in wanted)
    pairs = b"|".join(b"%02x" % byte for byte in single)
    decimals = b"|".join(b"%d" % ord(character) for character in wanted)
    hexadecimals = b"|".join(b"%x" % ord(character) for character in wanted)
    names = b"".join(b"|" + name for character, name in _NAMED.items() if character in characters)
    quoted = re.escape("".join(sorted({"/", *"\"'"} & set(wanted)))).encode()
    # Each begins with one certain character: only then does `re` skip over the rest of a text quickly.
    return [
        run + rb"(?:" + units + rb")",
        run + rb"x(?:" + pairs + rb")",
        rb"%(?:25){0,3}(?:" + pairs + rb")",
        rb"&(?:#(?:0{0,5}+(?:" + decimals + rb")|x0{0,5}+(?:" + hexadecimals + rb"))" + names + rb");",
        run + rb"(?=[" + quoted + rb"])",
        *([run] if "\\" in characters else []),
    ]


def _utf16(character: str) -> bytes:
    raw = character.encode("utf-16-be", "surrogatepass")
    return rb"\\{1,8}".join(b"u%02x%02x" % (raw[i], raw[i + 1]) for i in range(0, len(raw), 2))


def _meaning(escape: bytes) -> bytes:
    first = escape[:1]
    if first == b"%":
        return bytes([int(escape[-2:], 16)])
    if first == b"&":
        return _entity(escape[1:-1].decode().lower())
    body = escape.lstrip(b"\\")
    kind = body[:1].lower()
    if kind == b"u":
        units = b"".join(bytes.fromhex(unit[1:5].decode()) for unit in re.split(rb"\\+", body))
        return units.decode("utf-16-be", "replace").encode()
    if kind == b"x":
        return bytes([int(body[1:3], 16)])
    # A line break is undone into nothing; so is what escapes a quote or a slash; of many backslashes one is left.
    return b"\\" if not body and len(escape) > 1 and first == b"\\" else b""


def _entity(name: str) -> bytes:
    if name.startswith("#x"):
        return chr(int(name[2:], 16)).encode()
    if name.startswith("#"):
        return chr(int(name[1:])).encode()
    return next(character.encode() for character, known in _NAMED.items() if known.decode() == name)


def _encodings(raw: bytes) -> Iterator[bytes]:
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for before in range(3):
        coded = b64encode(b"\0" * before + raw)
        # Without the characters that also hold bits of what stands before or after.
        whole = (before + len(raw)) * 8 // 6
        inner = coded[(before * 8 + 5) // 6 : whole]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def _in_other_charsets(text: str) -> Iterator[bytes]:
    # Without the zero at one end: then it is the same for both orders of the bytes of ASCII.
    for charset in ("utf-16-le", "utf-16-be"):
        yield text.encode(charset, "surrogatepass").strip(b"\0")
    if not text.isascii():
        with suppress(UnicodeEncodeError):
            yield text.encode("latin-1")


def _hints(form: bytes) -> Iterator[bytes]:
    if len(form) < 3 * _FRAGMENT:
        yield form
    else:
        yield form[:_FRAGMENT]
        yield form[_FRAGMENT : 2 * _FRAGMENT]


def _occurrences(data: bytes, form: bytes) -> Iterator[Span]:
    found = data.find(form)
    while found >= 0:
        yield found, found + len(form)
        found = data.find(form, found + 1)


def _beginning(data: bytes, form: bytes) -> int:
    """Where the data ends in the beginning of `form`, as early as possible; its length when it does not."""
    position = data.find(form[:1], max(0, len(data) - len(form) + 1))
    while position >= 0:
        if form.startswith(data[position:]):
            return position
        position = data.find(form[:1], position + 1)
    return len(data)


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _marked(data: bytes, spans: list[Span]) -> bytes:
    if not spans:
        return data
    parts: list[bytes] = []
    position = 0
    for start, end in spans:
        parts += (data[position:start], MARK)
        position = end
    parts.append(data[position:])
    return b"".join(parts)
