"""What a sweep asks for: settings of a run (RunConfig), the YAML grammar of a sweep, presets, groups and conditions.

Reads and checks text; every mistake stops here. Knows nothing of run directories, devices or torch.
"""

MAX_RUNS = 10_000  # of a sweep; beyond, 8 hexadecimal digits no longer tell all runs apart: 1 % by then
