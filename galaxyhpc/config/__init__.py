"""What a sweep asks for: settings of a run (RunConfig), the YAML grammar of a sweep, presets, groups and conditions.

Reads and checks text; every mistake stops here. Knows nothing of run directories, devices or torch.
"""
