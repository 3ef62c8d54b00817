"""Ctrl-C as a request that a loop asks for, instead of an exception anywhere."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signal(message: str) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C or SIGTERM came; a second one acts as ever.

    Args:
      message: what to say on stderr when it comes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()
        os.write(2, f"\n{message}\n".encode())  # print isn't reentrant

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {s: signal.getsignal(s) or signal.SIG_DFL for s in (signal.SIGINT, signal.SIGTERM)}
    # A shell makes its background jobs deaf to the Ctrl-C that is for the one in front.
    previous = {s: handler for s, handler in previous.items() if handler is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        restore()
