"""The oras library as a program.

python -m tests.registry.oras_client push|pull REFERENCE DIRECTORY [FILE…]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from oras.client import OrasClient

ARTIFACT_TYPE = "text/plain"


def main() -> None:
    """Do the one thing."""
    verb, reference, directory, *files = sys.argv[1:]
    os.chdir(directory)
    # Its other way keeps the first token it gets, which is good for pulling only.
    client = OrasClient(insecure=True, auth_backend="basic")
    client.auth.load_configs(client.get_container(reference), [os.environ["CONFIG"]])
    if verb == "push":
        targets = [f"{name}:{ARTIFACT_TYPE}" for name in files]
        client.push(reference, files=targets, quiet=True)
    else:
        for path in client.pull(reference, outdir=directory):
            print(Path(path).name)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
