"""A file system that lacks something: a library, preloaded, in which flock and fsync of directories fail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
int flock(int descriptor, int operation) { errno = %d; return -1; }
int fsync(int descriptor) {
    struct stat state;
    if (fstat(descriptor, &state) == 0 && S_ISDIR(state.st_mode)) { errno = EINVAL; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(descriptor);
}
"""


def make_environment(folder: Path, error_number: int) -> dict[str, str]:
    """Return an environment in which flock fails with this errno, and fsync of a directory with EINVAL."""
    (folder / "no_flock.c").write_text(SOURCE % error_number)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "no_flock.so", folder / "no_flock.c"], check=True)
    return os.environ | {"LD_PRELOAD": str(folder / "no_flock.so")}
