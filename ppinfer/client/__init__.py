"""A client of any server that speaks OpenAI's API: a load, a batch and a chat share it. No torch.

Only ``http`` needs aiohttp.
"""
