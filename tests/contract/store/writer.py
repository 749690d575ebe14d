# SPDX-License-Identifier: Apache-2.0
"""A process that writes two keys a transaction and prints each number once it is acknowledged; made to be killed."""

import asyncio
import itertools
import sys
from pathlib import Path

from flexd.store.contract import Put
from tests.contract.store.engines import ENGINES


async def write(engine: str, folder: Path) -> None:
    store = await ENGINES[engine](folder)
    for number in itertools.count():
        await store.txn([Put(f"/a/{number:09}", b"%d" % number), Put(f"/b/{number:09}", b"%d" % number)])
        print(number, flush=True)


asyncio.run(write(sys.argv[1], Path(sys.argv[2])))
