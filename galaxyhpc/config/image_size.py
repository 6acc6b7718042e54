"""Image sizes that a network samples symmetrically, so that quarter turns lose nothing."""

from __future__ import annotations

STUDY_ARCHITECTURES = ("steerable_cnn", "cnn")  # the study's
NUM_STRIDED_STAGES = {"e2wrn": 3, "e2resnet": 5}  # stages that halve the image


def is_exact_image_size(size: int, architecture: str = "steerable_cnn") -> bool:
    """Whether every stride-2 stage of an architecture samples symmetrically at this image size in px (SCIENCE.md 4).

    A stage of stride 2 keeps a grid's centre where it takes the first and the last point, so that its input must be
    odd. e2wrn has 3 of them and e2resnet 5. The study's layout halves 64k-1 (padding 2) and 64k+1 px (padding 1)
    to 32k+1, keeps 33, and five pools follow. Networks without a claim take any size.
    """
    if architecture in STUDY_ARCHITECTURES:
        return size == 33 or (size > 33 and size % 64 in (1, 63))
    if architecture in NUM_STRIDED_STAGES:
        return size >= 33 and size % 2 ** NUM_STRIDED_STAGES[architecture] == 1
    return size >= 32


def find_nearest_image_sizes(size: int, architecture: str = "steerable_cnn") -> list[int]:
    """Return the good image sizes on both sides of `size`, in px."""
    good = [s for s in range(max(32, size - 130), size + 130) if is_exact_image_size(s, architecture)]
    return [s for s in good if s < size][-1:] + [s for s in good if s > size][:1]
