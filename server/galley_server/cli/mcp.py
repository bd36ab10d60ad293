"""`galley mcp`: the stdio shim. Imports nothing but the standard library and the shim."""

import sys
from collections.abc import Mapping, Sequence

from galley_server.mcp import shim

USAGE = """\
Usage: galley mcp

Speaks MCP on stdin and stdout, for a client that starts its servers itself. Passes everything on to the one server of
GALLEY_HOME, which it starts if none answers; or, with GALLEY_URL and GALLEY_API_KEY set, to that server.
"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    # No argparse: it would be a tenth of the time this command may take to its first answer.
    if not argv:
        return shim.main(environ)
    if argv[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return 0
    sys.stderr.write(f"galley mcp takes no arguments, not {argv[0]!r}\n\n{USAGE}")
    return 2
