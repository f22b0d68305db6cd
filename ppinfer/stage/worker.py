"""The stage process: ``python -m ppinfer.stage.worker``, started by a launcher, never by hand.

A reader thread takes messages from the control channel as they come, and ends the process when
the driver is gone; the main thread loads the stage's tensors and then runs the stage's loop.
"""

from __future__ import annotations

import argparse
import errno
import os
import queue
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, NoReturn, TypeVar

import msgspec

from ppinfer import errors
from ppinfer.comm.control import Channel, ChannelClosedError
from ppinfer.comm.ring_end import RingEnd
from ppinfer.messages import (
    CacheReady,
    CacheSetup,
    Message,
    ProfileRequest,
    ProfileResult,
    Shutdown,
    StageFailure,
    StageLoaded,
    StageReady,
    StageSetup,
    ToStage,
    decode_to_stage,
    encode,
)
from ppinfer.version import __version__

if TYPE_CHECKING:
    import torch

    from ppinfer.comm.links import Rings
    from ppinfer.stage.loop import StageLoop

_SETTLE_SECONDS = 0.5
"""How long a failing stage waits for the driver to read its last message."""

_MessageT = TypeVar("_MessageT", bound=Message)


class _ToldToStop(Exception):  # noqa: N818 - not an error
    pass


