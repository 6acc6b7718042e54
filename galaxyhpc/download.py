"""Download the published galaxies, and verify them.

    galaxyhpc download galaxy10 --to DIR

writes DIR/Galaxy10_DECals.h5 (Leung & Bovy, Zenodo 10845026; 2.5 GiB), if the SHA-256 is the one that astroNN's loader
and documentation publish; Zenodo publishes an MD5. What arrives stands in a hidden directory beside it until it is
verified. A download that breaks off goes on by itself while bytes still come, and where it was when the same command
is run again. A file that exists is verified and never replaced. Jobs download nothing: run this where there is
internet, before the launch.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pooch
import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from galaxyhpc.data.sources.hdf5 import FILE_TYPE
from galaxyhpc.data.sources.read_errors import FIRST_BYTES, explain_read_error
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import fsync, sanitize, sha256

TIMEOUT_SECONDS = (20.0, 60.0)  # to connect, and between two parts of an answer
CHUNK_BYTES = 2**16  # what a connection that breaks may lose
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class DownloadError(Exception):
    """The server or the network did not deliver the file; the same command may succeed later."""


class TargetError(Exception):
    """The file cannot be written where it was asked for; the user has to change something."""


class PublishedFile(NamedTuple):
    """A file that its authors publish."""

    name: str
    url: str
    sha256: str


FILES = {
    "galaxy10": PublishedFile(
        "Galaxy10_DECals.h5",
        "https://zenodo.org/records/10845026/files/Galaxy10_DECals.h5",
        "19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571",
    )
}


def download(file: PublishedFile, directory: Path, url: str) -> str:
    """Put a file into a directory, verified; return what was done.

    Raises
    ------
    DownloadError, TargetError, OSError
    """
    target = directory / file.name
    if os.path.lexists(target):
        _check_existing(target, file)
        return f"{target}: already there, its SHA-256 is the published one"
    aside = directory / f".{file.name}.download"
    aside.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(aside):
            verified = _fetch_verified(file, aside, url)
            os.replace(verified, target)
            fsync(directory)
            shutil.rmtree(aside)
    finally:
        with suppress(OSError):
            aside.rmdir()  # where it is empty
    return f"{target}: downloaded, its SHA-256 is the published one"


def _fetch_verified(file: PublishedFile, aside: Path, url: str) -> Path:
    """Return the path of the file in the directory `aside`, where what earlier commands left is continued."""
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = ResumedDownload(aside / "part", file.name)
    try:
        pooch.retrieve(url, f"sha256:{file.sha256}", file.name, aside, downloader=downloader)
    except ValueError as error:
        if isinstance(error, requests.RequestException):
            raise
        digest, size = sha256(downloader.path), downloader.path.stat().st_size
        downloader.discard()
        got = f"{sanitize(url)}: got {size:,} bytes of SHA-256 {digest[:12]}..."
        raise DownloadError(f"{got}; expected SHA-256 {file.sha256[:12]}...: nothing was kept") from None
    return downloader.path


def _check_existing(target: Path, file: PublishedFile) -> None:
    if not target.is_file():
        raise TargetError(f"{target}: got something that is no file; expected a free name, or --to another directory")
    if (digest := sha256(target)) != file.sha256:
        got = f"{target}: got another file (SHA-256 {digest[:12]}...) there; expected {file.sha256[:12]}..."
        raise TargetError(f"{got}: move it away, or name another directory with --to")


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold a directory against other downloads, where its file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TargetError(f"{directory}: got another download that writes there; expected one at a time") from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


class ResumedDownload:
    """A downloader for pooch that continues what an earlier one left, if the server still has the same file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.version_file = path.with_name("version")  # what If-Range takes: the server's name of the content
        self.name = name

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Download to `path`, and put a link to it in the place of `output_file`.

        A link, because pooch removes its own file where it is interrupted while it computes the hash.

        Raises
        ------
        DownloadError, TargetError, requests.RequestException
        """
        with _show_progress(f"downloading {sanitize(url)}") as show:
            while not self._fetch(url, show):
                pass
        fsync(self.path)
        os.remove(output_file)
        os.symlink(self.path.name, output_file)

    def discard(self) -> None:
        """Forget what was downloaded."""
        for path in (self.path, self.version_file):
            path.unlink(missing_ok=True)

    def _fetch(self, url: str, show: Callable[[int, int | None], None]) -> bool:
        """Make one request; return whether the file is complete. Raise if this brought the end no nearer."""
        start = self._size
        try:
            with requests.get(url, headers=self._make_headers(), stream=True, timeout=TIMEOUT_SECONDS) as answer:
                if answer.status_code == 416 and answer.headers.get("Content-Range") == f"bytes */{start}":
                    return True  # it was complete, as after a kill during the hash
                self._check_status(answer)
                self._receive(answer, show)
        except requests.RequestException:
            if self._size <= start:
                raise
            return False
        return True

    @property
    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def _version(self) -> str:
        return self.version_file.read_text(encoding="latin-1") if self.version_file.exists() else ""

    def _make_headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # ranges are those of the file
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._version:
                headers["If-Range"] = self._version
        return headers

    def _check_status(self, answer: requests.Response) -> None:
        if answer.status_code == 416:
            self.discard()
        if answer.status_code not in (200, 206):
            got = f"{sanitize(answer.url)}: got HTTP {answer.status_code} ({sanitize(answer.reason or 'no reason')})"
            raise DownloadError(f"{got}; expected the file: try again later, or another --mirror")

    def _receive(self, answer: requests.Response, show: Callable[[int, int | None], None]) -> None:
        start, version = _get_start(answer), _get_version(answer)
        if start and (start != self._size or self._version not in ("", version)):
            self.discard()
            got = f"{sanitize(answer.url)}: got a part that does not continue what was downloaded"
            raise DownloadError(f"{got}; expected the same file: run the command again to begin anew")
        if not start:
            self.discard()
            self.version_file.write_text(version, encoding="latin-1")  # as header fields are
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        self._check_free_bytes(total)
        with self.path.open("ab") as file:
            show(start, total)
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.write(chunk)
                file.flush()
                self._check_signature(file, answer)
                show(file.tell(), total)
            if total is not None and file.tell() < total:
                raise requests.ConnectionError(f"{file.tell():,} of {total:,} bytes")

    def _check_free_bytes(self, total: int | None) -> None:
        needed, free = (total or 0) - self._size, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise TargetError(
                f"{self.path.parent.parent}: got {free:,} free bytes; expected {needed:,} for {self.name}: "
                "name another directory with --to"
            )

    def _check_signature(self, file: IO[bytes], answer: requests.Response) -> None:
        """Stop at the first bytes of a page of errors or of a login, instead of at the hash."""
        if file.tell() > FIRST_BYTES + CHUNK_BYTES:
            return
        with self.path.open("rb") as beginning:
            is_hdf5 = beginning.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE[: file.tell()]
        if not is_hdf5:
            message = explain_read_error(self.path, OSError(), FILE_TYPE)
            self.discard()
            raise DownloadError(f"{sanitize(answer.url)}: {message}")


def _get_start(answer: requests.Response) -> int:
    """Return the position of the answer's first byte in the file: 0 where a server ignores the range."""
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if answer.status_code == 206 and match else 0


