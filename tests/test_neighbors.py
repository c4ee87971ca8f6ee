"""Neighbors are those that scikit-learn finds, the nearest first, and no more than asked for."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ticketlib.neighbors import find_neighbors, tfidf_vectors


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(60)])
    return [" ".join(np.sort(random.choice(words, 9))) for _ in range(200)]


def test_all_above_the_threshold_are_found_with_their_cosine(texts):
    vectors = tfidf_vectors(texts)
    assert np.bincount(vectors.indices).max() <= 100
    cosines = (vectors @ vectors.T).toarray()
    np.testing.assert_allclose(cosines.diagonal(), 1, rtol=1e-5)
    np.fill_diagonal(cosines, 0)
    pairs, found = find_neighbors(vectors, threshold=0.2, most=len(texts))
    assert set(zip(*pairs.tolist(), strict=True)) == set(
        zip(*np.nonzero(cosines > 0.2), strict=True)
    )
    np.testing.assert_allclose(found, cosines[pairs[0], pairs[1]], rtol=1e-5)


def test_the_nearest_come_first_and_no_more_than_asked(texts):
    vectors = tfidf_vectors(texts)
    pairs, cosines = find_neighbors(vectors, threshold=0.0, most=3)
    expected, _ = NearestNeighbors(n_neighbors=3, metric="cosine").fit(vectors).kneighbors()
    assert (np.bincount(pairs[0]) == 3).all()
    np.testing.assert_allclose(cosines.reshape(-1, 3), 1 - expected, atol=1e-5)


def test_the_order_of_rows_does_not_matter(texts):
    # So many that some words are frequent; the rows that all are compared with are drawn.
    many = [f"{text} {i % 7}" for i, text in enumerate(texts * 15)]
    order = np.random.default_rng(1).permutation(len(many))
    vectors = tfidf_vectors(many)
    pairs, cosines = find_neighbors(vectors, threshold=0.5, most=5000)
    again, same = find_neighbors(tfidf_vectors([many[i] for i in order]), threshold=0.5, most=5000)
    assert set(zip(*pairs.tolist(), strict=True)) == set(zip(*order[again].tolist(), strict=True))
    np.testing.assert_allclose(np.sort(cosines), np.sort(same), rtol=1e-5)


def test_frequent_features_are_compared_with_some_rows_of_all_kinds():
    kinds = ["one two three"] * 400 + ["four five six"] * 400
    families = [f"{kind} thing{i}" for i, kind in enumerate(kinds)]
    vectors = tfidf_vectors(families + [f"single{i}" for i in range(4000)])
    pairs, _ = find_neighbors(vectors, threshold=0.2, most=30)
    assert set(pairs[0].tolist()) == set(range(800))
    assert (pairs[0] // 400 == pairs[1] // 400).all()


@pytest.mark.parametrize("texts", [["?", "!"], [""], []])
def test_texts_without_words_have_no_neighbors(texts):
    vectors = tfidf_vectors(texts)
    assert vectors.shape == (len(texts), 0)
    pairs, cosines = find_neighbors(vectors, threshold=0.1, most=5)
    assert pairs.shape == (2, 0) and cosines.shape == (0,)
