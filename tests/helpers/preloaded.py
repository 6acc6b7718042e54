"""Imported once by the server of `warm_processes`; e2cnn is left out, which most processes do without."""

import torchvision_operators.sitecustomize  # noqa: F401

import galaxyhpc.launch.__main__
import galaxyhpc.report.build
import jobs.evaluate
import jobs.train  # noqa: F401
