"""Read and write gpt-oss folders of Hugging Face tensor by tensor, checked before use.

A folder holds `config.json` and `.safetensors`, one or several with an index. The experts are
either BF16, `[experts, in, out]`, or MXFP4 as OpenAI releases them, `*_blocks` and `*_scales`,
`[experts, out, in / 32, ...]`. Nothing here imports NeMo.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, GptOssForCausalLM, Mxfp4Config, PretrainedConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ticketlib.logs import progress
from ticketlib.paths import require_space

INDEX = "model.safetensors.index.json"
BLOCK_SIZE = 32  # Weights that share a scale in MXFP4; two are packed into a byte
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
EXPERTS = (".gate_up_proj", ".down_proj")
SERVING_FILES = (
    *("generation_config.json", "chat_template.jinja", "tokenizer*", "special_tokens*"),
    *("vocab.json", "merges.txt"),
)


class Weights(Mapping[str, torch.Tensor]):
    """The weights of a folder by transformers' names; each is read when it is asked for.

    MXFP4 experts come out dequantized by transformers, bfloat16 `[experts, in, out]`.

    Attributes:
        folder: Where they are.
        config: transformers' config of the folder.
        stored: Name, shape and dtype of what the files hold, on the device `meta`.
        is_mxfp4: Whether the experts are MXFP4.
        nonfinite: A sentence for each weight read so far that holds NaN or infinity.

    Raises:
        FileNotFoundError: The folder holds no `.safetensors`, or not all that its index names.
        ValueError: A file is damaged, or what the files hold is not what `config.json` asks for:
            each name that is missing, unexpected, or of another shape or dtype.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers and check them; no weights yet."""
        self.folder = Path(folder)
        self.config = load_config(folder)
        self._files, self.stored = _read_headers(self.folder)
        self._expected = describe_model(self.config)
        self.nonfinite: list[str] = []
        self.is_mxfp4 = bool(getattr(self.config, "quantization_config", None))
        if self.is_mxfp4 and self.config.quantization_config.get("quant_method") != "mxfp4":
            raise ValueError(
                f"{folder}/config.json has quantization_config = {self.config.quantization_config};"
                ' accepted is none (BF16 weights) or quant_method "mxfp4".'
            )
        wanted = stored_as_mxfp4(self._expected) if self.is_mxfp4 else self._expected
        faults = [f"missing {name}" for name in wanted.keys() - self.stored.keys()]
        faults += [f"unexpected {name}" for name in self.stored.keys() - wanted.keys()]
        any_float = self.config.dtype is None
        for name in sorted(wanted.keys() & self.stored.keys()):
            found, tensor = self.stored[name], wanted[name]
            if found.shape != tensor.shape:
                faults.append(f"{name} is {list(found.shape)}, not {list(tensor.shape)}")
            elif found.dtype != tensor.dtype and not (any_float and found.is_floating_point()):
                faults.append(f"{name} is {DTYPES[found.dtype]}, not {DTYPES[tensor.dtype]}")
        if faults:
            raise ValueError(
                f"{folder} does not fit its config.json, which asks for "
                f"{'MXFP4' if self.is_mxfp4 else 'plain'} experts: {'; '.join(sorted(faults))}. "
                "Download it again; if you converted it, convert it again."
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        if name not in self._expected:
            raise KeyError(name)
        if name in self.stored:
            tensor = self.read_stored(name)
        else:
            blocks, scales = (self.read_stored(name + suffix) for suffix in ("_blocks", "_scales"))
            # In pieces: transformers' own default takes 5 GB beside one tensor of gpt-oss-20b.
            tensor = convert_moe_packed_tensors(blocks, scales, rows_per_chunk=2**20).cpu()
        self.nonfinite += find_nonfinite(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Names as transformers' model has them."""
        return iter(self._expected)

    def __len__(self) -> int:
        """Number of weights."""
        return len(self._expected)

    def read_stored(self, name: str) -> torch.Tensor:
        """Read a tensor as the file holds it, such as `..._blocks`."""
        # Opened for each: a file that stays open keeps what was read of it in memory.
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)


