"""Kernels in C++ for stages on a CPU: built once for this processor, called through ctypes.

``library.py`` says which path is in use, ``paths.py`` which there are, ``build.py`` compiles and
caches, ``src/`` holds the sources. Where there is none, callers take the plain PyTorch way.
"""
