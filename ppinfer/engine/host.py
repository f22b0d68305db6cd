"""The process of an asynchronous engine's driver: ``python -m ppinfer.engine.host``.

Started by ``AsyncPPInferEngine``, never by hand. Here lives a ``PPInferEngine`` like any other, so
that nothing that its owner does (JSON, templates, slow sockets) holds up the driver. It ends when
its owner does.
"""

from __future__ import annotations

import argparse
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass

from ppinfer.comm.control import Channel, ChannelClosedError
from ppinfer.engine.engine import PPInferEngine
from ppinfer.engine.host_messages import (
    Abort,
    Answer,
    Ask,
    AskState,
    Deltas,
    Failure,
    FromHost,
    LookAway,
    Progress,
    Start,
    Started,
    StateAnswer,
    Stop,
    Submit,
    decode_to_host,
    encode,
)
from ppinfer.engine.live import Item
from ppinfer.engine.state import LiveState
from ppinfer.errors import EngineClosedError, PPInferError
from ppinfer.request import Request

_FORGET_SECONDS = 5.0
"""An owner that watched and has not asked for so long watches no more."""


@dataclass(slots=True, eq=False)
class _RequestSink:
    """Where the driver puts one request's items; never waits for anybody."""

    seq_id: int
    outbox: queue.SimpleQueue[tuple[int, Item] | FromHost | None]

    def put(self, items: list[Item]) -> None:
        for item in items:
            self.outbox.put((self.seq_id, item))


class Host:
    """Serves one owner over ``channel`` until that says stop or is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox: queue.SimpleQueue[tuple[int, Item] | FromHost | None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._looks: queue.SimpleQueue[AskState | LookAway] = queue.SimpleQueue()

    def run(self) -> None:
        start = decode_to_host(self._channel.receive())
        assert isinstance(start, Start)
        writer = threading.Thread(target=self._write, name="answers", daemon=True)
        writer.start()
        try:
            engine = PPInferEngine(
                start.model, tokenizer=start.tokenizer, progress=self._progress, **start.settings
            )
        except PPInferError as error:
            self._outbox.put(Failure.of(error))
        else:
            with engine:
                self._outbox.put(
                    Started(
                        engine.dtype,
                        engine.limits,
                        engine.notes,
                        engine.choices,
                        engine.stage_pids,
                    )
                )
                for work in (self._report, self._show, self._watch):
                    threading.Thread(target=work, args=(engine,), daemon=True).start()
                self._serve(engine)
        self._outbox.put(None)
        writer.join()

    def _serve(self, engine: PPInferEngine) -> None:
        while True:
            try:
                message = decode_to_host(self._channel.receive())
            except ChannelClosedError:
                return
            if isinstance(message, Submit):
                request = Request(
                    message.seq_id,
                    message.prompt_token_ids,
                    message.params,
                    frozenset(message.stop_ids),
                    message.priority,
                    message.salt,
                    message.streamed,
                )
                sink = _RequestSink(message.seq_id, self._outbox)
                try:
                    engine.attach(request, sink)
                except PPInferError as error:
                    sink.put([error])
            elif isinstance(message, Abort):
                engine.detach(message.seq_ids)
            elif isinstance(message, Ask):
                self._asked.put(message)
            elif isinstance(message, AskState | LookAway):
                self._looks.put(message)
            elif isinstance(message, Stop):
                return
            else:
                raise AssertionError(f"{type(message).__name__} while running")

    # ------------------------------------------------------------ other threads

    def _progress(self, event: str, done: float, total: float) -> None:
        self._outbox.put(Progress(event, done, total))

    def _report(self, engine: PPInferEngine) -> None:
        """Answer for the figures, which wait for every stage."""
        while (ask := self._asked.get()) is not None:
            try:
                self._outbox.put(Answer(ask.number, engine.report()))
            except PPInferError as error:
                self._outbox.put(Failure.of(error))
                return

    def _show(self, engine: PPInferEngine) -> None:
        """Answer for the state, which waits for no stage for long."""
        watched = False
        while True:
            try:
                ask = self._looks.get(timeout=_FORGET_SECONDS if watched else None)
            except queue.Empty:
                ask = LookAway()
            try:
                if isinstance(ask, LookAway):
                    watched = False
                    engine.look_away()
                    continue
                if ask.watch:
                    watched = True
                    live = engine.live()
                else:
                    live = LiveState(time.perf_counter_ns(), engine.state(), [], {})
            except PPInferError:
                return  # of which ``_watch`` tells
            self._outbox.put(StateAnswer(ask.number, live))

    def _watch(self, engine: PPInferEngine) -> None:
        """Tell the owner what ended the engine, if it did not ask for that."""
        error = engine.wait_until_closed()
        if not isinstance(error, EngineClosedError):
            self._outbox.put(Failure.of(error))

    def _write(self) -> None:
        """Send what there is; what steps added goes together as far as it is there."""
        pending = Deltas([], [])
        try:
            while True:
                item = self._outbox.get()
                if isinstance(item, tuple):
                    seq_id, what = item
                    if isinstance(what, PPInferError):
                        pending.failures.append(Failure.of(what, seq_id))
                    else:
                        pending.deltas.append(what)
                    if not self._outbox.empty():
                        continue
                if pending.deltas or pending.failures:
                    self._channel.send(encode(pending))
                    pending = Deltas([], [])
                if item is None:
                    return
                if not isinstance(item, tuple):
                    self._channel.send(encode(item))
        except ChannelClosedError:
            pass  # the owner is gone, and ``_serve`` hears of it


def main() -> None:
    parser = argparse.ArgumentParser(prog="ppinfer.engine.host")
    parser.add_argument("--fd", type=int, required=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what Ctrl-C means
    Host(Channel(socket.socket(fileno=parser.parse_args().fd))).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
