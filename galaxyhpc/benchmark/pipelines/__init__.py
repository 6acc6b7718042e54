"""Pipelines that are measured from the bytes of images on: batches of a training, and predictions of a survey.

The networks alone are timed in `benchmark.timing`.
"""
