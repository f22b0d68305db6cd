"""Server-sent events out of bytes that were cut anywhere."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST = 16 * 2**20


class EventParser:
    """Bytes in, the data of complete events out, as the HTML standard has it.

    Lines end in CRLF, LF or CR; comments and fields other than ``data`` are passed over; several
    ``data`` lines of an event are joined by line feeds; an event that no blank line ends is none.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False
        self._at_start = True

    def feed(self, received: bytes) -> list[bytes]:
        """The data of every event that these bytes complete.

        Raises:
            ValueError: a line or an event is longer than any answer's.
        """
        if self._after_cr and received:  # the line ended with the CR of a CRLF
            received, self._after_cr = received.removeprefix(b"\n"), False
        if not received:
            return []
        self._after_cr = received.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + received)
        events = []
        for line in lines:
            if self._at_start:
                line, self._at_start = line.removeprefix(_BYTE_ORDER_MARK), False
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data = []
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
        if len(self._rest) + sum(map(len, self._data)) > _LONGEST:
            raise ValueError("an event that does not end")
        return events
