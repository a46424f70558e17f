"""Paths on the command line: of stores, which may be URLs of an object store, and of all else, which may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stores.cache import VARIABLE, kept_in
from stores.errors import UsageError
from stores.paths import as_path, is_url

F = TypeVar("F", bound=Callable[..., Any])


class StorePath(click.ParamType):
    """Where a store is: a path, or a URL such as ``s3://bucket/acts.zarr``."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return as_path(value) if isinstance(value, str) else value


class LocalPath(click.Path):
    """A path of the local disk, for what is small. Raises UsageError for a URL."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            option = param.opts[0] if param is not None and param.opts else "the path"
            raise UsageError(f"'{value}' ({option}) is a URL, where only stores can be. Give a path of a local disk.")
        return super().convert(value, param, ctx)


STORE, LOCAL = StorePath(), LocalPath()


def _keep(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    context.with_resource(kept_in(folder))


def cache_option(command: F) -> F:
    """``--cache DIR``: where a command keeps what it reads of remote stores, for as long as it runs."""
    return click.option("--cache", type=LOCAL, default=None, envvar=VARIABLE, metavar="DIR", callback=_keep, expose_value=False,
                        help="Keep what is read of a store in an object store in this folder, where it is mapped from then on.  "
                        "[default: $EDDP_CACHE]")(command)  # fmt: skip
