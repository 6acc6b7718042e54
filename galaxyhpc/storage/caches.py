"""Where caches lie: in the user's own directory if it can be written, else in a private temporary one.

A cache saves time and holds nothing else, so a missing one is never an error. The home directory may be missing (a
container's user without an entry in passwd), read-only or full.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

# what each library calls its own directory; the others obey XDG_CACHE_HOME
LIBRARY_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "NUMBA_CACHE_DIR": "numba",
}
PRIVATE_PREFIX = "galaxyhpc-user-"
USER_NAME_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass.getuser looks before passwd


def find_cache_home() -> Path:
    """Return the directory that holds the caches of all programs; writing into it may still fail."""
    return _choose_cache_home(os.environ.get("XDG_CACHE_HOME", ""), find_home())


def has_private_cache() -> bool:
    """Whether caches lie in a private temporary directory, because the user's own cannot be written."""
    return find_cache_home().name.startswith(PRIVATE_PREFIX)


def find_home() -> Path | None:
    """Return the home directory; None without one."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


@lru_cache
def _choose_cache_home(xdg_cache_home: str, home: Path | None) -> Path:
    if os.path.isabs(xdg_cache_home):  # a relative path is to be ignored, says the standard
        preferred, needed = Path(xdg_cache_home), None
    elif home is not None:
        preferred, needed = home / ".cache", home
    else:
        return _find_private_directory()
    is_possible = needed is None or os.path.isdir(needed)  # a home is not ours to create
    return preferred if is_possible and _can_hold_files(preferred) else _find_private_directory()


def _can_hold_files(directory: Path) -> bool:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(4096))  # fails on a full disk
        return True
    except OSError:
        return False


def _find_private_directory() -> Path:
    """Return a directory that only this user can write: libraries are loaded from it."""
    try:
        path = Path(tempfile.gettempdir()) / f"{PRIVATE_PREFIX}{os.getuid()}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        return path if is_ours else Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX))
    except OSError:
        return Path(os.devnull)  # nothing can be written below it


def redirect_caches() -> None:
    """Give every library a directory for its cache, in this process and those that it starts.

    A working home directory is left as it is; a missing one is replaced, or `~` would become a directory of that name.
    """
    home, cache_home = find_home(), find_cache_home()
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        if not os.path.isabs(os.environ.get(name, "/")):
            del os.environ[name]
    if cache_home != Path(os.environ.get("XDG_CACHE_HOME", f"{home}/.cache")):
        os.environ["XDG_CACHE_HOME"] = str(cache_home)
        for name, directory in LIBRARY_CACHES.items():
            os.environ.setdefault(name, str(cache_home / directory))
    if home is None:
        os.environ["HOME"] = str(cache_home)
    if not any(map(os.environ.get, USER_NAME_VARIABLES)) and not _is_in_passwd():
        os.environ["USER"] = str(os.getuid())  # getpass.getuser, which names torch's directories, would raise


def _is_in_passwd() -> bool:
    try:
        return bool(pwd.getpwuid(os.getuid()))
    except KeyError:
        return False
