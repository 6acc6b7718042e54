"""Embeddings of features in two dimensions: Isomap and t-SNE of scikit-learn, and UMAP if umap-learn is installed.

Seeds are fixed: the same features give the same embedding.
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
UMAP_MISSING_MESSAGE = "UMAP skipped: pip install umap-learn"


def isomap(features: Array) -> Array:
    """Embed (n, d) features in (n, 2), preserving geodesic distances (Tenenbaum et al. 2000, Science 290, 2319)."""
    from sklearn.manifold import Isomap

    embedded: Array = Isomap(n_neighbors=find_num_neighbours(features), n_components=2).fit_transform(features)
    return embedded


def tsne(features: Array) -> Array:
    """Embed (n, d) features in (n, 2), preserving neighbours (van der Maaten and Hinton 2008, JMLR 9, 2579)."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    embedded: Array = TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features)
    return embedded.astype(np.float64)


def umap(features: Array) -> Array:
    """Embed (n, d) features in (n, 2), preserving neighbours (McInnes et al. 2018, arXiv:1802.03426)."""
    from umap import UMAP

    num_neighbours = min(15, len(features) - 1)
    embedded: Array = UMAP(n_neighbors=num_neighbours, random_state=SEED, n_jobs=1).fit_transform(features)
    return embedded.astype(np.float64)


METHODS: dict[str, Callable[[Array], Array]] = {"isomap": isomap, "t-SNE": tsne, "UMAP": umap}


def get_available_methods() -> list[str]:
    """Return the names of the installed methods."""
    return [name for name in METHODS if name != "UMAP" or find_spec("umap") is not None]


def find_num_neighbours(features: Array) -> int:
    """Return the smallest multiple of NEIGHBOUR_STEP whose neighbour graph of (n, d) features is connected."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    max_neighbours = len(features) - 1
    for num_neighbours in range(NEIGHBOUR_STEP, max_neighbours, NEIGHBOUR_STEP):
        graph = kneighbors_graph(features, num_neighbours)
        if connected_components(graph, directed=False, return_labels=False) == 1:
            return num_neighbours
    return max_neighbours
