"""The port as an argument."""

import argparse
from typing import Final

DEFAULT_PORT: Final = 8420


def port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use 0 to 65535 (0 takes any free one)")
    return number
