"""A parameter of the wrong type is named before anything is done with it."""

import pytest

from ticketlib.parameters import check_parameters

CELL = """
run_name: str = "demo"
lora_rank: int = 0
learning_rate: float = 0.0
restart: bool = False
lora_targets: list = []
other: "tuple" = ()
"""


def check(changes=""):
    namespace = {}
    exec(CELL + changes, namespace)  # As papermill does: its cell comes after, without types
    check_parameters(namespace)


@pytest.mark.parametrize("changes", ["", "learning_rate = 1", "lora_targets = ['a']", "other = 5"])
def test_right_types_pass(changes):
    check(changes)
    check_parameters({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("lora_rank = '8'", "lora_rank is '8', of type str; int is accepted. Write it without"),
        ("lora_rank = True", "lora_rank is True, of type bool; int"),
        ("lora_rank = 8.0", "lora_rank is 8.0, of type float; int"),
        ("run_name = 2024", "run_name is 2024, of type int; str is accepted. Write it in quotes"),
        ("restart = 'yes'", "restart is 'yes', of type str; bool is accepted. Write True or False"),
        ("lora_targets = 'linear_qkv'", "lora_targets is .*; list is accepted. Write it in brack"),
        ("learning_rate = None", "learning_rate is None, of type NoneType; float"),
        ("run_name = 1; lora_rank = ''", "run_name is 1, .* lora_rank is ''"),
    ],
)
def test_wrong_types_are_named_with_what_is_accepted(changes, message):
    with pytest.raises(TypeError, match=message):
        check(changes)
