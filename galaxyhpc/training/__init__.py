"""One training: the loop, its resumable state, optimizer and schedule, EMA, validation.

Networks come from `models`, batches from `data`; signals, locks and requeues live in `runtime.job`.
"""
