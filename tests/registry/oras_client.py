"""The oras library as a program.

python -m tests.registry.oras_client VERB REFERENCE DIRECTORY [FILE…]

`push` and `pull` are for its own artifacts: files with titles. `push-layout` takes any manifest
from the OCI layout in DIRECTORY, where its name is FILE, and says its digest; `pull-layout` puts it
there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from oras.client import OrasClient
from oras.layout import Layout, NewLayoutFromRegistry

ARTIFACT_TYPE = "text/plain"


def main() -> None:
    """Do the one thing."""
    verb, reference, directory, *files = sys.argv[1:]
    os.chdir(directory)
    # Its other way keeps the first token it gets, which is good for pulling only.
    client = OrasClient(insecure=True, auth_backend="basic")
    client.auth.load_configs(client.get_container(reference), [os.environ["CONFIG"]])
    match verb:
        case "push":
            targets = [f"{name}:{ARTIFACT_TYPE}" for name in files]
            client.push(reference, files=targets, quiet=True)
        case "pull":
            for path in client.pull(reference, outdir=directory):
                print(Path(path).name)  # noqa: T201 - the result
        case "push-layout":
            answer = Layout(directory).push_to_registry(client, reference, files[0])
            print(answer.headers["Docker-Content-Digest"])  # noqa: T201 - the result
        case "pull-layout":
            NewLayoutFromRegistry(directory, client, reference, files[0])


if __name__ == "__main__":
    main()
