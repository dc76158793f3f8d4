"""What a command is, how its flags are read (absl) and how its help is written."""

from __future__ import annotations

import importlib
import math
import pkgutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from absl import flags


class UsageError(Exception):
    """The command line itself is wrong: exit status 2."""


@dataclass(frozen=True)
class Flag:
    """One flag: what it is called, what it takes, what it is for.

    Attributes:
        name: as in `--name=VALUE`.
        help: one or two sentences.
        value: what help shows after `=`; for a list of choices, `a|b|c`.
        default: when it is not given; a default that is text is parsed like the flag.
        kind: `string`, `integer`, `number`, `boolean`, `choice` (of those in `value`), `list` (of text) or
            `numbers` (a list of numbers). Lists are separated by commas.
        low: the smallest number taken.
        high: the largest number taken.
        required: whether the command cannot do without it.
    """

    name: str
    help: str
    value: str = "VALUE"
    default: Any = None
    kind: str = "string"
    low: float | None = None
    high: float | None = None
    required: bool = False

    @classmethod
    def fraction(cls, name: str, help: str, default: float | None = None) -> Flag:
        """A number in [0, 1]."""
        return cls(name, help, "FRACTION", default, "number", low=0, high=1)

    def define(self, into: flags.FlagValues) -> None:
        """Define the absl flag."""
        flags.DEFINE(self._parser(), self.name, self.default, self.help, flag_values=into, serializer=None)

    def _parser(self) -> flags.ArgumentParser:
        if self.kind == "integer":
            return flags.IntegerParser(lower_bound=_whole(self.low), upper_bound=_whole(self.high))
        if self.kind == "number":
            return _Number(lower_bound=self.low, upper_bound=self.high)
        if self.kind == "choice":
            return flags.EnumParser(self.value.split("|"))
        if self.kind == "list":
            return flags.ListParser()
        if self.kind == "numbers":
            return _Numbers(self.low, self.high)
        return flags.ArgumentParser()

    @property
    def usage(self) -> str:
        """`--name=VALUE`, or `--[no]name`."""
        return f"--[no]{self.name}" if self.kind == "boolean" else f"--{self.name}={self.value}"


class _Number(flags.FloatParser):
    """A number, and not "nan", which is in every range."""

    def convert(self, argument: Any) -> float:
        number = super().convert(argument)
        if math.isnan(number):
            raise ValueError(f"{argument!r} is not a number")
        return number


class _Numbers(flags.ArgumentParser):
    """0.8,0.7,0.5 as a tuple of floats."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self._one = _Number(lower_bound=low, upper_bound=high)

    def parse(self, argument: Any) -> tuple[float, ...]:
        parts = argument.split(",") if isinstance(argument, str) else argument
        numbers = []
        for part in parts:
            try:
                numbers.append(self._one.parse(part.strip() if isinstance(part, str) else part))
            except ValueError as error:
                raise ValueError(f"{part!r} is not one of {self._one.syntactic_help}s separated by commas") from error
        return tuple(numbers)


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


@dataclass(frozen=True)
class Command:
    """A command: `run` gets the flags' values as attributes and returns the exit status (None is 0).

    Attributes:
        name: as typed.
        summary: one line, for the list of commands.
        description: a paragraph or two, for its own help.
        example: a command line that works.
        flags: in the order that help lists them.
        run: does it; imports what is heavy inside.
        check: raises `UsageError` for what no single flag can say, before anything heavy is imported.
    """

    name: str
    summary: str
    description: str
    example: str
    flags: tuple[Flag, ...]
    run: Callable[[SimpleNamespace], int | None]
    check: Callable[[SimpleNamespace], None] = lambda options: None

    def parse(self, arguments: Sequence[str]) -> SimpleNamespace:
        """The values of all flags.

        Raises:
            UsageError: a flag is unknown, missing or does not take its value, or something is no flag.
        """
        values = flags.FlagValues()
        for flag in self.flags:
            if flag.kind == "boolean":
                flags.DEFINE_boolean(flag.name, flag.default, flag.help, flag_values=values)
            else:
                flag.define(values)
        try:
            rest = values(["tfprune", *arguments])[1:]
        except flags.Error as error:
            raise UsageError(str(error).strip().replace("\n", " ")) from error
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        missing = [flag for flag in self.flags if flag.required and values[flag.name].value is None]
        if missing:
            raise UsageError(f"{' and '.join(flag.usage for flag in missing)} must be given")
        options = SimpleNamespace(**{flag.name: values[flag.name].value for flag in self.flags})
        self.check(options)
        return options

    def help(self) -> str:
        """What `tfprune NAME --help` prints."""
        lines = [f"tfprune {self.name}: {self.summary}", "", textwrap.fill(self.description, 100), "", "flags:"]
        for flag in self.flags:
            lines.append(f"  {flag.usage}")
            note = "" if flag.default is None else f" (default: {_shown(flag.default)})"
            note = " (must be given)" if flag.required else note
            lines.append(textwrap.fill(flag.help + note, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
        return "\n".join([*lines, "", "example:", *(f"  {line}" for line in self.example.splitlines())])


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return default if isinstance(default, str) and default else f"{default!r}"


def commands() -> dict[str, Command]:
    """All commands by name. A module in `commands/` with a `COMMAND` is one.

    >>> sorted(commands())
    ['bench', 'cost', 'draw', 'export', 'inspect', 'prune', 'remove_layers', 'sensitivity', 'strip', 'to_keras',
     'track', 'train', 'verify', 'view']
    """
    package = importlib.import_module("tfprune.cli.commands")
    found = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return {module.COMMAND.name: module.COMMAND for module in found}
