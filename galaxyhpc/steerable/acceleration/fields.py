"""Channels grouped by the kind of their field, for modules that treat fields of different sizes apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def escape(name: str) -> str:
    """Return the name of a representation without points, which no module's or parameter's name may have."""
    return name.replace(".", "^")


def list_channels(representations: Sequence[Any], labels: Sequence[Any]) -> dict[Any, list[int]]:
    """Return the channels of the fields of each label, in the order in which the labels appear."""
    channels: dict[Any, list[int]] = {label: [] for label in labels}
    begin = 0
    for label, representation in zip(labels, representations, strict=True):
        channels[label] += range(begin, begin + representation.size)
        begin += representation.size
    return channels


class FieldSplit(nn.Module):
    """Splits maps of fields with labels into maps of one label, (N, fields, size, H, W), and joins them again."""

    order: Tensor | None  # of the channels by label, unless they lie so
    inverse: Tensor | None
    inverse_fields: Tensor | None

    def __init__(self, field_type: Any, labels: Sequence[Any]) -> None:
        super().__init__()
        channels_by_label = list_channels(field_type.representations, labels)
        sizes = [representation.size for representation in field_type.representations]
        self.labels = list(channels_by_label)
        self.fields = {label: [i for i, other in enumerate(labels) if other == label] for label in self.labels}
        self.sizes = [sizes[self.fields[label][0]] for label in self.labels]
        channels = list(chain.from_iterable(channels_by_label.values()))
        is_sorted = channels == sorted(channels)
        order = None if is_sorted else torch.tensor(channels)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", None if order is None else order.argsort(), persistent=False)
        fields = [i for label in self.labels for i in self.fields[label]]
        inverse_fields = None if fields == sorted(fields) else torch.tensor(fields).argsort()
        self.register_buffer("inverse_fields", inverse_fields, persistent=False)

    def split(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> (N, fields, size, H, W) of each label."""
        if self.order is not None:
            x = x.index_select(1, self.order)
        widths = [len(self.fields[label]) * size for label, size in zip(self.labels, self.sizes, strict=True)]
        parts = x.split(widths, 1) if len(widths) > 1 else (x,)
        return [part.unflatten(1, (-1, size)) for part, size in zip(parts, self.sizes, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, fields, size, H, W) of each label -> (N, C, H, W)."""
        maps = [part.flatten(1, 2) for part in parts]
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        return x if self.inverse is None else x.index_select(1, self.inverse)

    def join_fields(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, fields, H, W) of each label, one value a field -> (N, all fields, H, W)."""
        x = parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
        return x if self.inverse_fields is None else x.index_select(1, self.inverse_fields)


def split_by_size(field_type: Any) -> FieldSplit:
    """Split fields by their number of channels."""
    return FieldSplit(field_type, [representation.size for representation in field_type.representations])
