"""Benchmarks: how fast this machine runs a model, beside what else could run it."""
