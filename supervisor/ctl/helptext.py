"""How commands show themselves in help and usage errors, where the library's words are not ours."""

from __future__ import annotations

import re
from typing import Any

import typer
import typer.core

_REQUIRED = re.compile(r"\{(.+?)(\.\.\.)?\}(?:\.\.\.)?")


class Command(typer.core.TyperCommand):
    """A command with `BUILD` in its usage instead of `{BUILD}`, and without Python's types."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for param in self.params:
            if isinstance(param, typer.core.TyperArgument):
                param.__class__ = _Argument

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return [_REQUIRED.sub(r"\1\2", piece) for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; what is wrong with it is said in a sentence."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as exc:
            exc.message = exc.message.removeprefix("Value error, ")
            raise


class _Argument(typer.core.TyperArgument):
    def display_type_rich(self, ctx: Any) -> str | None:
        return None


def use_plain_help(app: typer.Typer) -> None:
    """Have all commands of a program show themselves so."""
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            use_plain_help(group.typer_instance)
