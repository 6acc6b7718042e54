"""Features of many dimensions laid out in two: isomap, t-SNE, and UMAP where it is installed.

All are scikit-learn's (UMAP: umap-learn's), with fixed seeds, so that the same features give the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SEED = 0
PERPLEXITY = 30.0
NEIGHBOUR_STEP = 10
UMAP_MISSING_MESSAGE = "UMAP is left out: pip install umap-learn"


def isomap(features: Array) -> Array:
    """Lay out (n, d) features so that distances along the cloud of galaxies are kept (Tenenbaum et al. 2000)."""
    from sklearn.manifold import Isomap

    placed: Array = Isomap(n_neighbors=find_num_neighbours(features), n_components=2).fit_transform(features)
    return placed


def tsne(features: Array) -> Array:
    """Lay out (n, d) features so that near galaxies stay near (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    placed: Array = TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features)
    return placed.astype(np.float64)


def umap(features: Array) -> Array:
    """Lay out (n, d) features so that near galaxies stay near (McInnes et al. 2018, arXiv:1802.03426)."""
    import umap as umap_learn

    neighbours = min(15, len(features) - 1)
    placed: Array = umap_learn.UMAP(n_neighbors=neighbours, random_state=SEED, n_jobs=1).fit_transform(features)
    return placed.astype(np.float64)


METHODS: dict[str, Callable[[Array], Array]] = {"isomap": isomap, "t-SNE": tsne, "UMAP": umap}


def get_available_methods() -> list[str]:
    """Return the methods that can be used here."""
    return [name for name in METHODS if name != "UMAP" or find_spec("umap") is not None]


def find_num_neighbours(features: Array) -> int:
    """Return the fewest neighbours, NEIGHBOURS or a multiple, that leave the graph of (n, d) features in one piece."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    most = len(features) - 1
    for count in range(NEIGHBOUR_STEP, most, NEIGHBOUR_STEP):
        if connected_components(kneighbors_graph(features, count), directed=False, return_labels=False) == 1:
            return count
    return most
