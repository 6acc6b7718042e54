"""The errors that libraries raise for foreign or damaged image files, as one line that says what the file is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.data.sources.read_errors import explain_read_error
from galaxyhpc.storage.files import sanitize


@contextmanager
def translate_read_errors(path: Path, file_type: str, file: Path | BinaryIO | None = None) -> Iterator[None]:
    """Turn the errors of a library about a foreign or damaged file into an ImageError of one line.

    `file` is the file at `path`, or its bytes where `path` is only a name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if file is None or isinstance(file, Path):
            message = explain_read_error(path, error, file_type)
        else:
            got = "nothing" if not file.seek(0, os.SEEK_END) else f"{file.tell()} bytes that are none, or damaged"
            message = f"got {got}; expected {file_type}"
        raise ImageError(sanitize(f"{path}: {message}")) from error
