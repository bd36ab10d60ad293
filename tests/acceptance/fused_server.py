"""`galley serve` with a fuse: it dies of SIGKILL at one exact append, so that a test meets one boundary every time.

    python -m tests.acceptance.fused_server before|after TYPE ARMED serve [OPTION ...]

It dies before, or right after, the first append with a row of that type is made while the file ARMED exists. The rest
is the server as it is.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from galley_server.__main__ import main
from galley_server.log.row import Draft, Row
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import Summary


def put_in_fuse(when: str, row_type: str, armed: Path) -> None:
    append = SqliteStore[Summary].append

    async def burning(self: SqliteStore[Summary], session_id: str, drafts: Sequence[Draft], **given: Any) -> list[Row]:
        burns = any(draft.type == row_type for draft in drafts) and os.path.exists(armed)  # noqa: ASYNC240
        if burns and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rows = await append(self, session_id, drafts, **given)
        if burns:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows

    SqliteStore.append = burning  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    put_in_fuse(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    sys.argv[1:] = sys.argv[4:]
    raise SystemExit(main())
