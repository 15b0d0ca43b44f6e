"""The files of templates/: what hpcwrap writes for schedulers and systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from hpcwrap import paths

if TYPE_CHECKING:
    import jinja2


def make_engine(**filters: Callable[..., str]) -> jinja2.Environment:
    """Make what renders them, with these filters; a hole without a value is an error."""
    # 20 ms, which a pull that writes no table does not pay.
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.data("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  no HTML: filters do the quoting
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters.update(filters)
    return engine
