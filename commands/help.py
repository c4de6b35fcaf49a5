"""help and version, and the group of all commands."""

import os
import re

import click

from version import __version__

OF_THE_PROGRAM = ("--config", "--version")  # its options, which stand before a command


class Program(click.Group):
    """The commands. What no command can use is refused here, with what to do."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        for word in arguments[1:]:
            if re.search("[\udc80-\udcff]", word):  # bytes that Python could not decode
                shown = os.fsencode(word).decode(errors="backslashreplace")
                raise click.UsageError(f"{shown} is not UTF-8: set the terminal to that, or give the asset's id")
            option = word.partition("=")[0]
            if option in OF_THE_PROGRAM:
                raise click.UsageError(f"{option} goes before the command: {context.command_path} {option} …")
        return super().resolve_command(context, arguments)


@click.command("help")
@click.argument("name", metavar="[COMMAND]", default="")
@click.pass_context
def help_(context: click.Context, name: str) -> None:
    """Show what there is, or explain a command."""
    program = context.find_root()
    if not name:
        click.echo(program.get_help())
        return
    found = program.command.get_command(program, name) if isinstance(program.command, click.Group) else None
    if found is None:
        raise click.UsageError(f"There is no command {name!r}. To see all: {program.command_path} help")
    click.echo(found.get_help(click.Context(found, info_name=found.name, parent=program, **found.context_settings)))


@click.command()
def version() -> None:
    """Show the version."""
    click.echo(f"iconik-listener {__version__}")
