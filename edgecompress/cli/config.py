"""`--config FILE.toml`: the values of a file become defaults of the commands' options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecompress.cli.parameters import (
    Command,
    OwnedOption,
    json_switch,
    quiet_switch,
    undecided_switch,
    verbose_switch,
)
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnreadableFileError
from edgecompress.core.options import Option

# Options that a file cannot set: a module is code, a configuration is data.
_NEVER = ("help", "import", "config")


def config_option() -> click.Option:
    """Returns `--config`."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help='TOML file whose keys are command options (`max_ram = "96KiB"`); tables [export], '
        "[check], ... apply to one command only. Flags override it; paths in it are relative to "
        "its folder.",
    )


def verdict_switches() -> list[click.Option]:
    """Returns the options of every command with a verdict: a configuration, and its output."""
    return [config_option(), undecided_switch(), json_switch(), quiet_switch(), verbose_switch()]


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Makes the values of a TOML file the defaults of the command's options."""
    if path is None:
        return
    from edgecompress.core.reading import read_toml

    try:
        values = read_toml(path)
    except UnreadableFileError as error:
        raise ArgumentError(
            "--config", "be a readable TOML file", str(path), f"It {error.problem}."
        ) from error
    commands = _configurable(ctx)
    # A key's meaning is that of the first command that has it; elsewhere it may differ.
    common: dict[str, click.Option] = {}
    for options in commands.values():
        common = options | common
    own = commands[ctx.command.name or ""]
    defaults = dict(ctx.default_map or {})
    for table, options in [(None, common), *commands.items()]:
        for key, value in _keys(values, table, commands, path).items():
            name = key.replace("_", "-")
            if name not in options:
                where = path.name if table is None else f"[{table}] of {path.name}"
                among = {*options, *(() if table else commands)}
                raise UnknownNameError(f"--config key in {where}", key, among)
            option, origin = options[name], f"{path.name}: {key}"
            checked = _value(option, value, origin, path)
            mine = own.get(name)
            if mine is None or table not in (None, ctx.command.name):
                continue
            if mine.metavar == option.metavar:
                defaults[mine.name or ""] = checked
            elif not _is_path(mine):
                # A limit must apply in every command that has it, in that command's form.
                defaults[mine.name or ""] = _value(mine, value, origin, path)
            # A folder for one command is a file for another: such a key needs a table.
    ctx.default_map = defaults


def _configurable(ctx: click.Context) -> dict[str, dict[str, click.Option]]:
    """Returns command -> option's name -> option, for the commands that read a file."""
    parent = ctx.parent
    if parent is None or not isinstance(parent.command, click.Group):
        return {ctx.command.name or "": _options(ctx.command, ctx)}
    found = {}
    for name in parent.command.list_commands(parent):
        command = parent.command.get_command(parent, name)
        if isinstance(command, Command) and any(p.name == "config" for p in command.params):
            found[name] = _options(command, ctx)
    return found


def _options(command: click.Command, ctx: click.Context) -> dict[str, click.Option]:
    named = {}
    for param in command.get_params(ctx):
        if isinstance(param, click.Option):
            flag = next(name for name in param.opts if name.startswith("--"))
            named[flag.removeprefix("--")] = param
    return {name: option for name, option in named.items() if name not in _NEVER}


def _keys(
    values: dict[str, Any], table: str | None, commands: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Returns the keys of a command's table, or with None the top-level keys."""
    if table is None:
        return {key: value for key, value in values.items() if key not in commands}
    keys = values.get(table, {})
    if not isinstance(keys, dict):
        raise ArgumentError(f"{path.name}: {table}", f"be a table, [{table}]", keys)
    return keys


def _value(option: click.Option, value: Any, origin: str, file: Path) -> Any:
    """Returns the value of a key in the option's form; paths are relative to the file's folder."""
    if not isinstance(option, OwnedOption):
        if not isinstance(value, bool):
            raise ArgumentError(origin, "be true or false", value)
        return value
    checked = option.owned.kind.from_toml(value, origin)
    if _is_path(option):
        return str(file.parent / checked)
    return _named(option.owned, checked, file)


def _named(owned: Option, value: Any, file: Path) -> Any:
    """Returns names of targets or of a list of operators, among which a .toml is a path."""
    if owned.key not in ("target", "operators"):
        return value
    names = [value] if isinstance(value, str) else value
    paths = [str(file.parent / name) if name.endswith(".toml") else name for name in names]
    return paths[0] if isinstance(value, str) else paths


def _is_path(option: click.Option) -> bool:
    return isinstance(option, OwnedOption) and option.owned.kind.path
