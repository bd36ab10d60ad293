"""Taking secrets out of what comes back from outside, in every encoding that a server may echo them in. Pure.

Found: a secret verbatim; with any of its characters escaped for JSON, once or several times over; percent-encoded,
once or several times over; as HTML entities; as hex; as base64 at each of its three alignments, in both alphabets,
broken into lines or not; and all of it when it is split over chunks. A server that hides a secret on purpose cannot be
stopped here: it has the secret. This is for the honest server that echoes what it was sent.
"""

import re
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
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
_PIECE: Final = 1 << 17
_CLOSE_UP: Final = 1 << 13
_MOST_PLACES: Final = 256
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
        self._telling = re.compile(b"|".join(_escapes(characters)), re.IGNORECASE)
        self._escape = re.compile(
            b"|".join([*_escapes(characters), rb"\\\\{0,7}(?=[/\"'])", *_LINE_BREAKS, rb"\\\\{1,15}"]), re.IGNORECASE
        )
        verbatim = [text.encode("utf-8", "replace") for text in texts]
        encoded = [form for raw in verbatim for form in _encodings(raw)]
        spaced = [raw.replace(b" ", b"+") for raw in verbatim if b" " in raw]
        self._raw = tuple(dict.fromkeys([*verbatim, *encoded, *spaced]))
        # What stands in a text whose escapes are undone is the secret with its own escapes undone.
        plain = dict.fromkeys(view.text for form in self._raw for view in self._views(form))
        self._plain = tuple(form for form in plain if len(form) >= SHORTEST)
        self._hints = tuple(dict.fromkeys(hint for form in self._raw for hint in _hints(form)))
        widest = max((len(raw) for raw in verbatim), default=0)
        longest = max((len(form) for form in self._raw), default=0)
        # What each escape means; there are only so many that are looked for.
        self._meanings: dict[bytes, bytes] = {}
        # How far back from the end of what has come the beginning of a secret can lie.
        self.reach = max(widest * _WIDEST, longest * 2) + 64 if self._raw else 0

    def __bool__(self) -> bool:
        return bool(self._raw)

    def redact(self, data: bytes) -> bytes:
        """The data with a mark in place of every secret; the same object if there is none in it."""
        return _marked(data, self.find(data))

    def find(self, data: bytes) -> list[Span]:
        """Where the secrets stand: spans in order, none touching the next.

        Of a text that is full of secrets, more than an honest server has in it, everything is one span.
        """
        if not self._raw:
            return []
        spans: list[Span] = []
        left = [_MOST_PLACES]
        # In pieces, so that no call takes long in which nothing else can run.
        for base in range(0, len(data), _PIECE):
            start = max(0, base - self.reach)
            piece = data[start : base + _PIECE + self.reach]
            if self._suspicious(piece):
                spans += ((start + first, start + last) for first, last in self._search(piece, left))
            if left[0] < 0:
                return [(0, len(data))]
        return _merged(spans)

    def _search(self, data: bytes, left: list[int]) -> list[Span]:
        """Where in a piece, narrowed down before anything is looked at escape by escape, which takes long."""
        if not self._holds(data):
            return []
        if len(data) > max(_CLOSE_UP, 4 * self.reach):
            middle = len(data) // 2
            start = middle - self.reach
            second = self._search(data[start:], left) if left[0] >= 0 else []
            return [
                *self._search(data[: middle + self.reach], left),
                *((start + first, start + last) for first, last in second),
            ]
        left[0] -= 1
        if left[0] < 0:
            return []
        spans = [span for form in self._raw for span in _occurrences(data, form)]
        views: list[_View] = []
        for view in self._views(data):
            views.append(view)
            for form in self._plain:
                spans += [_mapped(views, span) for span in _occurrences(view.text, form)]
        return spans

    def _holds(self, data: bytes) -> bool:
        """Whether a secret is in it, however it is written."""
        if any(form in data for form in self._raw):
            return True
        for _ in range(_DEEPEST):
            plain = self._escape.sub(self._undone, data)
            if any(form in plain for form in self._plain):
                return True
            if plain == data:
                return False
            data = plain
        return False

    def _undone(self, escape: re.Match[bytes]) -> bytes:
        text = escape[0]
        meant = self._meanings.get(text)
        if meant is None:
            meant = self._meanings[text] = _meaning(text)
        return meant

    def held_from(self, data: bytes) -> int:
        """From where on the data must be kept: what follows may turn it into a secret. Its length if nothing need."""
        if not self._raw:
            return len(data)
        base = max(0, len(data) - self.reach)
        tail = data[base:]
        first = min((_beginning(tail, form) for form in self._raw), default=len(tail))
        views: list[_View] = []
        text = tail
        while True:
            # What may be half an escape is no text yet: it may become any character.
            cut = _CUT.search(text)
            whole = text[: cut.start()] if cut else text
            place = min((_beginning(whole, form) for form in self._plain), default=len(whole))
            if place < len(text):
                first = min(first, _mapped(views, (place, place + 1))[0])
            if len(views) == _DEEPEST:
                return base + first
            views.append(_View.of(whole, self._escape))
            if views[-1].text == whole:
                return base + first
            text = views[-1].text

    def _suspicious(self, data: bytes) -> bool:
        # Almost all that passes is not, and then this is all that it costs.
        return any(hint in data for hint in self._hints) or self._telling.search(data) is not None

    def _views(self, data: bytes) -> Iterator["_View"]:
        """The text with its escapes undone, once and, where that makes new ones, again."""
        for _ in range(_DEEPEST):
            view = _View.of(data, self._escape)
            yield view
            if view.text == data:
                return
            data = view.text


