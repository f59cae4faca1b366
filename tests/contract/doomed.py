"""A daemon that runs one machine until somebody kills it."""

import sys
from pathlib import Path

import trio

from tests.contract.harness import RealHarness, new_spec, running
from tests.machines import real_image


async def main(root: Path) -> None:
    harness = await RealHarness.start(root, real_image())
    async with running(harness.hypervisor, new_spec()):
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
