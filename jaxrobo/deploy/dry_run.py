"""The Dofbot's server on this computer, without an arm."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from jaxrobo.deploy import arm_server


class DryRunServer:
    """`arm_server --dry-run` as a process of its own, on a free port.

    Attributes:
      process: the server's; its stderr tells what happened.
      port: where it listens.
    """

    def __init__(self, *options: str, python: str = sys.executable, port: int = 0) -> None:
        """Starts it, and waits until it listens.

        Args:
          *options: more options of `arm_server`.
          python: the interpreter.
          port: where to listen; a free one if 0.

        Raises:
          OSError: if it doesn't start.
        """
        command = [python, arm_server.__file__, "--dry-run", "--port", str(port), *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the client
        )
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise OSError(f"the server didn't start: {self.process.communicate()[1].strip()}")
        self.port = int(line.rpartition(":")[2])

    def stop(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Ends it: the lowest and the highest angle of each servo, `[6]` degrees, and its log."""
        self.process.terminate()
        out, log = self.process.communicate(timeout=10)
        low, high = (np.array(line.split()[1:], float) for line in out.splitlines())
        return low, high, log


@contextlib.contextmanager
def dry_run(*options: str, python: str = sys.executable, port: int = 0) -> Iterator[DryRunServer]:
    """A `DryRunServer` that is gone after the block, whatever happens in it."""
    server = DryRunServer(*options, python=python, port=port)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
