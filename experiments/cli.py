"""Command lines: flags from dataclasses, and errors of one line."""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from rich.text import Text

T = TypeVar("T")


def start(main: Callable[[], None]) -> None:
    """Runs a command; Ctrl-C ends it with the exit code that shells know."""
    try:
        main()
    except KeyboardInterrupt:
        print("aborted", file=sys.stderr)
        sys.exit(130)


def parse(
    options: type[T],
    argv: Sequence[str],
    program: str,
    description: str,
    default: T | None = None,
) -> T:
    """Reads flags into a dataclass; the fields of a dataclass within it are flags without a prefix.

    Args:
      options: the dataclass.
      argv: the arguments.
      program: what the command is called.
      description: what `--help` says first.
      default: where the defaults come from.

    Raises:
      SystemExit: with 0 after `--help`; with 2 after a line on stderr if a flag is wrong.
    """
    box = io.StringIO()
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                options,
                args=argv,
                prog=program,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                **more,
            )
    except SystemExit as stop:
        if stop.code:
            fail(_unbox(box.getvalue()))
        raise


def peek(argv: Sequence[str], *flags: str) -> list[str | None]:
    """What some flags say, those on which it depends which others there are; None if absent."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag, dest=flag, nargs="?")
    known = vars(parser.parse_known_args(argv)[0])
    return [known[flag] for flag in flags]


def given(argv: Sequence[str], *names: str) -> set[str]:
    """Those of some options that flags name, as `--name` or `--no-name`."""
    flags = {argument.partition("=")[0] for argument in argv if argument.startswith("--")}
    spelled = {flag.removeprefix("--").replace("-", "_") for flag in flags}
    return {name for name in names if {name, f"no_{name}"} & spelled}


def stopped(command: str) -> NoReturn:
    """Tells how to go on with what a signal stopped, and exits with the code that shells know."""
    print(f"to go on: {command}")
    sys.exit(130)


def merge(**groups: type) -> type:
    """A dataclass of dataclasses, whose fields are to be flags together.

    Raises:
      ValueError: if two of them share the name of a field.
    """
    owners: dict[str, str] = {}
    for group, options in groups.items():
        for field in dataclasses.fields(options):
            if field.name in owners:
                both = f"{owners[field.name]} and {group}"
                raise ValueError(f"{field.name!r} is an option of {both}: rename one")
            owners[field.name] = group
    return dataclasses.make_dataclass("Options", groups.items(), frozen=True)


def distribute(values: Mapping[str, Any], *options: type) -> list[dict[str, Any]]:
    """Splits values by the dataclass with a field of this name. Raises ValueError if none has."""
    names = [{f.name for f in dataclasses.fields(o)} for o in options]
    if unknown := values.keys() - set().union(*names):
        raise ValueError(f"unknown options {', '.join(sorted(unknown))}")
    return [{k: v for k, v in values.items() if k in own} for own in names]


@contextlib.contextmanager
def failing(*errors: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds into a line on stderr and exit code 2."""
    try:
        yield
    except errors as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Prints a line on stderr and exits with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _unbox(text: str) -> str:
    """The message in a box that tyro draws, and the flags that it suggests.

    A box has parts between rules: in ASCII the title, the message, more; otherwise the title is in
    the frame.
    """
    text = Text.from_ansi(text).plain
    lines = [line.strip("│ ") for line in text.splitlines() if line[:1] not in "╭╰"]
    parts = re.split(r"\n[-─]+\n", "\n".join(lines))
    message = parts[0] if text.startswith("╭") or len(parts) < 2 else parts[1]
    for part in parts:
        if part.startswith("Perhaps you meant:"):
            message += f"; perhaps {' or '.join(re.findall(r'^--[a-z-]+', part, re.MULTILINE))}"
    return re.sub(r"^Error parsing ((?!--)\S+: )?", "", message)  # a dataclass's name says nothing
