"""From a data file to batches on a device: conversion, memory-mapped dataset, split, augmentation, generated galaxies.

Corruptions of test images live in `evaluation`.
"""
