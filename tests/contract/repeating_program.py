"""Makes agents under numbered keys for as long as it lives, saying `KEY AGENT` for each that was acknowledged."""

import asyncio
import sys
from itertools import count
from pathlib import Path

from tests.contract.catalogue_kit import open_kitchen


async def main(home: Path) -> None:
    async with open_kitchen(home) as kitchen:
        for number in count():
            agents = await asyncio.gather(*(kitchen.agent_once(f"key-{number}") for _ in range(3)))
            sys.stdout.write(f"key-{number} {agents[0].id}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
