import os
import urllib.error

import pytest

from benchmarks import browser


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a script in the place of chromedriver, and tells the id of its process afterwards."""
    pid = tmp_path / "pid"

    def driver(script):
        program = tmp_path / "driver"
        program.write_text(f"#!/bin/sh\necho $$ > {pid}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(browser, "DRIVER", str(program))
        return lambda: int(pid.read_text())

    return driver


def test_a_driver_that_ends_early_is_named(driver, tmp_path):
    driver("exit 3")
    with (
        pytest.raises(RuntimeError, match="driver ended with 3 before it listened"),
        browser.Browser(tmp_path),
    ):
        pass


def test_a_driver_that_makes_no_session_is_ended(driver, tmp_path):
    """Nobody listens at port 1."""
    pid = driver("echo started successfully on port 1\nexec sleep 300")
    with pytest.raises(urllib.error.URLError), browser.Browser(tmp_path):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(pid(), 0)
