"""Train 8 steps in this process, in two, and in a Slurm job; called by test_batch.py.

usage: batch_training.py FOLDER     on PATH are the commands of slurm_standin.py, made for FOLDER
"""

import json
import os
import sys
from pathlib import Path

from random_gptoss import save
from small_training import PROFILE, import_proved, prepare

SLURM = "account=support partition=gpu time=04:00:00"
JOB = {"executor": "slurm", "slurm": SLURM}
PLACES = {"one": {}, "two": {"devices": 2}, "failed": JOB, "job": JOB}


def train(folder: Path, name: str, devices: int = 1, **place) -> dict:
    from ticketlib import executors, training
    from ticketlib.logs import quiet

    run, base = prepare(folder, name), folder / "models" / "base"
    settings = {"prompt_format": "plain", "micro_batch_size": 4, "seed": 5}
    found = {}
    os.environ["SRUN_FAILS"] = "1" if name == "failed" else ""
    with quiet(run.log):
        recipe = training.make_recipe(run, PROFILE, base, devices=devices, **settings)
        if name == "job":
            found["script"] = executors.sbatch_script(run, recipe, slurm=place["slurm"])
        try:
            found["best"] = training.run_recipe(run, recipe, seed=5, **place).name
            found["losses"] = training.read_history(run)["train_loss"].tolist()
        except RuntimeError as error:
            found["error"] = str(error)
    return found


def main(folder: Path) -> None:
    import_proved(save(folder / "hf"), folder / "models" / "base")
    found = {name: train(folder, name, **place) for name, place in PLACES.items()}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
