"""matplotlib without the user's settings: no matplotlibrc, backend or font of theirs changes or prevents a figure.

Imported before any other part of matplotlib, which reads its settings once and fails where they are damaged.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def _hide_settings() -> Iterator[None]:
    """Hide the settings in the environment and, since matplotlib looks there first, in the current directory."""
    directory = os.open(".", os.O_PATH)  # even if it was removed
    try:
        os.chdir(os.path.dirname(__file__))
        with patch.dict(os.environ, MATPLOTLIBRC=os.devnull, MPLBACKEND="agg"):
            yield
    finally:
        os.fchdir(directory)
        os.close(directory)


with _hide_settings():
    import matplotlib


@contextmanager
def use_default_style() -> Iterator[None]:
    """Draw and save with matplotlib's defaults and the font that comes with it: the same bytes for everybody."""
    # rc_context restores everything but the backend, which is not ours to change
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # of a name; a box stands in its place
        defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
        matplotlib.rcParams.update(defaults | {"font.family": ["DejaVu Sans"]})  # type: ignore[arg-type]
        yield
