"""The model card of an exported folder: the README.md that the Hugging Face hub shows.

All in it comes from the run's own files, and of paths only the last part: cards get published.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ticketlib import comparison, handoff, prompts, splits
from ticketlib.intervals import format_share
from ticketlib.paths import (
    Run,
    project_root,
    read_settings,
    read_training_settings,
    replace_atomically,
    require,
    resolve,
)
from ticketlib.profiles import get_profile, name_base
from ticketlib.template import TEMPLATE_FILE
from ticketlib.tickets import KAGGLE_FILE

BODY = Path(__file__).with_name("card.md")
MODELS = {
    "majority": "Largest queue",
    "untuned": "Untuned model",
    "tfidf": "TF-IDF with logistic regression",
    "tuned": "Tuned model",
    "mxfp4": "Tuned model, experts in MXFP4",
}
# The forms of `parity.prove_export`: those that must agree, then those for comparison.
FORMS = {
    "merged": "Adapter, merged in NeMo's memory",
    "exported": "Export, in transformers",
    "imported_again": "Export, read back into NeMo",
    "peft": "Adapter, put on the base by PEFT",
    "base": "For comparison: the base",
    "mxfp4": "For comparison: export with experts in 4 bits",
}
RIVALS = {"majority": "the largest queue", "untuned": "the untuned model", "tfidf": "TF-IDF"}
EXAMPLE = ("App", "The app closes by itself as soon as I open the camera.")


def write_card(run: Run, folder: Path, *, base: str | Path = "") -> Path:
    """Write the model card of an exported folder, and again once the run has been evaluated.

    Args:
        run: Read for data, training, proof and figures. Figures older than the folder's weights
            are another model's and left out.
        folder: Full weights, MXFP4 weights or an adapter in PEFT's format; the card says which.
        base: Folder or repository of the base; default is the profile's.

    Returns:
        `folder / "README.md"`.

    Raises:
        FileNotFoundError: Notebook 02 or 03 has not run.
    """
    folder = Path(folder)
    settings, training = read_settings(run), read_training_settings(run)
    path = require(run.tickets, made_by="02_prepare_jsonl.ipynb", run_name=run.run_name)
    tickets = pd.read_parquet(path, columns=["queue", "split", "language"])
    metrics = _read_metrics(run, folder)
    file = Path(settings["tickets_csv"]).name
    base = name_base(base or get_profile(training["profile"]).base)
    is_adapter, is_mxfp4 = (folder / "adapter_config.json").exists(), _is_mxfp4(folder)
    data = ModelCardData(
        license="apache-2.0",
        base_model=base,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        language=_languages(tickets) or None,
        tags=["gpt_oss", "ticket-routing", "nemo"],
        model_name=run.run_name,
        eval_results=_eval_results(metrics, "mxfp4" if is_mxfp4 else "tuned", file) or None,
    )
    kind = "full weights, the experts in MXFP4" if is_mxfp4 else "full weights"
    body = jinja2.Template(BODY.read_text("utf-8"), trim_blocks=True, lstrip_blocks=True).render(
        card_data=data.to_yaml(),
        run_name=run.run_name,
        base=base,
        kind="a LoRA adapter in PEFT's format" if is_adapter else kind,
        is_adapter=is_adapter,
        is_full=not (is_adapter or is_mxfp4),
        file=file,
        data_license=_license(settings["tickets_csv"]),
        seed=settings["seed"],
        is_grouped=settings.get("paraphrase_threshold", 0) > 0,
        seq_length=settings["seq_length"],
        n_tickets=len(tickets),
        counts=_count_tickets(tickets, settings["prompt"]["queues"]),
        training=_without_folders(training),
        **_describe_prompt(**settings["prompt"]),
        **_describe_results(metrics),
        **_describe_proof(run),
    )
    with replace_atomically(folder / "README.md") as temporary:
        ModelCard(body).save(temporary)
    return folder / "README.md"


def tabulate_proof(proof: Mapping[str, Mapping]) -> pd.DataFrame:
    """The forms of the model and how far their logits are from those of the trained one.

    Args:
        proof: Of `parity.prove_export`.
    """
    rows = [
        (
            label,
            f"{proof[form]['max_difference']:.2g}",
            f"{proof[form]['mean_difference']:.2g}",
            format_share(proof[form]["same_argmax"]),
        )
        for form, label in FORMS.items()
        if form in proof
    ]
    columns = ["Form", "Largest difference", "Mean difference", "Same next token"]
    return pd.DataFrame(rows, columns=columns)


def state_proof(proof: Mapping[str, Mapping]) -> str:
    """What was compared for `tabulate_proof`, and which weights changed, in two sentences.

    Args:
        proof: Of `parity.prove_export`.
    """
    how, weights = proof["how"], proof["weights"]
    return (
        f"Compared are the logits of {how['texts']} test prompts of up to {how['longest']:,} "
        f"tokens, in {how['dtype']}, with {how['layers']} of {how['of_layers']} layers; where "
        f"forms have to agree, {how['tolerance']:g} is accepted. Of {weights['targeted']} weights "
        f"that were trained, {weights['changed']} changed; {weights['equal']:,} others are the "
        "base's, bit for bit."
    )


def state_never_predicted(counts: Mapping[str, int]) -> str:
    """A sentence that names the queues to which the model sends no test ticket.

    Args:
        counts: Test tickets of each such queue.
    """
    if not counts:
        return "Each queue is predicted for at least one test ticket."
    names = ", ".join(f"{queue} ({n:,} test tickets)" for queue, n in counts.items())
    return f"Never predicted, so that all tickets of theirs go elsewhere: {names}."


def _is_mxfp4(folder: Path) -> bool:
    path = folder / "config.json"
    return path.exists() and "quantization_config" in json.loads(path.read_text("utf-8"))


def _languages(tickets: pd.DataFrame) -> list[str]:
    """The languages that are ISO 639 codes; the hub takes no others."""
    found = tickets["language"].dropna().astype(str).str.lower().unique()
    return sorted(language for language in found if re.fullmatch("[a-z]{2,3}", language))


def _read_metrics(run: Run, folder: Path) -> dict:
    weights = [file.stat().st_mtime_ns for file in folder.glob("*.safetensors")]
    if not run.metrics.exists() or run.metrics.stat().st_mtime_ns < max(weights, default=0):
        return {}
    return json.loads(run.metrics.read_text("utf-8"))


def _eval_results(metrics: Mapping, model: str, file: str) -> list[EvalResult]:
    names = {"accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro-F1")}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Ticket routing",
            dataset_type=file,
            dataset_name=file,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=metrics[f"{model}.{figure}"],
        )
        for figure, (kind, name) in names.items()
        if f"{model}.{figure}" in metrics
    ]


def _count_tickets(tickets: pd.DataFrame, queues: list[str]) -> dict[str, list[int]]:
    """Tickets of each queue, and of all, in each split."""
    table = pd.crosstab(tickets["queue"], tickets["split"])
    table = table.reindex(index=queues, columns=splits.SPLITS, fill_value=0)
    return {**table.T.to_dict("list"), "All": table.sum().tolist()}


def _without_folders(training: Mapping) -> dict:
    return {
        name: Path(value).name if str(value).startswith(("/", "~")) else value
        for name, value in training.items()
    }


def _describe_prompt(queues: list[str], prompt_format: str) -> dict:
    style = {"queues": queues, "prompt_format": prompt_format}
    return {
        "repr": repr,
        "prompt_format": prompt_format,
        "example": EXAMPLE,
        "instructions": prompts.render_instructions(queues).split("\n"),
        "plain": prompts.PLAIN,
        "prompt": prompts.render_prompt(*EXAMPLE, **style),
        "answer": prompts.render_answer(queues[0], prompt_format=prompt_format),
        "template_file": TEMPLATE_FILE,
    }


def _describe_results(metrics: Mapping) -> dict:
    """Rows of figures and sentences; nothing where there are no figures."""
    if not metrics:
        return {}

    def under(name: str) -> dict:
        return {key.removeprefix(name): metrics[key] for key in metrics if key.startswith(name)}

    def show(figure: str) -> str:
        return format_share(*(metrics[f"{figure}{end}"] for end in ("", "_low", "_high")))

    routed = under("handoff.")
    chosen = {name: routed.pop(name) for name in ("threshold", "target_accuracy")}
    return {
        "metrics": metrics,
        "rows": [
            (label, show(f"{name}.accuracy"), show(f"{name}.macro_f1"))
            for name, label in MODELS.items()
            if f"{name}.accuracy" in metrics
        ],
        "verdicts": [
            comparison.state_verdict(
                under(f"tuned_vs_{name}."), model="The tuned model", baseline=baseline
            )
            for name, baseline in RIVALS.items()
        ],
        "routed": handoff.state_handoff(routed, **chosen),
        "never_predicted": state_never_predicted(under("never_predicted.")),
    }


def _describe_proof(run: Run) -> dict:
    """What was compared, and a row for each form, of `run.proof`."""
    if not run.proof.exists():
        return {}
    proof = json.loads(run.proof.read_text("utf-8"))
    table = tabulate_proof(proof)
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return {"how_proved": state_proof(proof), "proof": rows}


def _license(tickets_csv: str) -> str:
    if Path(tickets_csv).name == KAGGLE_FILE:
        return (
            "The tickets are Kaggle's *multilingual customer support tickets*, CC BY-NC 4.0 "
            "according to their card on Hugging Face: not for commercial use."
        )
    if resolve(tickets_csv) == project_root() / "data" / "tickets.csv":
        return "The tickets are made up, CC0 1.0."
    return (
        "The tickets have a license of their own and may hold personal data, of which training "
        "leaves traces in the weights: whoever passes them on answers for that."
    )
