"""Image sizes at which a network is exactly equivariant under quarter turns."""

from __future__ import annotations

_STUDY_ARCHITECTURES = ("steerable_cnn", "cnn")  # arXiv:2311.01500
_NUM_STRIDED_STAGES = {"e2wrn": 3, "e2resnet": 5}  # stages that halve the image


def is_exact_image_size(size: int, architecture: str = "steerable_cnn") -> bool:
    """Whether every stride-2 stage of an architecture samples symmetrically at this image size in px.

    A stage of stride 2 keeps the centre of a grid if it samples the first and the last point, so its input must be
    odd. e2wrn has 3 of them and e2resnet 5. The study's layout halves 64k-1 (padding 2) and 64k+1 px (padding 1)
    to 32k+1, keeps 33, and five pools follow. The other networks are not equivariant and take any size from 32 px;
    `cnn` follows the layout it is compared with.
    """
    if architecture in _STUDY_ARCHITECTURES:
        return size == 33 or (size > 33 and size % 64 in (1, 63))
    if architecture in _NUM_STRIDED_STAGES:
        return size >= 33 and size % 2 ** _NUM_STRIDED_STAGES[architecture] == 1
    return size >= 32


def find_nearest_image_sizes(size: int, architecture: str = "steerable_cnn") -> list[int]:
    """Return the nearest exact image sizes below and above `size`, in px."""
    exact = [s for s in range(max(32, size - 130), size + 130) if is_exact_image_size(s, architecture)]
    return [s for s in exact if s < size][-1:] + [s for s in exact if s > size][:1]
