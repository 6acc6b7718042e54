"""`galaxyhpc VERB ...` and `python -m galaxyhpc VERB ...`: the same as `python -m galaxyhpc.VERB ...`."""

from __future__ import annotations

import difflib
import runpy
import sys

from galaxyhpc import __version__
from galaxyhpc.runtime.process import start_command

VERBS = {
    "sweeps": {
        "launch": "train and evaluate all runs of a sweep, on Slurm or on this machine; rerun it to resume",
        "status": "show the state of every run",
        "cancel": "cancel all runs of a sweep, or some",
        "retry": "retry failed runs by failure type",
        "train": "train one run in this process",
        "evaluate": "evaluate one run, or every trained run of a sweep, in this process",
        "aggregate": "write the report of a sweep",
    },
    "models": {
        "export": "write a trained network as PyTorch and ONNX files",
        "predict": "classify galaxies with a trained network",
        "inspect": "show the features and class activations of trained networks",
    },
    "data": {
        "explore": "write a page about a file of galaxies",
        "download": "download and verify the published galaxies; jobs never download",
        "demo": "write a file of generated galaxies",
    },
    "checks": {
        "doctor": "check whether a launch would work here",
        "fsck": "verify every file of a sweep's runs",
        "verify_resume": "kill and resume a short copy of a run, and compare all bits",
        "benchmark": "measure how fast this machine trains and evaluates",
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command of a verb, which gets all arguments behind it; 2 if there is no such verb."""
    if arguments is None:
        start_command()
    verb, *verb_arguments = (sys.argv[1:] if arguments is None else arguments) or [""]
    names = [name for group in VERBS.values() for name in group]
    if verb in names:
        sys.argv[1:] = verb_arguments
        runpy.run_module(f"galaxyhpc.{verb}", run_name="__main__", alter_sys=True)
        return 0
    if verb in ("", "-h", "--help"):
        print(_format_help())
        return 0 if verb else 2
    if verb == "--version":
        print(f"galaxyhpc {__version__}")
        return 0
    close_matches = difflib.get_close_matches(verb, names, 1)
    hint = f"did you mean {close_matches[0]}?" if close_matches else "`galaxyhpc --help` lists the verbs"
    print(f"galaxyhpc: unknown verb {verb!r}; {hint}", file=sys.stderr)
    return 2


def _format_help() -> str:
    lines = ["usage: galaxyhpc VERB ...    (galaxyhpc VERB --help explains a verb)"]
    for group, verbs in VERBS.items():
        lines += ["", f"{group}:", *(f"  {verb:15}{text}" for verb, text in verbs.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
