"""All stages on this host, started by the engine itself. Nothing listens but gloo's data links."""

from __future__ import annotations

import os

from ppinfer.comm.ring_end import ring_of
from ppinfer.launch.process import StageProcess, default_threads, spawn_stage


class LocalLauncher:
    """Starts ``num_stages`` processes that find each other through an inherited in-memory store."""

    store = "inherited"
    shares_memory = True

    def __init__(self, num_stages: int, timeout: float) -> None:
        self._num_stages = num_stages
        self._timeout = timeout
        self._store_fd: int | None = None

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]:
        self._store_fd = os.memfd_create("ppinfer-store")
        rings = ring_of(self._num_stages)  # empty for a single stage
        stages: list[StageProcess] = []
        try:
            for stage in range(self._num_stages):
                stages.append(
                    spawn_stage(
                        stage,
                        local_index=stage,
                        local_size=self._num_stages,
                        threads=threads or default_threads(self._num_stages),
                        address="127.0.0.1",
                        timeout=self._timeout,
                        store_fd=self._store_fd,
                        model_fd=model_fd,
                        rings=rings[stage] if rings else None,
                    )
                )
        except BaseException:
            for started in stages:
                started.kill()
                started.channel.close()
            self.close()
            raise
        finally:
            # Only the stages hold them now, so each sees the end of its neighbours.
            for end in (end for ends in rings for end in ends):
                end.close()
        return stages

    def close(self) -> None:
        if self._store_fd is not None:
            os.close(self._store_fd)
            self._store_fd = None
