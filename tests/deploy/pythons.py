"""Older Pythons, where there are any: those that robots' computers have."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

VERSIONS = ("3.6", "3.7", "3.8", "3.9")


@cache
def older_python(version: str, needs: str = "sys") -> str:
    """An interpreter of a version that can import a module; skips the test if there is none."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for python in (shutil.which(f"python{version}"), *map(str, installed)):
        check = [python, "-c", f"import {needs}"]
        # A shim of pyenv exists for versions that aren't active, and fails.
        if python and not subprocess.run(check, capture_output=True, check=False).returncode:
            return python
    pytest.skip(f"no Python {version} with {needs}")
