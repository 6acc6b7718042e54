"""Check whether a launch would work here: `galaxyhpc doctor [--profile slurm/gpu.yaml]`.

One line for each thing that is needed, with a remedy: Python and its packages, GPUs, compiler, caches, the file system
of the runs, locale, Slurm. With --profile, sbatch is asked about these resources as by a launch. Run it where you
launch, and in a job for what the nodes have: `srun galaxyhpc doctor`. Exit status 1: a launch would fail.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from galaxyhpc.doctor import Finding, file_system, machine, slurm_checks
from galaxyhpc.storage.files import sanitize

MAX_WIDTH = 80
INDENT = 25  # of the text


def find_all(runs_dir: Path, profile: Path | None) -> Iterator[Finding]:
    """Yield the findings of all checks, one by one."""
    for check in machine.CHECKS:
        yield from _guard(check.__name__, lambda check=check: [check()])
    yield from _guard("file system", lambda: file_system.check_directory(runs_dir))
    for slurm_check in slurm_checks.CHECKS:
        yield from _guard("Slurm", lambda check=slurm_check: check(runs_dir, profile))


def _guard(name: str, check: object) -> Iterator[Finding]:
    try:
        yield from check()  # type: ignore[operator]
    except Exception as error:  # a broken installation may raise anything
        yield Finding("fails", name, f"{type(error).__name__}: {error}")


def format_finding(finding: Finding) -> str:
    """Return the lines of a finding, at most as wide as the terminal."""
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
    head = f"{finding.verdict:8}{finding.name:{INDENT - 8}}"
    paragraphs = [finding.text, f"-> {finding.remedy}"] if finding.remedy else [finding.text]
    lines = [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(sanitize(" ".join(paragraph.split())), max(20, width - INDENT))
    ]
    return head + f"\n{' ' * INDENT}".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if a launch would fail."""
    parser = argparse.ArgumentParser(prog="galaxyhpc doctor", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of all sweeps (default: runs)")
    parser.add_argument("--profile", type=Path, help="resource settings of a cluster, such as slurm/gpu.yaml")
    options = parser.parse_args(arguments)
    counts = {"ok": 0, "warning": 0, "fails": 0}
    try:
        for finding in find_all(options.runs, options.profile):
            counts[finding.verdict] += 1
            print(format_finding(finding), flush=True)
    except KeyboardInterrupt:
        return 130
    verdict = "a launch would fail here" if counts["fails"] else "a launch would work here"
    print(f"{verdict}: {counts['ok']} ok, {counts['warning']} warnings, {counts['fails']} failures")
    return 1 if counts["fails"] else 0


if __name__ == "__main__":
    sys.exit(main())
