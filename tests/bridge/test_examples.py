"""The examples of the documentation: complete, each by itself."""

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "bridges.md"
MODULES = sorted((ROOT / "jaxrobo" / "bridge").glob("[!_]*.py"))


def of_document():
    """Each section's blocks, by its title and their number."""
    for section in re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        for i, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            yield f"{title} {i}", block


def of_docstrings():
    """The indented lines of each module's docstring, by the module."""
    for path in MODULES:
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        code = [line for line in lines if line.startswith("    ") or not line]
        if any(code):
            yield path.stem, textwrap.dedent("\n".join(code))


EXAMPLES = dict([*of_document(), *of_docstrings()])


@pytest.mark.parametrize("code", EXAMPLES.values(), ids=EXAMPLES)
def test_no_name_is_undefined(code):
    """Nor is any imported twice, and what isn't Python is an error too."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811", "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("code", EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_imported_of_ours_is_there(code):
    """Read, not imported: some of it needs what isn't installed."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxrobo"):
            place = ROOT / node.module.replace(".", "/")
            source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            names = set(re.findall(r"\w+", source.read_text())) | {p.stem for p in place.glob("*")}
            assert {alias.name for alias in node.names} <= names


@pytest.mark.filterwarnings("ignore:Brax System:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data`:DeprecationWarning")
@pytest.mark.parametrize(
    ("title", "needs"),
    [
        ("Memory 0", "torch"),
        ("gymnasium's vector environments 0", "gymnasium"),
        ("Brax and MuJoCo Playground 0", "brax"),
        ("dlpack", "torch"),
    ],
)
def test_short_ones_run(title, needs):
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} isn't installed")
    exec(compile(EXAMPLES[title], title, "exec"), {})
