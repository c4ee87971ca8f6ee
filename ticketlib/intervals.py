"""How sure a figure is: a bootstrap that draws paraphrase groups, and Wilson's interval of a share.

Rewordings of one ticket are right or wrong together: ten of them tell little more than one.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm


def format_share(value: float, low: float | None = None, high: float | None = None) -> str:
    """A share in percent, `76.2 %`, or with an interval, `76.2 % (69.5 – 82.2)`.

    Args:
        value: 0 to 1.
        low: Lower end of its interval.
        high: Upper end.
    """
    interval = "" if low is None or high is None else f" ({100 * low:.1f} – {100 * high:.1f})"
    return f"{100 * value:.1f} %{interval}"


def encode_groups(groups: Sequence[int], n: int) -> np.ndarray:
    """Number of every row's group, from 0 in the order in which they come, [n].

    Args:
        groups: Paraphrase group of every row, [n], of any type.
        n: Number of rows.

    Raises:
        ValueError: If there is not one group for each of n rows, or one is missing.
    """
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(
            f"groups has shape {groups.shape}. Give one group for each of {n} tickets."
        )
    codes = pd.factorize(groups)[0]
    if (codes < 0).any():
        raise ValueError(
            f"{(codes < 0).sum()} of {n} tickets have no group. Give one for each, such as those "
            "of splits.group_paraphrases."
        )
    return codes


def draw_groups(groups: Sequence[int], n: int, *, seed: int, n_resamples: int = 1000) -> np.ndarray:
    """How often each of n rows occurs when as many groups as there are get drawn.

    Args:
        groups: Group of every row, [n].
        n: Number of rows.
        seed: Of the draws; with equal groups and seeds they are the same, so that two models can be
            compared draw by draw.
        n_resamples: Number of draws.

    Returns:
        Counts, [n_resamples, n].

    Raises:
        ValueError: If there is not one group for each of n rows, or one is missing.
    """
    codes = encode_groups(groups, n)
    n_groups = codes.max() + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)[:, codes]


def resample_scores(
    true: np.ndarray, predicted: np.ndarray, weights: np.ndarray, n_queues: int
) -> dict[str, np.ndarray]:
    """Scores of all draws at once, equal to scikit-learn's on the rows as often as drawn.

    Args:
        true: Column number of every true queue, [n].
        predicted: Column number of every predicted queue, [n].
        weights: What `draw_groups` gives, [n_resamples, n].
        n_queues: Number of queues.

    Returns:
        `accuracy`, `macro_f1` and `weighted_f1`, each [n_resamples].
    """
    weights = weights.astype(float)
    is_true, is_predicted = np.eye(n_queues)[true], np.eye(n_queues)[predicted]
    support, n_predicted = weights @ is_true, weights @ is_predicted  # [n_resamples, q]
    hits = weights @ (is_true * is_predicted)
    total = weights.sum(axis=1)
    occurs = support + n_predicted > 0
    f1 = 2 * hits / np.where(occurs, support + n_predicted, 1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "macro_f1": f1.sum(axis=1) / occurs.sum(axis=1),
        "weighted_f1": (f1 * support).sum(axis=1) / total,
    }


def middle_95(samples: np.ndarray) -> tuple[float, float]:
    """The two ends between which 95 % of the samples lie; samples that are NaN don't count."""
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(
    share: float | np.ndarray, n: float | np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of a share that was seen among n, also where all or none were seen.

    SciPy's `binomtest(...).proportion_ci(method="wilson")` for many shares at once, and for numbers
    that are not whole, as those of `count_effective` (Wilson, J. Am. Stat. Assoc. 22, 1927).

    Args:
        share: Shares, 0 to 1; NaN gives NaN.
        n: Of how many.
        confidence: How often the interval holds the true share; 0 gives the share itself.
    """
    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    z = norm.ppf((1 + confidence) / 2)
    half = z * np.sqrt(share * (1 - share) * n + z**2 / 4)
    middle, total = share * n + z**2 / 2, n + z**2
    return np.clip((middle - half) / total, 0, 1), np.clip((middle + half) / total, 0, 1)


def estimate_likeness(right: np.ndarray, groups: np.ndarray) -> float:
    """How alike the tickets of a group are in being right: 0 if by chance, 1 if always together.

    The correlation between two tickets of a group, as the mean over groups weighted by tickets
    (so that one huge group does not decide), within 0 and 1. Without two tickets of a group, or
    where all are right or all wrong, nothing is known and it is 1.

    Args:
        right: Whether each ticket is, [n].
        groups: Numbers of `encode_groups`, [n].
    """
    share = right.mean()
    sizes, hits = np.bincount(groups), np.bincount(groups, weights=right)
    several = sizes > 1
    if not several.any() or share in (0, 1):
        return 1.0
    sizes, hits = sizes[several], hits[several]
    own = hits * (1 - share) ** 2 + (sizes - hits) * share**2
    products = ((hits - share * sizes) ** 2 - own) / (sizes - 1)
    return float(np.clip(products.sum() / (share * (1 - share) * sizes.sum()), 0, 1))


def count_effective(groups: np.ndarray, *, likeness: float = 1) -> np.ndarray:
    """How many independent tickets the first 1, 2, ... n are worth, [n].

    Kish's effective number (Survey Sampling, 1965): the tickets' number if each is its own group or
    `likeness` is 0; 1 if all are one group and `likeness` is 1.

    Args:
        groups: Numbers of `encode_groups`, [n].
        likeness: What `estimate_likeness` gives.
    """
    before = pd.Series(groups).groupby(groups).cumcount().to_numpy()
    n = np.arange(1, len(groups) + 1)
    return n / (1 + (np.cumsum(2 * before + 1) / n - 1) * likeness)
