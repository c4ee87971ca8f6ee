"""The type of each parameter of a notebook, checked before a step fails on it."""

from collections.abc import Mapping

_HINTS = {
    str: "Write it in quotes; with papermill, -r instead of -p",
    list: 'Write it in brackets, such as ["a", "b"]; with papermill, -y "name: [a, b]"',
    bool: "Write True or False, without quotes",
    int: "Write it without quotes; with papermill, -p instead of -r",
    float: "Write it without quotes; with papermill, -p instead of -r",
}


def check_parameters(namespace: Mapping[str, object]) -> None:
    """Raise where a parameter is of another type than the notebook's first cell says.

    Args:
        namespace: `globals()` of the notebook; what is annotated with `str`, `int`, `float`, `bool`
            or `list` is checked, and an `int` will do for a `float`.

    Raises:
        TypeError: One or more are of another type; all are named.
    """
    faults = []
    for name, kind in namespace.get("__annotations__", {}).items():
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