class StageWorker:
    """Takes a place in the pipeline and works until told to stop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._channel = Channel(socket.socket(fileno=arguments.control_fd))
        self._inbox: queue.SimpleQueue[ToStage] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def send(self, message: Message) -> None:
        self._channel.send(encode(message))

    def serve(self) -> None:
        import torch

        from ppinfer.stage.device import list_devices, num_cores, software

        arguments = self._arguments
        self.send(
            StageReady(
                stage=arguments.stage,
                pid=os.getpid(),
                version=__version__,
                devices=list_devices(arguments.local_index, arguments.local_size),
                seconds=time.time() - arguments.started,
                cores=num_cores(),
                threads=torch.get_num_threads(),
                local_size=arguments.local_size,
                software=software(),
            )
        )
        self._build(self._await_setup()).run()

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put(decode_to_stage(self._channel.receive()))
        except ChannelClosedError:
            os._exit(0)  # the driver is gone; the main thread may be blocked anywhere
        except msgspec.DecodeError as error:
            self.fail(errors.StageError(f"A control message could not be read: {error}"))
        except BaseException as error:
            self.fail(error)

    def _await_setup(self) -> StageSetup:
        """The set-up, after as many measurements as the driver wants to cut the model by."""
        message = self._expect(ProfileRequest, StageSetup)
        if isinstance(message, ProfileRequest):
            from ppinfer.stage.profile import answer_requests

            message = answer_requests(
                message,
                self._arguments.local_size,
                lambda costs: self.send(ProfileResult(self._arguments.stage, costs)),
                lambda: self._expect(ProfileRequest, StageSetup),
            )
        assert isinstance(message, StageSetup)
        return message

    def _expect(self, *kinds: type[_MessageT]) -> _MessageT:
        message = self._inbox.get()
        if isinstance(message, Shutdown):
            raise _ToldToStop
        assert isinstance(message, kinds), f"{type(message).__name__} came too early"
        return message

    def _build(self, setup: StageSetup) -> StageLoop:
        """Join the neighbours, load the weights, allocate the cache."""
        import torch

        from ppinfer.comm.links import open_links
        from ppinfer.comm.stage_manager import PipelineStageManager
        from ppinfer.kernels.linear import keep_rows_invariant
        from ppinfer.models.config import ModelConfig
        from ppinfer.models.decoder import StageModel
        from ppinfer.stage.device import TORCH_DTYPES, free_bytes, resident_bytes, take_up
        from ppinfer.stage.kv_cache import KVCache, block_bytes
        from ppinfer.stage.loop import StageLoop
        from ppinfer.stage.runner import StageRunner

        arguments = self._arguments
        device = torch.device(setup.device)
        dtype = TORCH_DTYPES[setup.dtype]
        take_up(device)
        config = msgspec.msgpack.decode(setup.model, type=ModelConfig)
        manager = PipelineStageManager(
            setup.stage, setup.num_stages, setup.first_layer, setup.last_layer
        )
        started = time.perf_counter()
        links = open_links(
            manager,
            comm=setup.comm,
            store=f"file:/proc/self/fd/{arguments.store_fd}"
            if setup.store == "inherited"
            else setup.store,
            generation=setup.generation,
            address=arguments.address,
            dtype=dtype,
            device=device,
            send_depth=setup.send_depth,
            timeout=setup.timeout,
            rings=self._rings(setup, config.hidden_size * dtype.itemsize),
        )
        connected = time.perf_counter()
        keep_rows_invariant(setup.row_invariant)
        model = StageModel(
            config,
            setup.first_layer,
            setup.last_layer,
            is_first=manager.is_first,
            is_last=manager.is_last,
            dtype=dtype,
            device=device,
        )
        model.load(_own_descriptors(setup, arguments.model_fd).tensors)
        if arguments.model_fd >= 0:
            os.close(arguments.model_fd)  # the last one to do so frees the model in memory
        self.send(
            StageLoaded(
                stage=setup.stage,
                weight_bytes=model.weight_bytes,
                peak_rss_bytes=resident_bytes(peak=True),
                free_bytes=free_bytes(device, arguments.local_size),
                block_bytes=block_bytes(
                    manager.num_layers,
                    config.num_kv_heads,
                    setup.block_size,
                    config.head_dim,
                    dtype,
                ),
                load_seconds=time.perf_counter() - connected,
                connect_seconds=connected - started,
                note=_why_slow(device),
            )
        )
        cache = KVCache(
            num_layers=manager.num_layers,
            num_blocks=self._expect(CacheSetup).num_blocks,
            num_kv_heads=config.num_kv_heads,
            block_size=setup.block_size,
            head_dim=config.head_dim,
            dtype=dtype,
            device=device,
        )
        self.send(CacheReady(setup.stage))
        return StageLoop(
            StageRunner(model, cache, manager, block_size=setup.block_size, device=device),
            links,
            manager,
            self._inbox,
            self.send,
            hidden_size=config.hidden_size,
            recv_ahead=setup.recv_ahead,
            most_in_flight=setup.send_depth,
        )

    def _rings(self, setup: StageSetup, token_bytes: int) -> Rings | None:
        """The ends of the shared-memory links that the launcher left us; closed if not needed."""
        from ppinfer.comm.links import Rings

        fds = self._arguments.ring_fds
        if not fds:
            return None
        inbound, outbound = RingEnd(*fds[:2]), RingEnd(*fds[2:])
        if setup.comm != "shm":
            inbound.close()
            outbound.close()
            return None
        return Rings.sized(
            inbound,
            outbound,
            hidden_bytes=setup.max_step_tokens * token_bytes,
            max_sequences=setup.max_sequences,
            depth=setup.send_depth,
        )

    def fail(self, error: BaseException) -> NoReturn:
        """Say why, and end the process; a traceback is shown only for what nobody foresaw."""
        if isinstance(error, errors.PPInferError):
            kind, message = type(error).__name__, str(error)
        elif _is_out_of_memory(error):
            kind = "CapacityError"
            message = f"Stage {self._arguments.stage} ran out of memory: {error}"
        else:
            kind = "StageError"
            message = f"Stage {self._arguments.stage} failed: {type(error).__name__}: {error}"
            traceback.print_exception(error)
        blamed = error.stage if isinstance(error, errors.StageError) else None
        stage = self._arguments.stage
        try:
            self.send(StageFailure(stage, kind, message, stage if blamed is None else blamed))
            time.sleep(_SETTLE_SECONDS)
        except ChannelClosedError:
            pass
        sys.stderr.flush()
        os._exit(1)


def _why_slow(device: torch.device) -> str:
    """A sentence where the stage has no kernels of its own though nobody asked for that."""
    from ppinfer.kernels.gpu.device import why_slow
    from ppinfer.kernels.native import library

    return library.fallback_reason() or "" if device.type == "cpu" else why_slow(device)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text


def _own_descriptors(setup: StageSetup, model_fd: int) -> StageSetup:
    """The driver names its own descriptor of an in-memory checkpoint; here it may differ."""
    files = tuple(
        f"memfd:{model_fd}" if file.startswith("memfd:") else file for file in setup.tensors.files
    )
    return msgspec.structs.replace(
        setup, tensors=msgspec.structs.replace(setup.tensors, files=files)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ppinfer.stage.worker")
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--store-fd", type=int, default=-1)
    parser.add_argument("--model-fd", type=int, default=-1)
    parser.add_argument("--ring-fds", type=int, nargs=4, default=[])
    parser.add_argument("--local-index", type=int, required=True)
    parser.add_argument("--local-size", type=int, required=True)
    parser.add_argument("--address", required=True, help="that data sockets bind to")
    parser.add_argument("--started", type=float, required=True, help="seconds since the epoch")
    return parser.parse_args()


def main() -> NoReturn:
    worker = StageWorker(parse_arguments())
    try:
        worker.serve()
    except (_ToldToStop, ChannelClosedError):
        pass
    except BaseException as error:
        worker.fail(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Destroying groups and pools politely takes longer than the operating system needs.
    os._exit(0)


if __name__ == "__main__":
    main()
