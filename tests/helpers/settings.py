"""Settings read from text, with their errors."""

from __future__ import annotations

from typing import Any

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.settings import Settings, build_run_config, flatten_settings, merge
from galaxyhpc.config.sweep_file import SettingsFile, validate_file
from galaxyhpc.config.yaml_loader import ConfigError, Entry, SourceLocation, format_errors, read_yaml

POINT = SourceLocation("x.yaml", 99)


class SettingsReader:
    """Reads and checks settings as the base of the file `x.yaml`."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    @property
    def errors(self) -> list[str]:
        return list(format_errors(self.found))

    def read(self, text: str) -> Settings:
        entry, errors = read_yaml(text, SourceLocation("x.yaml", 1))
        assert entry is not None
        self.found += [*errors, *validate_file(SettingsFile, Entry({"base": entry}, entry.location))]
        return flatten_settings(entry)

    def build(self, *texts: str) -> RunConfig | None:
        config, errors = build_run_config(merge(*map(self.read, texts)), POINT, seed=3)
        self.found += errors
        return config


def to_python(settings: Settings) -> dict[str, Any]:
    return {key: entry.to_python() for key, entry in settings.items()}
