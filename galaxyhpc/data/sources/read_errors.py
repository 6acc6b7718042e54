"""Why a file of galaxies cannot be read, and what helps: a message for each cause, from content and not from its name.

HDF5 reports a lock, a foreign file, a missing filter and damage alike, as an error of opening or reading.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import h5py

FIRST_BYTES = 4096  # read to recognise a file
DOWNLOAD_AGAIN = "download it again"
SIGNATURES = (  # bytes and their offset, what the file is, what helps
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file", ""),
    (b"\x89PNG", 0, "a PNG image", ""),
    (b"\xff\xd8\xff", 0, "a JPEG image", ""),
    (b"GIF8", 0, "a GIF image", ""),
    (b"II*\0", 0, "a TIFF image", ""),
    (b"MM\0*", 0, "a TIFF image", ""),
    (b"WEBP", 8, "a WebP image", ""),
    (b"SIMPLE  =", 0, "a FITS file", ""),
    (b"\x93NUMPY", 0, "a NumPy array", ""),
    (b"PAR1", 0, "a parquet file", ""),
    (b"%PDF", 0, "a PDF document", ""),
    (b"ustar", 257, "a tar archive", "unpack it with `tar -xf`"),
    (b"PK\x03\x04", 0, "a zip archive", "unpack it with `unzip`"),
    (b"\x1f\x8b", 0, "a gzip archive", "unpack it with `tar -xzf` or `gunzip`"),
    (b"BZh", 0, "a bzip2 archive", "unpack it with `tar -xjf` or `bunzip2`"),
    (b"\xfd7zXZ", 0, "an xz archive", "unpack it with `tar -xJf` or `unxz`"),
    (b"(\xb5/\xfd", 0, "a zstd archive", "unpack it with `unzstd`"),
    (b"version https://git-lfs", 0, "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
)
FILTER_NAMES = {4: "szip", 307: "bzip2", 32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle"}
FILTER_NAMES |= {32013: "ZFP", 32015: "Zstandard", 32026: "Blosc2"}  # registered with the HDF Group
SET_PLUGIN_PATH = "`export HDF5_PLUGIN_PATH=$(python -c 'import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)')`"

Cause = tuple[str, str]  # what was found, what helps


def explain_read_error(path: Path, error: Exception, file_type: str) -> str:
    """Return `got ...; expected ...` in one line, given the error of reading `path` as, for example, `an HDF5 file`."""
    cause = _explain_access(path, error) or _explain_content(path, file_type)
    if cause is None and "HDF5" in file_type:
        cause = _explain_hdf5_error(path, error)
    got, advice = cause or (f"a file cut off or damaged ({_format(error)})", DOWNLOAD_AGAIN)
    return f"got {got}; expected {file_type}" + (f": {advice}" if advice else "")


def _format(error: Exception) -> str:
    return " ".join(str(error).split()).replace("; ", ", ")[:200]


def _explain_access(path: Path, error: Exception) -> Cause | None:
    if "unable to lock file" in str(error):
        advice = "wait until it is closed; if nobody writes to it, set HDF5_USE_FILE_LOCKING=FALSE in the environment"
        return "a file that another process has locked, or that its file system cannot lock", advice
    if isinstance(error, PermissionError):
        return "no permission to read it", "ask its owner for `chmod a+r` on it and `chmod a+x` on its directories"
    if path.is_dir():
        return "a directory", f"name a file in it, such as {path}/NAME"
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which does not exist", ""
    if not path.exists():
        return "no such file", ""
    return None if path.is_file() else ("a pipe or device", "")


def _explain_content(path: Path, file_type: str) -> Cause | None:
    """Return what a file is if it is of no such type."""
    with path.open("rb") as file:
        head = file.read(FIRST_BYTES)
    if "HDF5" in file_type and h5py.is_hdf5(path):  # its signature may come after a block of the user's
        return None
    for signature, offset, name, advice in SIGNATURES:
        if head[offset:].startswith(signature):
            is_expected = name.split()[1] in file_type or (path.suffix == ".gz" and "gzip" in name)
            return None if is_expected else (name, advice)
    return _explain_text(head) or ("an unknown kind of file", "")


def _explain_text(head: bytes) -> Cause | None:
    """Return the cause for empty files, web pages and other text."""
    if not head.strip(b"\0"):
        return ("zeros, as of a download that was interrupted" if head else "an empty file"), DOWNLOAD_AGAIN
    text = " ".join(head.decode("utf-8", errors="replace").split())
    if re.match(r"(<!--.*?-->\s*)?<(!doctype html|html|head)", text, re.IGNORECASE):
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE)
        name = f"a web page ({title[1].strip()[:60]})" if title else "a web page"
        return name, "its server may ask for a login: download it again, in a browser or with your token"
    if "�" in text[:-1] or not text[:-1].isprintable():
        return None
    return f"text ({text[:40]}...)" if len(text) > 40 else f"text ({text})", ""


def _explain_hdf5_error(path: Path, error: Exception) -> Cause:
    """Return why HDF5 cannot open or read a file that is of HDF5's format."""
    message = _format(error)
    if size := re.search(r"eof = (\d+).*stored_eof = (\d+)", message):
        advice = "continue the download, with `curl -C - -O URL` or `wget -c URL`"
        return f"{int(size[1]):,} of its {int(size[2]):,} bytes", advice
    if "already open for write" in message:
        advice = f"wait until it is closed; if its writer was killed, run `h5clear -s {path}`"
        return "a file that a process writes to, or wrote to when it was killed", advice
    try:
        with h5py.File(path, "r", locking=False) as file:
            arrays = [item for item in map(file.get, file) if isinstance(item, h5py.Dataset)]
            cause = next(filter(None, (explain_array(array) for array in arrays)), None)
    except (OSError, RuntimeError, KeyError):
        cause = None
    return cause or (f"a damaged file ({message})", f"{DOWNLOAD_AGAIN}, and compare its checksum")


