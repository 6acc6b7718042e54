"""Configuration: settings of a run (RunConfig), the YAML grammar of a sweep, presets, groups and conditions.

Reads and checks text, so that no invalid setting leaves this package. Knows nothing of run directories, devices or
torch.
"""

MAX_RUNS = (
    10_000  # of a sweep; at this number two runs share the 8 hexadecimal digits of their ids with probability 1 %
)
