"""Whether a command line is one that the installed programs take."""

import shlex

import click


def _program(name: str) -> click.Command:
    # They take seconds to import.
    if name == "dagster":
        from dagster._cli import create_dagster_cli

        dagster: click.Command = create_dagster_cli()  # type: ignore[no-untyped-call]
        return dagster
    if name == "dagster-daemon":
        from dagster._daemon.cli import create_dagster_daemon_cli

        return create_dagster_daemon_cli()
    if name == "dagster-webserver":
        from dagster_webserver.cli import dagster_webserver

        return dagster_webserver
    raise click.UsageError(f"no such program: {name}")


def parse_command(words: list[str]) -> None:
    """Parse a command with all of its options, without executing it; raises click's errors."""
    program, *left = words
    if program == "python":
        assert left[0] == "-c", shlex.join(words)
        compile(left[1], "command", "exec")
        return
    command = _program(program)
    context = None
    while isinstance(command, click.Group):
        context = command.make_context(program, [left[0]], parent=context, resilient_parsing=True)
        found = command.get_command(context, left[0])
        if found is None:
            raise click.UsageError(f"no such command: {shlex.join(words)}")
        program, command, left = left[0], found, left[1:]
    command.make_context(program, left, parent=context)
