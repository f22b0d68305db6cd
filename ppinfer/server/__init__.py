"""The HTTP door: OpenAI's API over the engine. ``run`` starts it, ``app`` answers."""
