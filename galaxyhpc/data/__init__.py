"""From a data file to batches on a device: conversion, memory-mapped dataset, split, augmentation, generated galaxies.

Corruptions of test images live in `evaluation`.
"""


class DataError(ValueError):
    """A file of galaxies, or a sweep's split, that cannot be used; the message is one line that names the file."""
