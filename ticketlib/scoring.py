"""Label probabilities and free answers from a gpt-oss checkpoint in Hugging Face format.

A queue's score is the exact log-probability of its whole answer, end token included. All queues are
scored in one forward pass: their tokens hang behind the prompt as a tree in which every token sees
the prompt and its own ancestors only ("tree attention", as in SpecInfer, arXiv:2305.09781). Tokens
that answers have in common, such as harmony's `<|channel|>final<|message|>`, are computed once.
Answers cut where they first differ would save a tenth to a quarter of the time
(benchmarks/score_labels.py) and give no exact probabilities, so there is no such short cut.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.special import softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from ticketlib import checkpoint, logs

try:
    from torch.nn.functional import grouped_mm
except ImportError:  # Before torch 2.10
    grouped_mm = torch._grouped_mm

__all__ = ["load_model", "score_labels", "label_probabilities", "generate_answers"]


def load_model(
    folder: str | Path, *, device: str = "", dtype: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, ready to be evaluated, and its tokenizer from a local folder.

    Args:
        folder: A checkpoint in Hugging Face format, such as `Run.exported`.
        device: For example "cpu" or "cuda:1"; "" is CUDA where there is one, else the CPU.
        dtype: For example "float32"; "" is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        FileNotFoundError: If the folder or its config.json is missing.
        ValueError: If torch has no such floating-point dtype.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        missing = "config.json in it" if folder.is_dir() else "the folder"
        raise FileNotFoundError(
            f"{folder} is not a Hugging Face checkpoint: {missing} is missing. Give the folder "
            "that holds config.json, *.safetensors and the tokenizer, such as Run(...).exported."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    torch_dtype = getattr(torch, dtype, None)
    if not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
        raise ValueError(f'dtype = "{dtype}" is unknown. Use "float32", "bfloat16" or "float16".')
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return checkpoint.load_model(folder, torch_dtype, device=device), tokenizer


class AnswerTree(NamedTuple):
    """The answers' tokens as a prefix tree, and where each answer's tokens are predicted.

    Node 0 is the prompt's last token. The n other nodes are fed to the model; an end token never
    is, it is only predicted. The t predictions are those of all answers, one after the other.
    """

    tokens: torch.Tensor  # [n] token of every node but node 0
    depths: torch.Tensor  # [n] 1 for the first token after the prompt
    is_visible: torch.Tensor  # [n, n] whether node (row) sees node (column): itself, its ancestors
    nodes: torch.Tensor  # [t] node that predicts
    targets: torch.Tensor  # [t] token that it predicts
    owners: torch.Tensor  # [t] answer that the prediction belongs to


def build_answer_tree(answers: Sequence[Sequence[int]]) -> AnswerTree:
    """Arrange tokenized answers, each closed by its end token, as a prefix tree."""
    nodes = {(): 0}
    for answer in answers:
        for end in range(1, len(answer)):
            nodes.setdefault(tuple(answer[:end]), len(nodes))
    prefixes = list(nodes)[1:]
    predictions = [
        (nodes[tuple(answer[:position])], token, owner)
        for owner, answer in enumerate(answers)
        for position, token in enumerate(answer)
    ]
    is_visible = [[row[: len(column)] == column for column in prefixes] for row in prefixes]
    return AnswerTree(
        torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.long),
        torch.tensor([len(prefix) for prefix in prefixes], dtype=torch.long),
        torch.tensor(is_visible, dtype=torch.bool),
        *torch.tensor(predictions, dtype=torch.long).T,
    )


def score_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    max_batch_tokens: int = 2048,
    progress: bool = False,
) -> np.ndarray:
    """Score every answer after every prompt: exact log p(answer, end token | prompt).

    Prompt and answer are tokenized separately, as NeMo does for training.

    Args:
        model: A gpt-oss model with eager attention, as `load_model` gives it.
        tokenizer: Its tokenizer; the end token is its `eos_token`.
        prompts: Rendered prompts (`prompts.render_prompt`).
        answers: Rendered answers (`prompts.render_answer`), one a queue.
        max_batch_tokens: Most tokens in one forward pass, padding included. A longer prompt is
            scored by itself. Changes speed and memory, not the result.
        progress: Show the time left, once it takes more than five seconds.

    Returns:
        Natural logarithms, float64, [number of prompts, number of answers], in the order given.

    Raises:
        ValueError: If the model's attention is not eager, there are no answers, an answer or a
            prompt has no tokens, the tokenizer has no end token, or the model returns NaN.
        torch.OutOfMemoryError: The GPU is full; a note says what to do.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError(
            f'The model\'s attention is "{model.config._attn_implementation}". score_labels needs '
            '"eager", which takes any mask. Load the model with ticketlib.scoring.load_model.'
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token. Set the one that ended training rows.")
    answer_ids = _tokenize(tokenizer, answers, "answers")
    if not answer_ids:
        raise ValueError("answers is empty. Give one rendered answer for each queue.")
    prompt_ids = _tokenize(tokenizer, prompts, "prompts")
    tree = build_answer_tree([[*ids, tokenizer.eos_token_id] for ids in answer_ids])

    scores = np.empty((len(prompts), len(answers)))
    lengths = [len(ids) + len(tree.tokens) for ids in prompt_ids]
    batches = _batch_by_length(lengths, lambda longest, rows: longest * rows <= max_batch_tokens)
    with _grouped_experts(model):
        for rows in logs.progress(batches, "Scoring", delay=5, disable=not progress):
            try:
                scores[rows] = _score_batch(model, [prompt_ids[row] for row in rows], tree)
            except torch.OutOfMemoryError as error:
                error.add_note(
                    f"The GPU is full. Halve max_batch_tokens ({max_batch_tokens}), or end what "
                    "else uses the GPU (nvidia-smi shows it; Kernel > Shut Down All Kernels ends "
                    "notebooks)."
                )
                raise
    if np.isnan(scores).any():
        raise ValueError(
            f"The model returned NaN for {np.isnan(scores).any(axis=1).sum()} of {len(prompts)} "
            'prompts. Check the checkpoint\'s weights, or load it with dtype = "float32".'
        )
    return scores


@functools.cache
def can_group(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether this torch has `grouped_mm` for a dtype on a device; none has it for float64.

    Args:
        dtype: Of rows and weights.
        device: Where they are.
    """
    ones = torch.ones(64, 64, dtype=dtype, device=device)
    ends = torch.tensor([64], dtype=torch.int32, device=device)
    try:
        grouped_mm(ones, ones[None], offs=ends)
    except RuntimeError:
        return False
    return True


@contextmanager
def _grouped_experts(model: PreTrainedModel) -> Iterator[None]:
    """Multiply each token with the experts that it is routed to, all experts in one product.

    transformers 4.57 sends each token through all experts, which suits the few tokens of a step of
    generation; scoring has thousands. transformers 5 groups them too, but NeMo holds it at 4.57.
    The two differ by rounding.
    """
    if not can_group(model.dtype, model.device):
        yield
        return
    with mock.patch.object(GptOssExperts, "forward", _apply_grouped):
        yield


def _apply_grouped(experts: GptOssExperts, hidden_states, router_indices, routing_weights):
    """`GptOssExperts.forward`: [batch, tokens, hidden], [rows, chosen] and [rows, experts]."""
    hidden = hidden_states.flatten(0, 1)
    chosen, order = router_indices.flatten().sort(stable=True)
    rows = order // router_indices.shape[1]
    ends = torch.searchsorted(
        chosen, torch.arange(experts.num_experts, device=chosen.device), right=True
    ).int()
    both = grouped_mm(hidden[rows], experts.gate_up_proj, offs=ends)
    both += experts.gate_up_proj_bias[chosen]
    gate = both[:, ::2].clamp(max=experts.limit)
    up = both[:, 1::2].clamp(-experts.limit, experts.limit)
    gated = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    out = grouped_mm(gated, experts.down_proj, offs=ends) + experts.down_proj_bias[chosen]
    out *= routing_weights[rows, chosen, None]
    return torch.zeros_like(hidden).index_add_(0, rows, out).view_as(hidden_states)


@torch.inference_mode()
def _score_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], tree: AnswerTree
) -> np.ndarray:
    """Score one batch of tokenized prompts: log-probabilities, float64, [prompts, answers]."""
    # Left padding: each prompt ends, and so the tree begins, at the same column.
    tokens = pad_sequence(
        [torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_side="left"
    )
    n_rows, longest = tokens.shape
    tokens = torch.cat([tokens, tree.tokens.expand(n_rows, -1)], dim=1).to(model.device)
    n_prompt = torch.tensor([len(prompt) for prompt in prompts], device=model.device)[:, None]
    before = torch.arange(-longest, 0, device=model.device) + n_prompt  # Negative where padded
    after = n_prompt - 1 + tree.depths.to(model.device)
    positions = torch.cat([before, after], dim=1)  # [rows, tokens]

    is_visible = torch.ones((tokens.shape[1],) * 2, dtype=torch.bool, device=model.device).tril()
    is_visible[longest:, longest:] = tree.is_visible.to(model.device)
    # [rows, query, key]. Padding sees nothing; the attention sinks keep its softmax finite.
    is_visible = is_visible & (positions >= 0)[:, None, :]
    distance = positions[:, :, None] - positions[:, None, :]
    masks = {
        "full_attention": is_visible,
        "sliding_attention": is_visible & (distance < model.config.sliding_window),
    }

    logits = model(
        input_ids=tokens,
        position_ids=positions.clamp(min=0),
        attention_mask={name: _additive(mask, model.dtype) for name, mask in masks.items()},
        use_cache=False,
        logits_to_keep=len(tree.tokens) + 1,
    ).logits.float()  # [rows, nodes, vocabulary]
    log_probs = logits[:, tree.nodes, tree.targets] - logits.logsumexp(dim=-1)[:, tree.nodes]
    n_answers = int(tree.owners[-1]) + 1
    scores = torch.zeros(n_rows, n_answers, dtype=torch.float64)
    return scores.index_add_(1, tree.owners, log_probs.double().cpu()).numpy()


def _additive(is_visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn [rows, query, key] into the [rows, 1, query, key] that is added to attention logits."""
    mask = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
    return mask.masked_fill_(~is_visible, torch.finfo(dtype).min)[:, None]


def label_probabilities(log_probs: np.ndarray) -> np.ndarray:
    """Normalize `score_labels` over the answers: probabilities that sum to 1, [prompts, answers].

    Raises:
        ValueError: If `log_probs` is not a table.
    """
    if np.ndim(log_probs) != 2:
        raise ValueError(
            f"log_probs has shape {np.shape(log_probs)}. Give [prompts, answers] of score_labels."
        )
    return softmax(log_probs, axis=1)


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    progress: bool = False,
) -> list[str]:
    """Let the model answer freely (greedy decoding), for comparison with `score_labels`.

    Args:
        model: As `load_model` gives it.
        tokenizer: Its tokenizer.
        prompts: Rendered prompts (`prompts.render_prompt`).
        max_new_tokens: Most tokens in an answer; a longer one is cut.
        batch_size: Prompts decoded together.
        progress: Show the time left, once it takes more than five seconds.

    Returns:
        The raw answers in the order of the prompts, special tokens kept, up to and without the end
        token. Read them with `prompts.parse_answer`.

    Raises:
        ValueError: If a prompt has no tokens or the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no pad_token. gpt-oss has <|endoftext|>: set that.")
    ends = model.generation_config.eos_token_id
    ends = ends if ends is not None else tokenizer.eos_token_id
    ends = set(ends if isinstance(ends, Iterable) else [ends])
    lengths = [len(ids) for ids in _tokenize(tokenizer, prompts, "prompts")]
    answers = [""] * len(prompts)
    batches = _batch_by_length(lengths, lambda _, rows: rows <= batch_size)
    for rows in logs.progress(batches, "Generating", delay=5, disable=not progress):
        batch = tokenizer(
            [prompts[row] for row in rows],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        for row, ids in zip(rows, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            kept = list(takewhile(lambda token: token not in {*ends, tokenizer.pad_token_id}, ids))
            answers[row] = tokenizer.decode(kept, skip_special_tokens=False)
    return answers


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], name: str
) -> list[list[int]]:
    """Tokenize without adding special tokens; an empty text is an error."""
    if not len(texts):
        return []
    tokens = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    empty = [row for row, ids in enumerate(tokens) if not ids]
    if empty:
        raise ValueError(
            f"{name}[{empty[0]}] is {texts[empty[0]]!r}, which has no tokens ({len(empty)} such in "
            f"all). Give the text that ticketlib.prompts renders."
        )
    return tokens


def _batch_by_length(lengths: Sequence[int], fits: Callable[[int, int], bool]) -> list[list[int]]:
    """Batch row numbers of similar length: `fits(longest, rows)`, or one row alone."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and fits(lengths[row], len(batches[-1]) + 1):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
