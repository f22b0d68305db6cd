"""Batches in OpenAI's format: a file of requests, and a file of what came of each.

Both may be of any size: neither is ever held in memory, and a run that was cut off goes on where it
was. ``run`` does it, ``local`` computes the answers here, ``remote`` asks a server for them.
"""
