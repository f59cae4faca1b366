"""token create, token inspect."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how, write_record
from supervisor.ctl.commands.options import AsJson, Template
from supervisor.ctl.errors import EXIT_OK, UsageError
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import clean_line
from supervisor.runtime.clock import wall_clock

app = typer.Typer(help="Make and look at API tokens.", no_args_is_help=True, rich_markup_mode=None)

_LIFETIME = re.compile(r"(\d{1,9})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TIMES = ("iat", "nbf", "exp")


@app.command(
    epilog="Example: hypeman-ctl token create --subject ci --permission build:read --lifetime 30d"
)
def create(
    context: typer.Context,
    subject: Annotated[
        str, typer.Option(metavar="NAME", help="Whom the token speaks for.")
    ] = "cli",
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose builds; SUBJECT if absent.")
    ] = None,
    permission: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="build:read, build:write, image:*, …; all but build:admin if absent.",
        ),
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it is valid: 90s, 15m, 12h, 30d.")
    ] = "1d",
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Make an API token and write it. For administrators: over the socket, or with build:admin."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.TOKEN, as_json=as_json, template=template)
        _check_permissions(permission or [])
        answer = await client.create_token(
            subject=subject,
            tenant=tenant,
            permissions=permission or None,
            lifetime_seconds=_parse_lifetime(lifetime),
        )
        write_record(session.out, how, answer, lambda: session.out.line(answer["token"]))

    session_of(context).run(command)


@app.command(epilog="Example: hypeman-ctl token create | hypeman-ctl token inspect -")
def inspect(
    context: typer.Context,
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="The token; - reads it from standard input.")
    ] = "-",
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Show what a token says. Its signature is not checked: only the daemon has the key."""
    session = session_of(context)

    def work() -> int:
        how = parse_how(fields.CLAIMS, as_json=as_json, template=template)
        text = sys.stdin.read() if token == "-" else token
        claims = _read_claims(text.strip())

        def write() -> None:
            for name, value in claims.items():
                label = f"{clean_line(name, colours=False)}:"
                session.out.line(f"{label:<13}{_describe(name, value)}")

        write_record(session.out, how, claims, write)
        return EXIT_OK

    session.finish(work)


def _read_claims(token: str) -> dict[str, Any]:
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.b64decode(payload + "=" * (-len(payload) % 4), b"-_", True))
    except (ValueError, binascii.Error):
        claims = None
    if not isinstance(claims, dict):
        raise UsageError("that is no token: three parts with dots between them were expected")
    return claims


def _describe(name: str, value: Any) -> str:
    if name in _TIMES and isinstance(value, int | float) and 0 <= value < 1 << 35:
        at = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{at} (expired)" if name == "exp" and value < wall_clock() else at
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clean_line(text, colours=False)


def _check_permissions(names: Sequence[str]) -> None:
    from supervisor.tokens import Permission  # with cryptography, which nothing else needs

    known = [*Permission, "image:*"]
    for name in names:
        if name not in known:
            raise UsageError(f"--permission {name}: expected one of {', '.join(known)}")


def _parse_lifetime(text: str) -> int:
    match = _LIFETIME.fullmatch(text.lower())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"--lifetime {text}: expected a duration like 90s, 15m, 12h or 30d")
    return int(match[1]) * _SECONDS[match[2]]