def load_config(folder: Path) -> PretrainedConfig:
    """Read `config.json` of a gpt-oss folder.

    Raises:
        ValueError: The model is of another type.
    """
    if (Path(folder) / "custom_generate").exists():
        # transformers 4.57 runs it for any local folder, whatever trust_remote_code says
        raise ValueError(
            f"{folder}/custom_generate holds code that transformers would run. Remove it, or take "
            "a base without it, such as openai/gpt-oss-20b."
        )
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    if config.model_type != "gpt_oss":
        raise ValueError(
            f'{folder} holds a model of type "{config.model_type}"; "gpt_oss" is accepted.'
        )
    return config


def load_model(
    folder: Path, dtype: torch.dtype, *, device: str = "cpu", layers: int = 0
) -> GptOssForCausalLM:
    """Load transformers' model with eager attention, all of it in one dtype.

    Experts in MXFP4 are dequantized, on a GPU too: what is evaluated is what can be trained.

    Args:
        folder: Checkpoint in Hugging Face format.
        dtype: Of all weights.
        device: Where they go.
        layers: Only the first ones; 0 is all.
    """
    config = load_config(folder)
    quantized = getattr(config, "quantization_config", None)
    config.layer_types = config.layer_types[: layers or None]
    config.num_hidden_layers = len(config.layer_types)
    model = GptOssForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map=device,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=Mxfp4Config(dequantize=True) if quantized else None,
    )
    return model.to(dtype).eval()  # transformers leaves dequantized experts in bfloat16


@torch.no_grad()
def update_model(model: GptOssForCausalLM, folder: Path, names: Iterable[str] = ()) -> None:
    """Put weights of another folder into a loaded model in place, so that it is not loaded again.

    Args:
        model: Of `load_model`, of the same shape.
        folder: Where the weights are.
        names: Of those that differ; none given is all.

    Raises:
        KeyError: The folder or the model has no weight of such a name.
    """
    weights, parameters = Weights(folder), dict(model.named_parameters())
    for name in names or weights:
        parameters[name].copy_(weights[name])


