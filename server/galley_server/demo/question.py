"""What the user wants ranked: which file, how many, of what, by what. Pure."""

import re
from dataclasses import dataclass
from typing import Final, Literal

_NUMBER_WORDS: Final = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBERS: Final = {word: number for number, word in enumerate(_NUMBER_WORDS.split(), 1)}
_COUNT: Final = rf"(?P<count>\d{{1,4}}|{'|'.join(_NUMBERS)})"
_DOWN: Final = r"bottom|worst|lowest|smallest|weakest|least|poorest"
_SUPER: Final = rf"(?P<rank>top|best|highest|largest|biggest|strongest|most|{_DOWN})"
_FILLER: Final = (
    r"(?:(?:best|worst|top|most|least|selling|performing|grossing|earning|revenue|profitable|popular|sold|our|the|of)"
    r"[\s-]+)*"
)
_RANKED: Final = (
    re.compile(rf"\b{_COUNT}[\s-]+{_SUPER}[\s-]+{_FILLER}(?P<noun>[a-z]+)", re.IGNORECASE),
    re.compile(rf"\b{_SUPER}[\s-]+(?:{_COUNT}[\s-]+)?{_FILLER}(?P<noun>[a-z]+)", re.IGNORECASE),
    re.compile(r"\b(?:which|what)\s+(?P<noun>[a-z]+)\b", re.IGNORECASE),
)
_BY_QUANTITY: Final = re.compile(
    r"\b(?:by|in|per|of)\s+(?:the\s+)?(?:number\s+of\s+)?(?:units?|quantit\w+|volume|pieces|items\s+sold|qty)\b"
    r"|\b(?:most|least)[\s-]+(?:often[\s-]+)?sold\b|\bunits\s+sold\b",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"[`\"'“‘](?P<name>[^`\"'”’\n]+\.(?:csv|tsv|tab|txt))[`\"'”’]", re.IGNORECASE)
_BARE: Final = re.compile(r"(?P<name>[\w./~-]*[\w-]\.(?:csv|tsv|tab|txt))\b", re.IGNORECASE)
_ABOUT_DATA: Final = re.compile(
    r"\b(?:csv|tsv|data|dataset|spreadsheet|table|file|sales?|revenue|products?|analy[sz]\w*|top|best|worst|rank\w*|sold)\b",
    re.IGNORECASE,
)
# What may follow "top 5" without saying of what; sellers are the products that sell.
_FOLLOWERS: Final = (
    "by in of for and from is are was were did do does has have had you your can the a an to revenue sales seller "
    "sellers bestseller bestsellers performer performers earner earners rows entries results"
)
_NOT_NOUNS: Final = frozenset(_FOLLOWERS.split())


@dataclass(frozen=True, slots=True)
class Question:
    about_data: bool
    file: str | None
    count: int
    noun: str
    measure: Literal["revenue", "quantity"]
    ascending: bool


def read_question(text: str, earlier: str = "") -> Question:
    """Read a request; a file it does not name is the one that `earlier` text named last."""
    file = _file(text)
    count, noun, ascending = _ranking(_QUOTED.sub(" ", _BARE.sub(" ", text)))
    return Question(
        about_data=file is not None or _ABOUT_DATA.search(text) is not None,
        file=file or _file(earlier),
        count=count,
        noun=noun,
        measure="quantity" if _BY_QUANTITY.search(text) else "revenue",
        ascending=ascending,
    )


def _file(text: str) -> str | None:
    found = [*_QUOTED.finditer(text), *_BARE.finditer(text)]
    if not found:
        return None
    # A quoted name may hold spaces, of which the bare pattern sees only the end.
    quoted = [each for each in found if each.re is _QUOTED]
    return (quoted or found)[-1]["name"]


def _ranking(text: str) -> tuple[int, str, bool]:
    for pattern in _RANKED:
        for found in pattern.finditer(text):
            groups = found.groupdict()
            noun = groups["noun"].lower()
            if noun in _NOT_NOUNS and groups.get("count") is None:
                continue
            down = re.fullmatch(_DOWN, groups.get("rank") or "", re.IGNORECASE) is not None
            named = "products" if noun in _NOT_NOUNS else noun
            return _count(groups.get("count"), named), named, down
    return 5, "product", False


def _count(given: str | None, noun: str) -> int:
    if given is None:
        return 5 if noun.endswith("s") else 1
    count = _NUMBERS[given.lower()] if given.lower() in _NUMBERS else int(given)
    return min(max(count, 1), 100)
