"""The errors that libraries raise for foreign or damaged image files, as one line that says what the file is."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.data.sources.read_errors import explain_read_error
from galaxyhpc.storage.files import sanitize


@contextmanager
def translate_read_errors(path: Path, file_type: str, file: Path | io.BytesIO | None = None) -> Iterator[None]:
    """Turn the errors of a library about a foreign or damaged file into an ImageError of one line.

    `file` is the file at `path`, or its bytes where `path` is only a name.
    """
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, ImageError):
        raise
    except Exception as error:  # a damaged file may raise anything
        if size is None:
            message = explain_read_error(path, error, file_type)
        else:
            message = f"got {f'{size} bytes that are none, or damaged' if size else 'nothing'}; expected {file_type}"
        raise ImageError(sanitize(f"{path}: {message}")) from error
