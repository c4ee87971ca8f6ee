"""The parameters of the notebooks: known, and of the right type, before a step fails on one.

python -m ticketlib.parameters NOTEBOOK COPY -p lora_rank 4 is papermill with its arguments. But a
parameter that only other notebooks of the folder have is left out, and one that none has refused.
"""

import ast
import difflib
import itertools
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from unittest import mock

_HINTS = {
    str: "Write it in quotes; with papermill, -r instead of -p",
    list: 'Write it in brackets, such as ["a", "b"]; with papermill, -y "name: [a, b]"',
    bool: "Write True or False, without quotes",
    int: "Write it without quotes; with papermill, -p instead of -r",
    float: "Write it without quotes; with papermill, -p instead of -r",
}
_INJECTED = "# Parameters\n"  # First line of the cell that papermill puts below the parameters


def check_parameters(namespace: Mapping[str, object]) -> None:
    """Raise where a parameter is of another type than the notebook's first cell says, or unknown.

    Args:
        namespace: `globals()` of the notebook; what is annotated with `str`, `int`, `float`, `bool`
            or `list` is checked, and an `int` will do for a `float`. Names that papermill set must
            be annotated there.

    Raises:
        TypeError: One or more are of another type, or no parameters; all are named.
    """
    known = namespace.get("__annotations__", {})
    faults = _refuse_unknown(_find_injected(namespace.get("In", [])), known)
    for name, kind in known.items():
        if kind not in _HINTS or name not in namespace:
            continue
        value = namespace[name]
        found = type(value)
        if not (found is kind or (kind is float and found is int)):
            faults.append(
                f"{name} is {value!r}, of type {found.__name__}; {kind.__name__} is accepted. "
                f"{_HINTS[kind]}."
            )
    if faults:
        raise TypeError(" ".join(faults))


def _find_injected(cells: Iterable[str]) -> list[str]:
    """Names that papermill's cell sets, of all cells that were run; the last such cell counts."""
    source = next((cell for cell in [*cells][::-1] if cell.startswith(_INJECTED)), "")
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in assigned for target in node.targets]


def _refuse_unknown(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """A sentence for each name that is not known, with what may be meant."""
    faults = []
    for name in names:
        # papermill's own are the paths of the notebook and of its copy
        if name not in known and not name.startswith("PAPERMILL_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Accepted: {', '.join(known)}."
            faults.append(f"{name} is no parameter here. {hint}")
    return faults


def main() -> None:
    """Run papermill's command on a notebook with those of the parameters that it has."""
    import click
    from papermill import cli, execute_notebook, inspect_notebook

    def execute(input_path: str, output_path: str, parameters: dict, **options: object) -> None:
        logging.disable(logging.INFO)  # papermill says of each that it is opened
        own = inspect_notebook(input_path)
        others = map(inspect_notebook, sorted(Path(input_path).parent.glob("*.ipynb")))
        known = list(dict.fromkeys(itertools.chain(own, *others)))
        logging.disable(logging.NOTSET)
        if faults := _refuse_unknown(parameters, known):
            raise click.UsageError(" ".join(faults))
        parameters = {name: value for name, value in parameters.items() if name in own}
        execute_notebook(input_path, output_path, parameters, **options)

    with mock.patch.object(cli, "execute_notebook", execute):
        cli.papermill()


if __name__ == "__main__":
    main()
