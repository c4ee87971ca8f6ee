"""The report for those who decide: an executed notebook without its code, in one HTML file.

python -m ticketlib.publish nemo-experiments/results/demo/notebooks/04_evaluate_and_export.ipynb
"""

import argparse
from pathlib import Path

from ticketlib.paths import replace_atomically

try:
    import nbformat
    from nbconvert import HTMLExporter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "ticketlib.publish needs nbconvert and nbformat: pip install 'ticketlib[notebooks]'"
    ) from error

WIDGET = "application/vnd.jupyter.widget-view+json"
LEFT_OUT = {"parameters", "injected-parameters", "no-report"}


def write_report(notebook: str | Path, target: str | Path, *, title: str = "") -> Path:
    """An HTML file with the text, tables and figures of an executed notebook.

    Cells tagged `head` stand under the title, those tagged `verdict` under a heading of their own;
    the others follow. Cells tagged `parameters` or `no-report` are left out, and so are widgets,
    which need a running kernel. The file needs no network.

    Args:
        notebook: An executed notebook, as papermill leaves it or as JupyterLab saves it.
        target: The file to write, such as `run.report_html`.
        title: Heading; "" names the folder that the file goes to, which is the run's.

    Raises:
        FileNotFoundError: If there is no such notebook.
        ValueError: If a cell failed, or none has been executed.
    """
    notebook = Path(notebook)
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} not found. Run the notebook with papermill first.")
    content = nbformat.read(notebook, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        raise ValueError(f"A cell of {notebook} failed. Mend that and run the notebook again.")
    if not outputs:
        raise ValueError(f"{notebook} has no outputs. Run it, and save it, before it is published.")
    for cell in code:
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET, None)
        cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    title = title or f"Ticket routing: {Path(target).resolve().parent.name}"
    text = nbformat.v4.new_markdown_cell
    parts = {"head": [text(f"# {title}")], "verdict": [], "rest": []}
    for cell in content.cells:
        tags = set(cell.metadata.get("tags", []))
        if not tags & LEFT_OUT:
            parts[next((name for name in parts if name in tags), "rest")].append(cell)
    if parts["verdict"]:
        parts["head"].append(text("## Verdict"))
    content.cells = sum(parts.values(), [])
    exporter = HTMLExporter(
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
    )
    html, _ = exporter.from_notebook_node(content, resources={"metadata": {"name": title}})
    with replace_atomically(Path(target)) as file:
        file.write_text(html, encoding="utf-8")
    return Path(target)


def main() -> None:
    """Write report.html into the folder above the notebook's, or where it is told to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    options = parser.parse_args()
    target = options.target or options.notebook.resolve().parents[1] / "report.html"
    print(write_report(options.notebook, target))


if __name__ == "__main__":
    main()
