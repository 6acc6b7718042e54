"""The download of the published galaxies, from a real server that breaks off, lies, and changes its mind."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from galaxyhpc import download
from galaxyhpc.__main__ import main as run_verb
from galaxyhpc.launch import __main__ as launch

CONTENT = download.HDF5_SIGNATURE + bytes(range(256)) * 12000  # 3 MB
MEGABYTE = 15 * download.CHUNK_BYTES  # less than 3 of them are the file
NAME = "Galaxy10_DECals.h5"
LOGIN = b"<!DOCTYPE html><html><title>Log in</title>" + b" " * 5000


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.answer` says, and remembers the ranges that were asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.answer(self)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.answer: Callable[[Handler], None] = serve
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def handle_error(self, *arguments: object) -> None:
        """Say nothing of a client that has heard enough."""


def serve(
    handler: Handler,
    content: bytes = CONTENT,
    tag: str = '"1"',
    num_bytes: int | None = None,
    *,
    with_ranges: bool = True,
) -> None:
    """Send the file, from where it was asked for if it is the same, and break off after `num_bytes`."""
    asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", "")) if with_ranges else None
    start = int(asked[1]) if asked and handler.headers.get("If-Range", tag) == tag else 0
    if start >= len(content):
        reply(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
        return
    fields = {"ETag": tag, "Content-Length": str(len(content) - start)}
    if start:
        fields["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    reply(handler, 206 if start else 200, content[start:][:num_bytes], fields)


def reply(handler: Handler, status: int, body: bytes, fields: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | (fields or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    digest = hashlib.sha256(CONTENT).hexdigest()
    with Server() as running:
        monkeypatch.setitem(download.FILES, "galaxy10", download.PublishedFile(NAME, running.url, digest))
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(directory: Path, *arguments: str) -> int:
    return download.main(["galaxy10", "--to", str(directory), *arguments])


def get_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error, which is one line behind the one that says what is downloaded."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("downloading "))
    return line.removeprefix("galaxyhpc download: ")


def list_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_the_file_appears_verified_and_readable_and_the_next_step_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get(tmp_path / "new") == 0
    assert list_files(tmp_path / "new") == [NAME] and (tmp_path / "new" / NAME).read_bytes() == CONTENT
    assert not (tmp_path / "new" / NAME).is_symlink()
    assert (tmp_path / "new" / NAME).stat().st_mode & 0o777 == 0o666 & ~get_umask()
    output = capsys.readouterr()
    done, following = output.out.splitlines()
    assert done == f"{tmp_path / 'new' / NAME}: downloaded, its SHA-256 is the published one"
    assert following.startswith(f"next: export GALAXY10_H5={tmp_path / 'new' / NAME}; galaxyhpc launch sweeps/")
    assert output.err.splitlines() == [f"downloading {server.url}"]


def get_umask() -> int:
    return int(subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True, check=True).stdout, 8)


def test_the_hash_is_the_published_one_and_the_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The hash of astroNN 1.1.0, `astroNN/datasets/galaxy10.py`, and of its documentation."""
    assert download.FILES["galaxy10"].sha256 == "19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571"
    assert run_verb(["--help"]) == 0
    data = capsys.readouterr().out.partition("\ndata:\n")[2].partition("\n\n")[0]
    assert "  download  " in data


