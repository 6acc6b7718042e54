"""Files are written atomically and durably."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from galaxyhpc.storage.files import atomic_write, sanitize, sha256, write_text


def test_a_file_that_fails_halfway_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as aside:
        aside.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["plan.csv"]


def test_a_file_is_replaced_by_a_new_one_so_that_a_link_to_it_keeps_the_old_content(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.csv", "old")
    os.link(tmp_path / "new" / "a.csv", tmp_path / "b.csv")
    write_text(tmp_path / "new" / "a.csv", "ü")
    assert ((tmp_path / "new" / "a.csv").read_bytes(), (tmp_path / "b.csv").read_text()) == ("ü".encode(), "old")


def test_two_threads_that_write_the_same_file_never_share_what_they_write(tmp_path: Path) -> None:
    both_opened = threading.Barrier(2)

    def write(letter: str) -> None:
        with atomic_write(tmp_path / "a.csv") as aside:
            aside.write_text(letter)
            both_opened.wait(60)
            assert aside.read_text() == letter

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, "xy"))
    assert (tmp_path / "a.csv").read_text() in "xy" and os.listdir(tmp_path) == ["a.csv"]


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    assert sha256(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


@pytest.mark.parametrize(
    ("text", "printable"),
    [("C4 é 漢", "C4 é 漢"), ("a\n\tb", "a\n\tb"), ("\x1b[2J\r", "?[2J?"), ("\ud800\x00\u202e", "???")],
)
def test_text_without_control_characters_and_surrogates_is_left_as_it_is(text: str, printable: str) -> None:
    assert sanitize(text) == printable