def _get_version(answer: requests.Response) -> str:
    """Return the entity tag, or else the date, or nothing; RFC 9110 (13.1.5) allows no weak tag in If-Range."""
    tag = answer.headers.get("ETag", "")
    return str(tag if tag.startswith('"') else answer.headers.get("Last-Modified", ""))


@contextmanager
def _show_progress(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function of the bytes that are there and those expected; a bar on a terminal, one line in a log."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        print(text, file=sys.stderr, flush=True)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main(arguments: list[str] | None = None) -> int:
    """Download a file; 1 if the server or the network failed, 2 if the user has to change something."""
    parser = argparse.ArgumentParser(prog="galaxyhpc download", description="Download the published galaxies.")
    parser.add_argument("file", choices=FILES, help="galaxy10: Galaxy10_DECals.h5, 2.5 GiB, Zenodo 10845026")
    parser.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="directory (default: this one)")
    parser.add_argument("--mirror", metavar="URL", help="another address of the same file")
    options = parser.parse_args(arguments)
    file = FILES[options.file]
    url = options.mirror or file.url
    try:
        print(sanitize(download(file, options.to, url)))
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
        return _fail(2, f"--mirror: got {sanitize(url)}; expected an address that begins with https:// or http://")
    except (DownloadError, requests.RequestException) as error:
        return _fail(1, _describe(url, error))
    except (TargetError, OSError) as error:
        return _fail(2, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted; the same command goes on where it was")
    path = shlex.quote(str((options.to / file.name).resolve()))
    print(f"next: export GALAXY10_H5={path}; galaxyhpc launch sweeps/all_groups.yaml --dry-run")
    return 0


def _describe(url: str, error: Exception) -> str:
    if isinstance(error, DownloadError):
        return str(error)
    problem = "no answer in time" if isinstance(error, requests.Timeout) else type(error).__name__
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__  # the system's error, which those of the libraries wrap
    text = sanitize(" ".join(str(cause).split()))[:200].replace("; ", ", ")
    return f"{sanitize(url)}: got {problem} ({text}); expected the file: run the command again, it goes on where it was"


def _fail(status: int, message: str) -> int:
    print(f"galaxyhpc download: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
