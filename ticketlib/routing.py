"""A ticket's queue from an exported run: all that an application needs."""

import json
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from ticketlib import scoring
from ticketlib.calibration import apply_temperature
from ticketlib.paths import Run, read_settings, require
from ticketlib.prompts import render_answer
from ticketlib.rendering import fit_prompt


class Decision(NamedTuple):
    """Where a ticket goes.

    Attributes:
        queue: The most probable queue.
        probability: Its probability after temperature scaling, 0 to 1.
        hand_off: Whether a person should decide, the probability being below the threshold.
        table: All queues with their probabilities, the most probable first.
    """

    queue: str
    probability: float
    hand_off: bool
    table: pd.DataFrame


def load_router(run: Run, *, device: str = "") -> Callable[..., Decision]:
    """The function `route(body, subject="")`, which gives a `Decision` for a ticket.

    It renders and cuts the prompt as for training, scores every queue with the exported model,
    and takes temperature and threshold from `metrics.json`.

    Args:
        run: A run that notebook 04 has exported and evaluated.
        device: As for `scoring.load_model`.

    Raises:
        FileNotFoundError: If the run has not been exported or evaluated.
    """
    settings = read_settings(run)
    path = require(run.metrics, made_by="04_evaluate_and_export.ipynb", run_name=run.run_name)
    metrics = json.loads(path.read_text("utf-8"))
    temperature, threshold = metrics["calibrated.temperature"], metrics["handoff.threshold"]
    model, tokenizer = scoring.load_model(run.exported, device=device)
    fit = settings["prompt"] | {"tokenizer": tokenizer, "seq_length": settings["seq_length"]}
    queues, prompt_format = fit["queues"], fit["prompt_format"]
    answers = [render_answer(queue, prompt_format=prompt_format) for queue in queues]

    def route(body: str, subject: str = "") -> Decision:
        """Where the ticket goes."""
        prompt, _ = fit_prompt(subject, body, **fit)
        log_probs = scoring.score_labels(model, tokenizer, [prompt], answers)
        probabilities = scoring.label_probabilities(log_probs)
        calibrated = apply_temperature(probabilities, temperature)[0]
        table = pd.DataFrame({"queue": queues, "probability": calibrated})
        table = table.sort_values("probability", ascending=False, kind="stable", ignore_index=True)
        queue, probability = table.iloc[0]
        return Decision(queue, float(probability), bool(probability < threshold), table)

    return route
