"""The rest of a body, from the socket itself: all that comes without a pause, at once.

TLS gives one record for a call, 16 KB at most, whatever the buffer. Each batch costs a write to the file and a turn of
the event loop, for which threads wait: with a batch for each record they took more time than TLS itself.
"""

import select
import socket
import ssl
import time

GATHER_SECONDS = 0.001
"""Bytes that come within this time go together. 1 GiB over TLS took one reader 2.9 s without batches, and 1.5 with."""


class Bulk:
    """A socket whose further bytes are all of one body. Used by one thread; shutting the socket down wakes it."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        """`timeout`: seconds without a byte that are too many."""
        sock.settimeout(0)
        self._socket, self._timeout = sock, timeout
        self._ready = select.poll()
        self._trouble: OSError | None = None
        """What ended the stream, behind bytes that had to be handed out first."""

    def read_into(self, buffer: memoryview) -> int:
        """Bytes put at the start of `buffer`; 0 at the end of the stream. Raises OSError if it has no true end."""
        if self._trouble:
            raise self._trouble
        count, has_paused = 0, False
        while count < len(buffer):
            try:
                step = self._socket.recv_into(buffer[count:])
                if not step:
                    break
                count += step
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                if not count:
                    self._wait(select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else select.POLLIN)
                elif has_paused:
                    break
                else:
                    has_paused = True
                    time.sleep(GATHER_SECONDS)
            except OSError as error:
                if not count:
                    raise
                self._trouble = error
                break
        return count

    def _wait(self, event: int) -> None:
        self._ready.register(self._socket, event)
        if not self._ready.poll(self._timeout * 1000):
            raise TimeoutError
