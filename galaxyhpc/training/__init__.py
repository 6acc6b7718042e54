"""One training: the loop, its resumable state, optimizer and schedule, EMA, validation.

Networks come from `models`, batches from `data`; what a job does around a training lives in `runtime.job`.
"""
