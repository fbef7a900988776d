"""From what a person types after --storage to a SQLAlchemy URL that every process of a study opens alike.

Two databases are supported: SQLite for one machine and PostgreSQL for many. Called by `storage.engine` and by
the commands, which print a URL only through `shown`.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from storage.errors import UsageError

DEFAULT_URL = "sqlite:///dialin.db"
_SHAPES = "sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE"


def parse(text: str) -> URL:
    """The URL to open, with the driver filled in and a SQLite path made absolute.

    Raises:
        UsageError: not a URL, an in-memory database (no second process can see it), or a database that Dialin
            does not support.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        hidden = re.sub(r":[^:@]*@", ":***@", text)
        raise UsageError(f"storage {hidden!r} is not a database URL: write {_SHAPES}") from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        if not url.database:
            raise UsageError(f"storage {shown(url)!r} names no database: write {_SHAPES}")
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UsageError(
                "an in-memory SQLite database cannot be shared by workers: name a file, as in sqlite:///dialin.db"
            )
        return url.set(drivername="sqlite", database=str(Path(url.database).expanduser().absolute()))
    raise UsageError(f"{backend} is not a supported database: write {_SHAPES}")


def shown(url: URL | str) -> str:
    """The URL as it may be printed: its password replaced by ***, one among the parameters left out."""
    url = make_url(url).difference_update_query(["password", "sslpassword"])
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def full(url: URL) -> str:
    """The URL with its password, for opening it again in another process; never for printing."""
    return url.render_as_string(hide_password=False)


def there_is(url: URL) -> None:
    """Whoever opens a SQLite file that is not there makes it. Raises UsageError where a URL names one."""
    file = sqlite_file(url)
    if file is not None and file.parent.is_dir() and not file.exists():
        raise UsageError(f"there is no database {file}: `dialin run digits` makes one, --storage names another")


def sqlite_file(url: URL) -> Path | None:
    """The database file of a SQLite URL, None for a server."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
