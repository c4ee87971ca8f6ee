"""Tickets in similar words: TF-IDF vectors, and for each ticket those that are nearest to it."""

import os
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from sparse_dot_topn import sp_matmul_topn


def tfidf_vectors(texts: Sequence[str]) -> csr_matrix:
    """TF-IDF over words and pairs of words, sublinear counts, rows of length 1.

    Args:
        texts: Texts, [n].

    Returns:
        Vectors, [n, features], float32; no features where no text has a letter or digit.
    """
    if not any(character.isalnum() for text in texts for character in text):
        return csr_matrix((len(texts), 0), dtype=np.float32)
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+", dtype=np.float32
    ).fit_transform(texts)


def find_neighbors(
    vectors: csr_matrix, *, threshold: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest others of each row; time and memory stay modest for a million rows.

    Comparing all rows costs the sum of squares of the features' frequencies. So all are compared
    by the features that are in at most a fiftieth of the rows (at least 100, at most 1,000 rows),
    which tell most. Families of rows that share little but frequent features, such as the mails
    of a monitor, are found by comparing each row in all features with some rows of all kinds:
    2,000, or one in 200.

    Args:
        vectors: Rows of length 1, [n, features].
        threshold: Smallest cosine of a neighbor, from 0 to 1.
        most: Neighbors kept for each row, the nearest, in either comparison.

    Returns:
        Row and neighbor of each pair, [2, pairs], ordered by row and then by cosine, the nearest
        first; and the cosines, [pairs], the larger of the two. Most pairs are there both ways.
    """
    n = vectors.shape[0]
    frequency = np.bincount(vectors.indices, minlength=vectors.shape[1])
    is_rare = frequency <= min(max(100, n // 50), 1000)
    rare = vectors if is_rare.all() else normalize(vectors[:, np.flatnonzero(is_rare)])
    near = _multiply(rare, rare, threshold, most)
    if not is_rare.all():
        # Evenly from an order in which similar rows stand together, in whatever order they came.
        order = np.argsort(vectors @ np.random.default_rng(0).random(vectors.shape[1]))
        pivots = order[np.linspace(0, n - 1, min(n, max(2000, n // 200))).astype(int)]
        found = _multiply(vectors, vectors[pivots], threshold, most)
        columns = pivots[found.indices]
        near = near.maximum(csr_matrix((found.data, columns, found.indptr), shape=(n, n)))
    near = near.tocoo()
    others = near.row != near.col
    row, column, cosine = near.row[others], near.col[others], near.data[others]
    order = np.lexsort((-cosine, row))
    return np.stack([row[order], column[order]]), cosine[order]


def _multiply(rows: csr_matrix, others: csr_matrix, threshold: float, most: int) -> csr_matrix:
    """The largest cosines of each row with the others; each row may find itself, too."""
    return sp_matmul_topn(
        rows, others.T.tocsr(), top_n=most + 1, threshold=threshold, n_threads=os.cpu_count()
    )