def explain_array(array: h5py.Dataset) -> Cause | None:
    """Return why an array that exists cannot be read: a missing filter, or values in other files."""
    name, pipeline = array.name.lstrip("/"), array.id.get_create_plist()
    for number in range(pipeline.get_nfilters()):
        code, _, _, description = pipeline.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            label = FILTER_NAMES.get(code) or description.decode(errors="replace") or "unknown"
            advice = f"`pip install hdf5plugin` and {SET_PLUGIN_PATH}, here and in resources.setup, or write the file "
            advice += "with gzip where it can be read (h5repack -f GZIP=4 OLD NEW)"
            place = os.environ.get("HDF5_PLUGIN_PATH", "its own directory")
            return f"{name} compressed with filter {code} ({label}), which HDF5 does not find in {place}", advice
    if missing := find_missing_parts(array):
        return f"{name} with values in other files, of which {missing[0]} cannot be opened", "put them where it is"
    return None


def find_missing_parts(array: h5py.Dataset) -> list[str]:
    """Return the files that hold values of an array, as external or virtual data, and do not exist.

    HDF5 reads missing virtual data as zeros, without an error.
    """
    names = [name for name, _, _ in array.external or ()]
    if array.is_virtual:
        names += [source.file_name for source in array.virtual_sources() if source.file_name != "."]
    if not names:  # as of nearly all, of which there may be 10^5
        return []
    here = Path(array.file.filename).parent
    return [name for name in dict.fromkeys(names) if "%" not in name and not (here / name).exists()]


def describe_missing_array(file: h5py.File, name: str) -> str:
    """Say what stands in the place of an array that cannot be opened."""
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path} in {link.filename}, which cannot be opened"
    if isinstance(link, h5py.SoftLink):
        return f"a link to {link.path}, which does not exist"
    if isinstance(file.get(name), h5py.Group):
        return "a group"
    return f"no such array among {', '.join(file) or 'none'}"
