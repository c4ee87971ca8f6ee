"""What a run was trained with, and whether a training may go on with the settings of now."""

import hashlib
import json
from pathlib import Path

import fiddle
import nemo_run
from fiddle.printing import as_dict_flattened
from lightning.pytorch.callbacks import EarlyStopping

from ticketlib.paths import Run, read_training_settings, write_json

# In a folder of its own, since NeMo moves the files that it finds beside its logs
RECIPE_FILE = Path("recipe") / "recipe.json"
# Where a run lies and how it logs, not what it computes
PLACES = ("log.", "resume.", "data.dataset_root", "model.config.hf_folder")


def describe_recipe(recipe: nemo_run.Partial) -> dict[str, str | int | float]:
    """The settings by which runs are compared, and an interrupted one is known again.

    Args:
        recipe: Of `make_recipe`.
    """
    peft, callbacks = recipe.peft, recipe.trainer.callbacks
    early = [each for each in callbacks if fiddle.get_callable(each) is EarlyStopping]
    packed = recipe.data.packed_sequence_specs
    return {
        "base": Path(recipe.resume.restore_config.path).name,
        "peft_scheme": "lora" if peft else "none",
        "lora_rank": peft.dim if peft else 0,
        "lora_targets": " ".join(peft.target_modules) if peft else "",
        "max_steps": recipe.trainer.max_steps,
        "val_check_interval": recipe.trainer.val_check_interval,
        "patience": early[0].patience if early else 0,
        "learning_rate": recipe.optim.config.lr,
        "micro_batch_size": recipe.data.micro_batch_size,
        "global_batch_size": recipe.data.global_batch_size,
        "seq_length": recipe.data.seq_length,
        "pack_tokens": packed.packed_sequence_size if packed else 0,
        "dtype": str(recipe.model.config.params_dtype).removeprefix("torch."),
        "devices": recipe.trainer.devices,
        "seed": recipe.data.seed,
    }


def hash_data(run: Run) -> dict[str, str]:
    """Tell other data by the SHA-256 of its files, 16 of its digits."""
    return {
        f"{path.stem}_data": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (run.training_jsonl, run.validation_jsonl)
    }


def flatten_recipe(recipe: nemo_run.Partial) -> dict[str, str]:
    """Every setting of a recipe by its dotted name, as text, but for where files lie."""
    flat = as_dict_flattened(recipe)
    return {name: str(value) for name, value in flat.items() if not name.startswith(PLACES)}


def save_settings(run: Run, settings: dict, recipe: nemo_run.Partial) -> None:
    """Keep what `refuse_changes` compares with, from the start of a training.

    Args:
        run: Its `training_settings` are written.
        settings: What `training.run_recipe` compares.
        recipe: Of `training.make_recipe`.
    """
    write_json(run.training_settings, settings)
    write_json(run.training / RECIPE_FILE, flatten_recipe(recipe))


def refuse_changes(run: Run, settings: dict, recipe: nemo_run.Partial) -> None:
    """Raise if a run was begun with other settings; each that differs is named with both values.

    Args:
        run: With checkpoints to go on from.
        settings: What `run.training_settings` would hold now.
        recipe: Compared setting by setting, since readers may edit it.

    Raises:
        ValueError: One or more differ.
    """
    now = flatten_recipe(recipe)
    before = json.loads((run.training / RECIPE_FILE).read_text("utf-8"))
    changes = _differences(read_training_settings(run), settings) or _differences(before, now)
    if changes:
        raise ValueError(
            f"{'; '.join(changes)}. Give another run_name, or set restart = True to remove the "
            "earlier training."
        )


def _differences(before: dict, now: dict) -> list[str]:
    return [
        f"{name.removesuffix('_data')}.jsonl is not the one that training began with"
        if name.endswith("_data")
        else f"{name} was {before.get(name, 'not set')} and is {now.get(name, 'not set')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