def test_a_file_that_is_there_is_verified_without_the_server_and_another_is_never_replaced(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert get(tmp_path) == 0 and "already there" in capsys.readouterr().out
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert get(tmp_path) == 2
    assert re.match(rf"{tmp_path / NAME}: got another file \(SHA-256 .*; expected .*--to", get_line(capsys))
    assert (tmp_path / NAME).read_bytes() == CONTENT[:-1]
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to("/nowhere/galaxies.h5")
    assert get(tmp_path) == 2 and "no file" in get_line(capsys)
    assert server.ranges == [] and list_files(tmp_path) == [NAME]


def test_a_server_that_breaks_off_is_asked_for_the_rest_while_bytes_come(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: serve(handler, num_bytes=MEGABYTE)
    assert get(tmp_path) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges == [None, *(f"bytes={number * MEGABYTE}-" for number in (1, 2, 3))]


def stop_after(server: Server, num_bytes: int) -> None:
    """Break off the first answer, and be unavailable then."""

    def answer(handler: Handler) -> None:
        serve(handler, num_bytes=num_bytes) if len(server.ranges) == 1 else reply(handler, 503, b"")

    server.answer = answer


def test_the_same_command_goes_on_where_it_was(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(server, 2 * MEGABYTE)
    assert get(tmp_path) == 1
    assert "got HTTP 503 (Service Unavailable); expected the file" in get_line(capsys)
    assert not (tmp_path / NAME).exists()
    server.answer = serve
    assert get(tmp_path) == 0
    assert server.ranges[2:] == [f"bytes={2 * MEGABYTE}-"] and (tmp_path / NAME).read_bytes() == CONTENT
    assert list_files(tmp_path) == [NAME]


@pytest.mark.parametrize("change", ["another file", "no ranges"])
def test_where_the_rest_cannot_be_had_it_begins_anew(change: str, server: Server, tmp_path: Path) -> None:
    stop_after(server, 2 * MEGABYTE)
    server.ranges, first = [], bytes(reversed(CONTENT))
    first = download.HDF5_SIGNATURE + first[8:]
    if change == "another file":
        server.answer = lambda handler: (
            serve(handler, first, '"0"', MEGABYTE) if len(server.ranges) == 1 else reply(handler, 503, b"")
        )
    assert get(tmp_path) == 1
    server.answer = lambda handler: serve(handler, with_ranges=change == "another file")
    assert get(tmp_path) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT and len(server.ranges) == 3


LIES = {
    "another content": (
        lambda h: serve(h, CONTENT[:-1] + b"x"),
        r"got 3,072,008 bytes of SHA-256 \w{12}\.\.\.; expected",
    ),
    "a shorter file": (lambda h: serve(h, CONTENT[:5000]), "got 5,000 bytes of SHA-256"),
    "a page of a login": (lambda h: reply(h, 200, LOGIN), r"got a web page \(Log in\); expected an HDF5 file"),
    "a short page": (lambda h: reply(h, 200, b"<html>no"), "got a web page; expected an HDF5 file"),
    "nothing": (lambda h: reply(h, 200, b""), "got 0 bytes of SHA-256"),
    "not found": (lambda h: reply(h, 404, LOGIN), r"got HTTP 404 \(Not Found\); expected the file"),
    "an error": (lambda h: reply(h, 500, b""), r"got HTTP 500 \(Internal Server Error\)"),
    "always too far": (lambda h: reply(h, 416, b""), "got HTTP 416"),
    "a circle": (lambda h: reply(h, 302, b"", {"Location": f"/{NAME}"}), "got TooManyRedirects"),
    "no HTTP": (lambda h: h.wfile.write(b"220 ftp ready\r\n"), "got ConnectionError"),
    "no bytes": (lambda h: serve(h, num_bytes=0), "got .*Error"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_lies_is_told_in_one_line_and_leaves_nothing(
    name: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer, message = LIES[name]
    assert get(tmp_path) == 1
    assert re.search(rf"^{server.url}: {message}", get_line(capsys))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 10]
    server.answer = serve
    assert get(tmp_path) == 0 and list_files(tmp_path) == [NAME]


def test_a_login_behind_a_redirection_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda h: reply(h, 302, b"", {"Location": "/login"}) if NAME in h.path else reply(h, 200, LOGIN)
    assert get(tmp_path) == 1
    line = get_line(capsys)
    assert "/login: got a web page (Log in); expected" in line and "ask for a login" in line
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("position", [1, 2 * MEGABYTE - 1])
def test_a_rest_from_another_place_is_refused(
    position: int, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(server, 2 * MEGABYTE)
    assert get(tmp_path) == 1
    capsys.readouterr()
    fields = {"Content-Range": f"bytes {position}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"1"'}
    server.answer = lambda handler: reply(handler, 206, CONTENT[position:], fields)
    assert get(tmp_path) == 1 and "does not continue what was downloaded" in get_line(capsys)
    assert list_files(tmp_path) == []


def test_a_rest_of_another_version_is_refused_where_a_server_ignores_the_condition(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(server, 2 * MEGABYTE)
    assert get(tmp_path) == 1
    capsys.readouterr()
    fields = {"Content-Range": f"bytes {2 * MEGABYTE}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"2"'}
    server.answer = lambda handler: reply(handler, 206, CONTENT[2 * MEGABYTE :], fields)
    assert get(tmp_path) == 1 and "expected the same file" in get_line(capsys)
    assert list_files(tmp_path) == []


def test_a_silent_server_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", (0.2, 0.2))
    done = threading.Event()
    server.answer = lambda handler: done.wait(20)
    assert get(tmp_path) == 1
    done.set()
    assert "got no answer in time" in get_line(capsys) and list_files(tmp_path) == []


def test_where_nobody_answers_and_what_no_address_is_are_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get(tmp_path, "--mirror", "http://127.0.0.1:1/x.h5") == 1
    assert re.match(r"http://127.0.0.1:1/x.h5: got ConnectionError \(.*refused\); expected the file", get_line(capsys))
    for url in ("galaxies.h5", "ftp://127.0.0.1/galaxies.h5", "http://"):
        assert get(tmp_path, "--mirror", url) == 2
        assert get_line(capsys).startswith(f"--mirror: got {url}; expected an address")
    assert list_files(tmp_path) == []


def test_a_disk_without_space_is_noticed_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(CONTENT) - 1))
    assert get(tmp_path) == 2
    assert "got 3,072,007 free bytes; expected 3,072,008" in get_line(capsys)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 10]


def test_a_target_that_cannot_be_written_is_told_in_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert get(tmp_path / "file") == 2
    assert "Not a directory" in get_line(capsys)


def test_two_at_a_time_do_not_write_the_same_file(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[int] = []

    def answer(handler: Handler) -> None:
        if not answers:
            answers.append(get(tmp_path))
        serve(handler)

    server.answer = answer
    assert get(tmp_path) == 0 and answers == [2]
    assert "another download" in get_line(capsys) and (tmp_path / NAME).read_bytes() == CONTENT


def test_a_kill_during_the_hash_loses_nothing(server: Server, tmp_path: Path) -> None:
    """A process that dies as soon as everything has arrived."""
    code = f"""
import os, pooch, sys
from galaxyhpc import download
import pooch.core
pooch.core.hash_matches = lambda *arguments, **settings: os._exit(9)
download.main(["galaxy10", "--to", {str(tmp_path)!r}, "--mirror", {server.url!r}])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 9
    assert not (tmp_path / NAME).exists()
    assert get(tmp_path) == 0
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"] and list_files(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.slow
def test_a_launch_without_the_file_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GALAXY10_H5", str(tmp_path / NAME))
    sweep = tmp_path / "one.yaml"
    sweep.write_text("base: {data.source: '${GALAXY10_H5}'}\nblocks: [{points: [{model.preset: CNN}]}]\n")
    assert launch.main([str(sweep), "--executor", "local", "--runs", str(tmp_path / "runs")]) == 2
    assert "`galaxyhpc download galaxy10`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
