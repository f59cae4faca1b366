"""Recipes for everything that is not Python: the host's tools, the guest's disks, the test bases.

Data lives in the `.toml` files, each step in the module named after what it makes. Nothing here is
imported by the daemon: the only interface is the files under `build/`, described in README.md.
"""
