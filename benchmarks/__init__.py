"""The benchmarks: `just bench [NAME…]`. Each is compared with a floor or a peer of the same run.

A benchmark is a file `bench_<name>.py` with a docstring that says what it measures, and `run`.
"""
