"""What tickets tell before any model: fields left empty, telling words, labels that look wrong."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from ticketlib.neighbors import find_neighbors, tfidf_vectors
from ticketlib.report import text_key
from ticketlib.tickets import check_tickets

_MIN_TICKETS = 5  # A word in fewer tells of one customer, not of a queue.


def missing_fields(tickets: pd.DataFrame) -> pd.DataFrame:
    """How many of a queue's tickets come without subject or language.

    Args:
        tickets: Frame with `subject`, `queue` and `language`.

    Returns:
        A row for each queue (index `queue`), the largest first: the share of its tickets, 0 to 1,
        whose `subject` and whose `language` is empty, and the number of its `tickets`.

    Raises:
        ValueError: If a column is missing or holds what it must not.
    """
    columns = ["subject", "language"]
    check_tickets(tickets, ("queue", *columns))
    counts = tickets["queue"].value_counts()
    shares = (tickets[columns] == "").groupby(tickets["queue"]).mean()
    return shares.loc[counts.index].assign(tickets=counts)


def telling_words(tickets: pd.DataFrame, *, n_words: int = 8) -> pd.DataFrame:
    """The words of each queue that set it apart from all others.

    The score is the correlation, over all tickets, of holding the word and being in the queue
    (phi). Its square times the number of tickets is chi-squared, so both give one order, but phi
    does not grow with the number of tickets.

    Args:
        tickets: Frame with `subject`, `body` and `queue`.
        n_words: Most words for a queue.

    Returns:
        A row for each word, by queue (the largest first) and score: `queue`, `word` (in lower
        case), `score` (0 to 1), `share` of the queue's tickets that hold it (0 to 1), and
        `elsewhere`, that share of all other tickets. Only words that are more frequent in the
        queue than elsewhere, stand in at least five tickets and have a letter.

    Raises:
        ValueError: If a column is missing or holds what it must not.
    """
    check_tickets(tickets, ("subject", "body", "queue"))
    texts = tickets["subject"] + "\n" + tickets["body"]
    counter = CountVectorizer(binary=True, token_pattern=r"\w\w+", dtype=np.int32)
    present = counter.fit_transform([*texts, "without_any_word_it_raises"])[:-1]
    sizes = tickets["queue"].value_counts()
    # Queues by words stays sparse: of thousands of queues, most have most words not once.
    held = (_one_hot(sizes.index.get_indexer(tickets["queue"])).T @ present).tocoo()
    in_queue, has_word = (
        numbers.astype(float)
        for numbers in (sizes.to_numpy()[held.row], np.bincount(held.col, held.data)[held.col])
    )
    others, elsewhere = len(tickets) - in_queue, has_word - held.data
    lead = held.data * others - elsewhere * in_queue
    words = counter.get_feature_names_out()
    has_letter = np.array([any(map(str.isalpha, word)) for word in words])
    kept = (lead > 0) & (has_word >= _MIN_TICKETS) & has_letter[held.col]
    spread = in_queue * others * has_word * (len(tickets) - has_word)
    table = pd.DataFrame({"row": held.row, "word": words[held.col]})[kept].assign(
        score=lead[kept] / np.sqrt(spread[kept]),
        share=held.data[kept] / in_queue[kept],
        elsewhere=elsewhere[kept] / others[kept],
    )
    table = table.sort_values(["row", "score", "word"], ascending=[True, False, True])
    table = table.groupby("row").head(n_words).reset_index(drop=True)
    table.insert(0, "queue", sizes.index.to_numpy()[table.pop("row")])
    return table


def find_label_noise(
    tickets: pd.DataFrame, *, k: int = 10, min_cosine: float = 0.25
) -> pd.DataFrame:
    """Tickets whose label looks wrong: those in similar words mostly have one other queue.

    A list to read, not to delete by: where two queues overlap, both sides turn up. Copies of a
    text are neighbors too; where there are more than fit into `k`, each counts in part.

    Measured on generated tickets, 6 % of which have a wrong label: among 2,400, it finds half of
    these, and 53 to 60 % of what it finds has one, of the first 50 at least 90 %; among 28,587,
    nine of ten, 73 % and all. A `k` of 5 is worse, and 20 no better. On 1,872 of the Kaggle
    tickets it finds 46; 48 % of the pairs with a cosine of 0.25 to 0.3 share their queue, but just
    34 % of those below, and 17 % of chance pairs.

    Args:
        tickets: Frame with `ticket_id`, `subject`, `body` and `queue`.
        k: Most neighbors of a ticket, the nearest.
        min_cosine: Smallest cosine of a neighbor (TF-IDF over words and pairs of words).

    Returns:
        A row for each ticket with at least two neighbors, of whose cosines more than half belong
        to one other queue: `ticket_id`, `queue`, `suggested` (that queue), its `share` of the
        cosines (0 to 1), number of `neighbors`, and `nearest_id` and `nearest_cosine` of the
        nearest in that queue. The first have the most cosines for it, less those against.

    Raises:
        ValueError: If a column is missing or holds what it must not, if `k` is less than 2 or
            `min_cosine` is not above 0 and at most 1.
    """
    if k < 2 or not 0 < min_cosine <= 1:
        raise ValueError(
            f"k is {k} and min_cosine {min_cosine}; give at least 2 neighbors and a cosine above "
            "0, at most 1, such as 10 and 0.25."
        )
    check_tickets(tickets, ("ticket_id", "subject", "body", "queue"))
    codes, texts = pd.factorize(text_key(tickets))
    labels, names = pd.factorize(tickets["queue"])
    links = _link_texts(texts, np.bincount(codes), k, min_cosine)
    weights = csr_matrix((links["weight"], (links["text"], links["other"])), shape=[len(texts)] * 2)
    votes = (weights @ (_one_hot(codes).T @ _one_hot(labels)))[codes]
    # No ticket has a vote on itself.
    votes = (votes - _one_hot(labels).multiply(weights.diagonal()[codes][:, None])).tocoo()
    total = np.asarray(votes.sum(axis=1)).ravel()
    used = links.groupby("text")["used"].sum().reindex(range(len(texts)), fill_value=0)[codes]
    looks_wrong = votes.data > total[votes.row] / 2
    looks_wrong &= (votes.col != labels[votes.row]) & (used.to_numpy()[votes.row] >= 2)
    row, weight = votes.row[looks_wrong], votes.data[looks_wrong]
    ids = tickets["ticket_id"].to_numpy()
    found = pd.DataFrame(
        {
            "ticket_id": ids[row],
            "queue": names[labels[row]],
            "suggested": names[votes.col[looks_wrong]],
            "share": np.minimum(weight / total[row], 1),
            "neighbors": used.to_numpy()[row],
            "text": codes[row],
            "row": row,
            "lead": 2 * weight - total[row],
        }
    )
    nearest = pd.DataFrame({"other": codes, "suggested": names[labels], "nearest_id": ids})
    nearest = nearest.drop_duplicates(["other", "suggested"])
    links = links.rename(columns={"cosine": "nearest_cosine"})[["text", "other", "nearest_cosine"]]
    found = found.merge(links, on="text").merge(nearest, on=["other", "suggested"])
    found = found.sort_values("nearest_cosine", ascending=False, kind="stable")
    found = found.drop_duplicates("row").sort_values(["lead", "row"], ascending=[False, True])
    columns = "ticket_id queue suggested share neighbors nearest_id nearest_cosine".split()
    return found[columns].reset_index(drop=True)


def _link_texts(texts: pd.Index, sizes: np.ndarray, k: int, min_cosine: float) -> pd.DataFrame:
    """For each text, those with its k nearest tickets: how many are `used`, the `weight` of each.

    The text itself comes first, with one ticket less. Where not all tickets of a text fit, all
    count, but in part.
    """
    near, cosines = find_neighbors(tfidf_vectors(texts), threshold=min_cosine, most=k)
    own = np.arange(len(texts))
    text, other = np.hstack([[own, own], near])
    cosines = np.hstack([np.ones(len(texts)), np.minimum(cosines, 1)])
    links = pd.DataFrame({"text": text, "other": other, "cosine": cosines})
    links["size"] = sizes[other] - (text == other)
    links = links.sort_values("text", kind="stable")
    before = links.groupby("text")["size"].cumsum() - links["size"]
    links["used"] = (k - before).clip(0, links["size"])
    links = links[links["used"] > 0]
    return links.assign(weight=links["cosine"] * links["used"] / links["size"])


def _one_hot(codes: np.ndarray) -> csr_matrix:
    """Rows with a 1 in the column of their code."""
    ones, rows = np.ones(len(codes), dtype=np.int32), np.arange(len(codes))
    return csr_matrix((ones, (rows, codes)), shape=(len(codes), codes.max(initial=-1) + 1))
