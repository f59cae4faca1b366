"""Where the inputs are and where the results go. The only module that knows the layout."""

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
IMAGES = REPO / "images"
AGENT = REPO / "agent"

BUILD = REPO / "build"
TOOLS = BUILD / "tools"
CACHE = BUILD / "cache"
STAMPS = BUILD / "stamps"
OUTPUT = BUILD / "images"
BASES = BUILD / "bases"
