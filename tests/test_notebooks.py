"""The notebooks run headless from CSV to model, tell what is missing, and keep their form.

The whole series runs once on the shipped tickets and tiny model, as a reader would run it, and the
tests read the files that it left: a routing model that beats its baselines by the promised margin.
"""

import ast
import json
import shutil
import subprocess
import sys
import time

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import import_script
from documents import run_code
from notebook_runner import NAMES, ROOT, execute
from papermill.exceptions import PapermillExecutionError
from planted import find_planted
from server_contract import find_faults

from ticketlib.checksums import verify_checksums
from ticketlib.metrics import write_metrics
from ticketlib.paths import Run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED_PARAMETERS = {"run_name", "profile", "seed", "experiments_dir"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run = Run("demo", str(tmp_path_factory.mktemp("experiments")))
    for name in NAMES:
        execute(name, run)
    return run


@pytest.fixture(scope="module")
def figures(demo):
    return json.loads(demo.metrics.read_text("utf-8"))


@pytest.mark.notebook
def test_tuned_model_routes_and_the_untuned_knows_nothing_of_it(figures):
    assert figures["tuned.accuracy"] >= 0.70
    assert figures["tuned.accuracy"] - figures["majority.accuracy"] >= 0.40
    assert figures["untuned.accuracy"] <= 0.35
    assert 0.70 <= figures["tfidf.accuracy"] <= 0.88


@pytest.mark.notebook
def test_all_models_are_judged_on_the_same_test_tickets(demo, figures):
    predictions = pd.read_parquet(demo.predictions)
    tickets = pd.read_parquet(demo.tickets)
    test = set(tickets.loc[tickets["split"] == "test", "ticket_id"])
    names = {"majority", "untuned", "tfidf", "tuned", "mxfp4", "calibrated"}
    assert set(predictions["model"]) == names
    for model, rows in predictions.groupby("model"):
        assert set(rows["ticket_id"]) == test
        assert figures[f"{model}.n"] == len(rows) == len(test)
        shares = rows.filter(like="probability: ")
        assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
        first = shares.idxmax(axis=1).str.removeprefix("probability: ")
        assert (first == rows["predicted"]).all()
        assert figures[f"{model}.accuracy"] == pytest.approx((first == rows["queue"]).mean())
    assert not tickets.groupby("group")["split"].nunique().gt(1).any()


@pytest.mark.notebook
def test_the_figures_say_what_a_sceptic_asks(demo, figures):
    assert figures["calibrated.log_loss"] < figures["tuned.log_loss"] + 0.05
    assert figures["tuned_vs_majority.outcome"] == "better"
    assert figures["generated.agreement"] > 0.9 and figures["generated.exact"] > 90
    assert figures["settings.lora_rank"] > 0 and figures["test_split"].endswith("-240")
    # The threshold was chosen on validation tickets, and does on the test's what is stated.
    predictions = pd.read_parquet(demo.predictions).query("model == 'calibrated'")
    sure = predictions.filter(like="probability: ").max(axis=1) >= figures["handoff.threshold"]
    right = (predictions["predicted"] == predictions["queue"])[sure]
    assert figures["handoff.routed"] == sure.sum() > 50
    assert figures["handoff.accuracy"] == pytest.approx(right.mean())
    tuned = pd.read_parquet(demo.predictions).query("model == 'tuned'")
    unused = {key for key in figures if key.startswith("never_predicted.")}
    missed = set(tuned["queue"]) - set(tuned["predicted"])
    assert unused == {f"never_predicted.{queue}" for queue in missed}


@pytest.mark.notebook
def test_the_function_of_the_last_cells_decides_as_the_figures_do(demo, figures):
    from ticketlib.routing import load_router

    route = load_router(demo)
    tickets = pd.read_parquet(demo.tickets).query("split == 'test'").head(8)
    predictions = pd.read_parquet(demo.predictions).query("model == 'calibrated'")
    for _, ticket in tickets.iterrows():
        decision = route(ticket["body"], ticket["subject"])
        row = predictions[predictions["ticket_id"] == ticket["ticket_id"]].iloc[0]
        assert decision.queue == row["predicted"] == decision.table["queue"].iloc[0]
        expected = row[f"probability: {decision.queue}"]
        assert decision.probability == pytest.approx(expected, abs=1e-4)
        assert decision.hand_off == (decision.probability < figures["handoff.threshold"])


@pytest.mark.notebook
def test_the_report_is_for_those_who_do_not_read_code(demo):
    from ticketlib.publish import write_report

    executed = demo.notebooks / "04_evaluate_and_export.ipynb"
    html = write_report(executed, demo.report_html).read_text("utf-8")
    assert "The tuned model beats the largest queue" in html and "routed automatically" in html
    order = ("Date: ", ">Verdict<", "The tuned model beats", "routed automatically", "Score every")
    assert (places := [html.index(text) for text in order]) == sorted(places)
    for absent in ("Export full weights", "read_answer", "tickets a second", "target_accuracy"):
        assert absent not in html
    assert "import pandas" not in html and html.count("data:image/png") >= 6


@pytest.mark.notebook
def test_exported_folder_answers_a_chat_as_it_scores(demo, request, tmp_path):
    """Over an OpenAI-compatible server; greedy decoding picks no other queue but now and then.

    What docs/serving.rst shows is asked first.
    """
    from openai_server import install_server, serve

    from ticketlib import prompts
    from ticketlib.template import TEMPLATE_FILE

    queues = json.loads(demo.settings.read_text("utf-8"))["prompt"]["queues"]
    tickets = pd.read_parquet(demo.tickets).query("split == 'test'").head(20)
    predictions = pd.read_parquet(demo.predictions).query("model == 'tuned'")
    scored = predictions.set_index("ticket_id")["predicted"]
    packages = install_server(request.config.cache.mkdir("serving"))
    template = (demo.exported / TEMPLATE_FILE).read_text("utf-8")
    same = 0
    with serve(demo.exported, packages, chat_template=template) as client:
        server = str(client.base_url).rstrip("/")
        said = run_code(ROOT / "docs" / "serving.rst", demo, tmp_path, server=server)
        for _, ticket in tickets.iterrows():
            reply = client.chat.completions.create(
                model=str(demo.exported),
                messages=prompts.render_messages(ticket["subject"], ticket["body"], queues=queues),
                max_tokens=20,
                temperature=0,
            )
            answer = prompts.parse_answer(reply.choices[0].message.content, queues)
            same += answer == scored[ticket["ticket_id"]]
    assert same >= 19
    decided, chatted, completed, *sent = said.splitlines()
    assert decided.split(" 0.")[0] in queues and chatted == completed in queues
    assert len(sent) == bool(shutil.which("curl"))
    for reply in sent:
        assert json.loads(reply)["choices"][0]["message"]["content"] == f"final{chatted}"


@pytest.mark.notebook
def test_documents_compare_runs_draw_figures_and_explain_all(demo, figures, tmp_path):
    for rank in (4, 8, 16):
        run = Run(f"rank{rank}", str(demo.experiments))
        write_metrics(run.metrics, figures | {"settings.lora_rank": rank})
    run_code(ROOT / "docs" / "batch.rst", demo, tmp_path)
    drawn = import_script(ROOT / "docs" / "make_figures.py").draw_figures(demo, tmp_path)
    assert [path.name for path in drawn] == ["results.png", "reading.png"]
    explained = (ROOT / "docs" / "results.rst").read_text("utf-8")
    assert [key for key in figures if f"``{key.split('.')[0]}" not in explained] == []


@pytest.mark.notebook
def test_proofs_and_figures_are_there(demo):
    proof = json.loads(demo.proof.read_text())
    for form in ("merged", "exported", "imported_again", "peft"):
        assert proof[form]["max_difference"] <= 1e-5
    assert proof["base"]["max_difference"] > proof["mxfp4"]["max_difference"] > 0.01
    assert proof["weights"] == {"changed": 16, "targeted": 16, "equal": 55}
    names = {path.stem for path in demo.figures.glob("*.png")}
    assert {"queues", "languages", "lengths", "missing", "words", "label_noise"} <= names
    assert {"groups", "tokens", "loss", "accuracy", "macro_f1", "confusion"} <= names
    assert {"reliability", "handoff"} <= names
    assert len(pd.read_csv(demo.history)) > 100


@pytest.mark.notebook
def test_exported_folders_are_whole_and_keep_what_servers_are_promised(demo, figures):
    for folder in (demo.exported, demo.exported_mxfp4):
        assert find_faults(folder) == []
    for folder in (demo.exported, demo.exported_mxfp4, demo.adapter):
        verify_checksums(folder)
        card = (folder / "README.md").read_text("utf-8")
        assert f"{figures['tuned.accuracy']:.1%}".replace("%", " %") in card
        assert str(demo.experiments) not in card


@pytest.mark.notebook
def test_no_token_is_in_any_file_that_was_written(demo):
    assert find_planted(demo.experiments) == []


@pytest.mark.notebook
def test_outputs_hold_no_warning_and_no_path_of_home(demo):
    for path in demo.notebooks.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.get("name") != "stderr", output
                assert output.output_type != "error"


@pytest.mark.notebook
def test_training_that_was_killed_can_be_run_again(demo, tmp_path):
    run = Run("killed", str(demo.experiments))
    run.folder.mkdir()
    (run.dataset).symlink_to(demo.dataset)
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS[2]), str(tmp_path / "out.ipynb")]
    command += ["-p", "run_name", "killed", "-p", "experiments_dir", str(demo.experiments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if (run.training / "attempt-1" / "metrics.csv").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
    assert run.training.exists() and not run.exported.exists()
    with pytest.raises(PapermillExecutionError, match="Run 03_train_lora.ipynb"):
        execute("04_evaluate_and_export", run)
    execute("03_train_lora", run, max_steps=4)
    assert len(pd.read_csv(run.history)) == 4
    assert pd.read_csv(demo.history)["step"].max() > 4


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES[2:])
def test_a_missing_step_is_named(tmp_path, name):
    with pytest.raises(PapermillExecutionError, match="Run 02_prepare_jsonl.ipynb with run_name"):
        execute(name, Run("empty", str(tmp_path)))


@pytest.mark.notebook
def test_a_parameter_of_another_type_is_named(tmp_path):
    with pytest.raises(PapermillExecutionError, match="seed is '0', of type str; int is accepted"):
        execute(NAMES[0], Run("typed", str(tmp_path)), seed="0")


def test_there_are_four_notebooks_in_order():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_parameters_are_annotated_and_explained(self, path):
        parameters = papermill.inspect_notebook(path)
        assert parameters.keys() >= SHARED_PARAMETERS
        for parameter in parameters.values():
            assert parameter["inferred_type_name"] in ("str", "int", "float", "bool", "list")
            assert parameter["help"] and parameter["default"]

    def test_cells_are_short_without_output_and_installs(self, path):
        notebook = nbformat.read(path, as_version=4)
        assert notebook.metadata.kernelspec.name == "python3"
        assert 25 <= len(notebook.cells) <= 60
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None
                if "parameters" not in cell.metadata.get("tags", []):
                    assert len(cell.source.splitlines()) <= 15
                assert not cell.source.lstrip().startswith(("!", "%"))

    def test_it_opens_and_ends_as_all_do(self, path):
        cells = nbformat.read(path, as_version=4).cells
        for word in ("reads", "writes", "hardware", "run time"):
            assert word in cells[0].source
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        assert "check_parameters(globals())" in code[1]
        for heading in ("## What we did", "## Exercises", "## Next"):
            assert heading in cells[-1].source

    def test_copyable_cells_stand_alone(self, path, tmp_path):
        cells = nbformat.read(path, as_version=4).cells
        tagged = {
            tag: [c for c in cells if tag in c.metadata.get("tags", [])]
            for tag in ("parameters", "copyable")
        }
        assert len(tagged["parameters"]) == 1 and tagged["copyable"]
        for cell in tagged["copyable"]:
            script = tmp_path / "cell.py"
            script.write_text(f"{tagged['parameters'][0].source}\n{cell.source}\n", "utf-8")
            ast.parse(script.read_text("utf-8"))
            check = subprocess.run(
                [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", script],
                capture_output=True,
                text=True,
            )
            assert check.returncode == 0, check.stdout
