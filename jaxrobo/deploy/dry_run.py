"""The Dofbot's server on this computer, without an arm."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from jaxrobo.deploy import arm_server


class DryRunServer:
    """`arm_server --dry-run` as a process of its own; see `dry_run`.

    Attributes:
      process: the server's.
      port: where it listens.
    """

    def __init__(self, process: subprocess.Popen, log: IO[str]) -> None:
        """Waits until it listens. Raises OSError if it ends instead."""
        self.process, self._log = process, log
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            process.wait()
            raise OSError(f"the server didn't start: {self._told()}")
        self.port = int(line.rpartition(":")[2])

    def stop(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Ends it: the lowest and the highest angle of each servo, `[6]` degrees, and its log."""
        self.process.terminate()
        out, _ = self.process.communicate()
        low, high = (np.array(line.split()[1:], float) for line in out.splitlines())
        return low, high, self._told()

    def _told(self) -> str:
        self._log.seek(0)
        return self._log.read().strip()


@contextlib.contextmanager
def dry_run(*options: str, python: str = sys.executable, port: int = 0) -> Iterator[DryRunServer]:
    """A server that is gone after the block, whatever happens in it.

    Args:
      *options: more options of `arm_server`.
      python: the interpreter.
      port: where to listen; a free one if 0.

    Raises:
      OSError: if it doesn't start.
    """
    command = [python, arm_server.__file__, "--dry-run", "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads would stop it
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the client
        )
        try:
            yield DryRunServer(process, log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
