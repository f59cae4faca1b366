"""The conformance suite of the OCI distribution specification against a live registry.

    python -m tests.registry.conformance BINARY

Prints what failed and the totals; the exit status is 0 if everything passed. docs/registry.md says
which suite.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import trio

from tests.registry.serve import TENANT, api_token, serve_registry

ALL_ON = (
    "OCI_API_BLOBS_DIGEST_HEADER",
    "OCI_API_BLOBS_UPLOAD_CANCEL",
    "OCI_API_MANIFESTS_DIGEST_HEADER",
    "OCI_API_MANIFESTS_TAG_PARAM",
)
"""What the suite leaves out unless it is told."""


async def main(binary: str) -> int:
    """Run the suite; return the exit status."""
    if shutil.which(binary) is None:
        sys.exit(
            f"{binary!r} is no program: give the path of the suite's, as in ./run conformance PATH."
            " The suite is not part of this repository; docs/registry.md says which one is meant"
        )
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        async with serve_registry(work / "data") as served:
            environment = {
                **os.environ,
                "OCI_REGISTRY": served.address,
                "OCI_TLS": "disabled",
                "OCI_REPO1": f"{TENANT}/repo1",
                "OCI_REPO2": f"{TENANT}/repo2",
                "OCI_USERNAME": "anybody",
                "OCI_PASSWORD": api_token(),
                "OCI_RESULTS_DIR": str(work / "results"),
                **dict.fromkeys(ALL_ON, "true"),
            }
            await trio.run_process([binary], env=environment, check=False, stdout=None, cwd=work)
        return _report(work / "results" / "junit.xml")


def _report(junit: Path) -> int:
    if not junit.exists():
        sys.exit("the program wrote no results: is it the suite of distribution-spec 1.1?")
    root = ET.parse(junit).getroot()
    cases = list(root.iter("testcase"))
    for case in cases:
        if case.get("status") != "passed":
            print(case.get("status"), case.get("name"))  # noqa: T201 - the result
    totals = Counter(case.get("status") for case in cases)
    counts = ", ".join(f"{count} {status}" for status, count in totals.items())
    print(f"{counts}; the suite's commit: {_commit(root)}")  # noqa: T201 - the result
    return 0 if set(totals) == {"passed"} else 1


def _commit(root: ET.Element) -> str:
    """Return the commit that the suite says it was built from."""
    config = next((item.get("value", "") for item in root.iter("property")), "")
    found = re.search(r"^commit: (\w+)$", config, re.MULTILINE)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1]))
