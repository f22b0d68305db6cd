"""A load on an OpenAI-compatible server, any of them, and what its users would see. No torch.

Requests come at a rate, whatever the server does, or a fixed number are in flight. Every answer is
streamed and timed as its chunks arrive.
"""
