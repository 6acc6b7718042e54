"""The output of a process, whoever reads it; and freed memory stays in the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = "from galaxyhpc.runtime.process import start_command; start_command(); "

PROGRAM = """
import ctypes, torch
from galaxyhpc.runtime.process import keep_heap
if {keep}:
    keep_heap()
blocks = [torch.ones(1 << 20) for _ in range(20)]  # 4 MiB each
del blocks
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):  # of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in names]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
print(library.mallinfo2().fordblks >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_freed_stays_with_the_process() -> None:
    free = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]  # MiB
    assert free[1] > 75 > free[0]


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command, environment = [sys.executable, "-c", START + code], {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= options.pop("environment", {})  # type: ignore[call-overload]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, timeout=60, **options)  # type: ignore


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_a_sign_that_the_output_does_not_have_is_replaced(variables: dict[str, str]) -> None:
    code = r"import rich; print('30\u00b0 \u2020'); rich.print('\u2020 \udce4'); print('done')"
    answer = run_python(code, environment=variables, stdout=subprocess.PIPE)
    degree = b"?" if variables["PYTHONIOENCODING"] == "ascii" else b"\xb0"
    assert answer.stdout == b"30%s ?\n? ?\ndone\n" % degree and (answer.returncode, answer.stderr) == (0, b"")


def test_a_locale_without_letters_of_other_languages_hinders_no_file(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = r"import pathlib, sys; pathlib.Path('\u00e4').write_text('\u2020'); print(sys.getfilesystemencoding())"
    answer = run_python(code, environment=locale, stdout=subprocess.PIPE, cwd=tmp_path)
    assert answer.stdout == b"utf-8\n" and (tmp_path / "\u00e4").read_text("utf-8") == "\u2020"


def test_a_reader_that_leaves_stops_no_work(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "print('x' * 10**6, flush=True); print('y'); open('done', 'w').write('all'); sys.exit(3)"
    answer = run_python("import sys; " + code, stdout=writing, cwd=tmp_path)
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (3, b"") and (tmp_path / "done").exists()


def test_a_full_disk_of_the_log_stops_no_work_and_is_reported_once(tmp_path: Path) -> None:
    code = "print('x' * 10**6, flush=True); print('y', flush=True); open('done', 'w').write('all')"
    with open("/dev/full", "wb") as full:
        answer = run_python(code, stdout=full, cwd=tmp_path)
    assert answer.stderr == b"standard output: No space left on device; the rest is not shown\n"
    assert answer.returncode == 0 and (tmp_path / "done").exists()


def test_a_closed_output_is_not_taken_by_a_file(tmp_path: Path) -> None:
    code = "import sys; file = open('file', 'w'); print('lost'); sys.stdout.flush(); print(file.fileno(), file=file)"
    command = f'exec {sys.executable} -c "{START}{code}" <&- >&- 2>&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2
