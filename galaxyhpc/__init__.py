"""Comparison of symmetry groups and architectures for galaxy classification, on clean and on corrupted images."""

import sys
from importlib import import_module
from os.path import dirname
from typing import Any

__version__ = "0.2.0"
_API = {
    "RunConfig": "config.schema:RunConfig",
    "load_sweep": "config.sweep:load_sweep",
    "find_runs": "storage.sweep_dir:find_runs",
    "build_model": "models.build_model:build_model",
    "load_classifier": "evaluation.trained_model:load",
}
__all__ = ["__version__", *_API]

# `python -m galaxyhpc.VERB` puts the current directory first: a user's own jobs.py or inspect.py would be imported
if sys.argv[:1] == ["-m"]:
    if not sys.flags.safe_path and sys.path[0] != dirname(dirname(__file__)):
        del sys.path[0]
    from galaxyhpc.runtime.process import start_command

    start_command()


def __getattr__(name: str) -> Any:
    """Import a name of the Python API at its first use: the package alone loads neither torch nor numpy."""
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _API[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
