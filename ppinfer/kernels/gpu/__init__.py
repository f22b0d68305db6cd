"""Kernels for GPUs, in Triton: the same row-invariant arithmetic that ``native/`` has on a CPU.

What a row's bits depend on is fixed by the layer alone: tiles may hold other rows and be of other
heights, but each element is summed in an order that only its own inputs and the layer's sizes set.
"""
