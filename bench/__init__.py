"""Benchmarks: the project against plain COPY and a tutorial's loader, on the same data and servers."""
