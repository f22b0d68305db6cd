"""Process groups as objects with a generation, never the global default group.

A group made here can be dropped after a neighbour's death and replaced by one of the next
generation, while the process, its weights and its KV cache stay. Gloo serves the CPU and NCCL
CUDA devices, by the same calls.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ppinfer.errors import StageError

# One link's operations run one after another, so a second thread would only take a core.
_GLOO_THREADS = 1


def open_store(spec: str, timeout: float) -> dist.Store:
    """``file:PATH`` (stages of one host) or ``tcp:HOST:PORT/PREFIX`` (the launcher's store)."""
    kind, _, where = spec.partition(":")
    if kind == "file":
        return dist.FileStore(where, -1)
    if kind == "tcp":
        location, _, prefix = where.partition("/")
        host, _, port = location.rpartition(":")
        limit = timedelta(seconds=timeout)
        return dist.PrefixStore(
            prefix, dist.TCPStore(host, int(port), is_master=False, timeout=limit)
        )
    raise ValueError(f"unknown store {spec!r}")


def make_link_group(
    store: dist.Store,
    *,
    generation: int,
    link: int,
    rank: int,
    num_stages: int,
    device: torch.device,
    address: str,
    timeout: float,
) -> Any:
    """The two-rank group of the link from stage ``link`` (rank 0) to the one after it (rank 1).

    Gloo blocks here until both have come, NCCL at the first exchange (``links.open_links`` makes
    one). ``address`` is the local address that gloo's sockets bind to.

    Raises:
        StageError: the neighbour did not come within ``timeout`` seconds.
    """
    prefixed = dist.PrefixStore(f"ppinfer/{generation}/link{link}", store)
    limit = timedelta(seconds=timeout)
    after = (link + 1) % num_stages
    neighbour = link if rank else after
    try:
        if device.type == "cuda":
            nccl_options = dist.ProcessGroupNCCL.Options()
            nccl_options._timeout = limit
            return dist.ProcessGroupNCCL(prefixed, rank, 2, nccl_options)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = limit
        options._threads = _GLOO_THREADS
        return dist.ProcessGroupGloo(prefixed, rank, 2, options)
    except RuntimeError as error:
        raise StageError(
            f"Stage {neighbour} could not be reached over the link {link}-{after} "
            f"within {timeout:g} s: {first_line(error)}",
            stage=neighbour,
        ) from error


def first_line(error: BaseException) -> str:
    """The part of a C++ error that a person can use, without its stack."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