class Redactor:
    """Redacts a stream: give each chunk to `feed`, pass on what it returns, and at the end what `flush` returns.

    It keeps back only what may be the beginning of a secret, and never more than `Patterns.reach`.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._held = b""
        self.hits = 0

    def feed(self, chunk: bytes) -> bytes:
        if not self._patterns:
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
    def of(cls, data: bytes, escape: re.Pattern[bytes]) -> "_View":
        parts: list[bytes] = []
        at, raw, ends = [0], [0], [0]
        position = length = 0
        for match in escape.finditer(data):
            start, end = match.span()
            parts.append(data[position:start])
            length += start - position
            meant = _meaning(match[0])
            if meant:
                at.append(length)
                raw.append(start)
                ends.append(end)
                parts.append(meant)
                length += len(meant)
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


def _mapped(views: list["_View"], span: Span) -> Span:
    """Where something in the last of these views, each made of the one before, stands in what the first was made of."""
    for view in reversed(views):
        span = view.span(*span)
    return span


def _escapes(characters: Collection[str]) -> list[bytes]:
    """What matches the escapes of the characters in question, and of no others: most in a text are not theirs."""
    # Beside the secrets' own characters, those of base64 that some encoders escape.
    wanted = sorted({*characters, *"+/=-_"})
    single = sorted({byte for character in wanted for byte in character.encode("utf-8", "replace")})
    units = b"|".join(_utf16(character) for character in wanted)
    pairs = b"|".join(b"%02x" % byte for byte in single)
    numbers = b"|".join(b"0{0,5}%d|x0{0,5}%x" % (ord(character), ord(character)) for character in wanted)
    names = b"".join(b"|" + name for character, name in _NAMED.items() if character in characters)
    quoted = re.escape("".join(sorted({"/", *"\"'"} & set(wanted)))).encode()
    # Each begins with one certain character: only then does `re` skip over the rest of a text quickly.
    return [
        rb"\\\\{0,7}(?:" + units + rb")",
        rb"\\\\{0,7}x(?:" + pairs + rb")",
        rb"%(?:25){0,3}(?:" + pairs + rb")",
        rb"&(?:#(?:" + numbers + rb")" + names + rb");",
        rb"\\\\{0,7}(?=[" + quoted + rb"])",
        *([rb"\\\\{1,15}"] if "\\" in characters else []),
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