def describe_model(
    config: PretrainedConfig, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Name, shape and dtype of each weight of transformers' model, on the device `meta`.

    Args:
        config: Of the model.
        dtype: Of the weights; default is what the config says, or bfloat16.
    """
    with torch.device("meta"):
        weights = GptOssForCausalLM(config).state_dict()
    dtype = dtype or config.dtype or torch.bfloat16
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def count_bytes(description: Mapping[str, torch.Tensor]) -> int:
    """What weights take, in memory or in a file.

    Args:
        description: Such as `describe_model` gives.
    """
    return sum(tensor.numel() * tensor.itemsize for tensor in description.values())


def stored_as_mxfp4(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `describe_model` gives, with the experts as openai/gpt-oss-20b stores them.

    `x` of `[experts, in, out]` becomes `x_blocks`, uint8 `[experts, out, in / 32, 16]`, and
    `x_scales`, uint8 `[experts, out, in / 32]`.

    Raises:
        ValueError: `in` is not a multiple of 32.
    """
    stored = {}
    for name, tensor in weights.items():
        if not name.endswith(EXPERTS):
            stored[name] = tensor
            continue
        experts, inner, outer = tensor.shape
        if inner % BLOCK_SIZE:
            raise ValueError(f"{name} has {inner} inputs; MXFP4 needs a multiple of {BLOCK_SIZE}.")
        shape = (experts, outer, inner // BLOCK_SIZE)
        stored[f"{name}_blocks"] = torch.empty(
            *shape, BLOCK_SIZE // 2, dtype=torch.uint8, device="meta"
        )
        stored[f"{name}_scales"] = torch.empty(shape, dtype=torch.uint8, device="meta")
    return stored


def _read_headers(folder: Path) -> tuple[dict[str, Path], dict[str, torch.Tensor]]:
    """The file of each tensor; its shape and dtype on the device `meta`."""
    paths = [folder / "model.safetensors"]
    if not paths[0].exists() and (folder / INDEX).exists():
        named = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        paths = sorted({folder / file for file in named.values()})
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} does not hold {', '.join(missing)}. Download it again; weights in other "
            "formats, such as pytorch_model.bin, are not read."
        )
    by_code = {code: dtype for dtype, code in DTYPES.items()}
    files, stored = {}, {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}
                for name, part in slices.items():
                    if part.get_dtype() not in by_code:
                        raise ValueError(
                            f"{name} in {path} is {part.get_dtype()}; accepted are "
                            f"{', '.join(by_code)}."
                        )
                    dtype = by_code[part.get_dtype()]
                    stored[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
                    files[name] = path
        except SafetensorError as error:
            size = path.stat().st_size
            raise ValueError(
                f"{path} is cut short or damaged ({size:,} bytes; {error}). Download it again."
            ) from error
    return files, stored


def find_nonfinite(name: str, tensor: torch.Tensor) -> list[str]:
    """Give what a tensor holds that is no number, as a list of no or one sentence.

    Args:
        name: Of the tensor, for the sentence.
        tensor: Of any shape.
    """
    # The least and the largest are NaN if any value is; `isfinite` would take twice the tensor
    if not tensor.is_floating_point() or torch.stack(torch.aminmax(tensor)).isfinite().all():
        return []
    wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
    return [f"{name} has {wrong:,} values that are not finite"]


def write_weights(
    folder: Path,
    description: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    *,
    max_shard_size: str = "5GB",
) -> None:
    """Write weights as `.safetensors`, one shard in memory at a time, with an index if several.

    Args:
        folder: Existing; file names are those of `save_pretrained`.
        description: Shape and dtype of each, such as `describe_model` gives.
        read: Gives the weight of a name; called once for each, when its turn comes. The weight is
            cast to the described dtype.
        max_shard_size: Largest file, such as "5GB"; a tensor above it has a file of its own.

    Raises:
        ValueError: A weight has another shape, or holds a value that is not finite. All are named.
    """
    plan = split_torch_state_dict_into_shards(description, max_shard_size=max_shard_size)
    faults, bar = [], progress(what="Writing weights", total=len(description), delay=5)
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name in names:
            tensor = read(name).to(description[name].dtype).contiguous()
            bar.update()
            if tensor.shape != description[name].shape:
                faults.append(
                    f"{name} is {list(tensor.shape)}, not {list(description[name].shape)}"
                )
            faults += find_nonfinite(name, tensor)
            shard[name] = tensor
        save_file(shard, Path(folder) / file, metadata={"format": "pt"})
    bar.close()
    if faults:
        raise ValueError(f"Not exported: {'; '.join(faults)}.")
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (Path(folder) / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_folder(
    folder: Path,
    base: Path,
    description: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    *,
    max_shard_size: str = "5GB",
    quantization_config: dict | None = None,
) -> None:
    """Write weights with the base's config, generation config, tokenizer and chat template.

    Args:
        folder: Made if need be.
        base: Folder that the rest comes from.
        description: As for `write_weights`.
        read: As for `write_weights`.
        max_shard_size: As for `write_weights`.
        quantization_config: Of what is written; that of the base never stays.

    Raises:
        OSError: The disk has too little space.
        ValueError: As `write_weights`.
    """
    require_space(folder, count_bytes(description))
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = json.loads((Path(base) / "config.json").read_text("utf-8"))
    config.pop("quantization_config", None)
    if quantization_config:
        config["quantization_config"] = quantization_config
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(description["lm_head.weight"].dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / "config.json").write_text(text, encoding="utf-8")
    for pattern in SERVING_FILES:
        for file in sorted(Path(base).glob(pattern)):
            shutil.copyfile(file, Path(folder) / file.name)
    write_weights(folder, description, read, max_shard_size=max_shard_size)


def fingerprint(folder: Path) -> str:
    """Give eight hex digits that change with the files of a folder (config; name, size, time)."""
    digest = hashlib.sha256((Path(folder) / "config.json").read_bytes())
    for file in sorted(Path(folder).glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:8]
