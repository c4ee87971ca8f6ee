"""What the loaders of transformers and vLLM expect of a gpt-oss folder, written down as data.

Read, not copied, from the published sources:

- transformers 4.57.6: models/gpt_oss/modeling_gpt_oss.py, quantizers/quantizer_mxfp4.py.
- vLLM: vllm/model_executor/models/gpt_oss.py (`hf_to_vllm_mapper`, `load_weights`,
  `_load_weights_mxfp4`, `_load_weights_other`) at commit a6b6cfaa0cedff84872a0118380c6cfea91b635d,
  and as docs.vllm.ai/en/latest showed it on 2026-09-23: the same files are accepted.

What vLLM does with them: `self_attn` becomes `attn`, q, k and v one matrix. Plain experts are
turned from [E, in, out] to [E, out, in], MXFP4 blocks are only flattened to [E, out, in / 2]; gate
and up stay interleaved in both. A square matrix that lies the wrong way round fits either way, so
no check of shapes finds it. A name that vLLM does not know is skipped without a word.
"""

import json
from pathlib import Path

from safetensors import safe_open

# Sizes are fields of config.json or made of them in `expect_weights`.
OUTER = {
    "model.embed_tokens.weight": ["vocab_size", "hidden_size"],
    "model.norm.weight": ["hidden_size"],
    "lm_head.weight": ["vocab_size", "hidden_size"],
}
LAYER = {
    "input_layernorm.weight": ["hidden_size"],
    "post_attention_layernorm.weight": ["hidden_size"],
    "self_attn.q_proj.weight": ["q", "hidden_size"],
    "self_attn.q_proj.bias": ["q"],
    "self_attn.k_proj.weight": ["kv", "hidden_size"],
    "self_attn.k_proj.bias": ["kv"],
    "self_attn.v_proj.weight": ["kv", "hidden_size"],
    "self_attn.v_proj.bias": ["kv"],
    "self_attn.o_proj.weight": ["hidden_size", "q"],
    "self_attn.o_proj.bias": ["hidden_size"],
    "self_attn.sinks": ["num_attention_heads"],
    "mlp.router.weight": ["num_local_experts", "hidden_size"],
    "mlp.router.bias": ["num_local_experts"],
    "mlp.experts.gate_up_proj_bias": ["num_local_experts", "gate_up"],
    "mlp.experts.down_proj_bias": ["num_local_experts", "hidden_size"],
}
PLAIN = {
    "mlp.experts.gate_up_proj": ["num_local_experts", "hidden_size", "gate_up"],
    "mlp.experts.down_proj": ["num_local_experts", "intermediate_size", "hidden_size"],
}
# 32 numbers share a scale, two of them a byte.
MXFP4 = {
    "mlp.experts.gate_up_proj_blocks": ["num_local_experts", "gate_up", "hidden_size / 32", 16],
    "mlp.experts.gate_up_proj_scales": ["num_local_experts", "gate_up", "hidden_size / 32"],
    "mlp.experts.down_proj_blocks": ["num_local_experts", "hidden_size", "inner / 32", 16],
    "mlp.experts.down_proj_scales": ["num_local_experts", "hidden_size", "inner / 32"],
}
# What config.json may not say otherwise: vLLM or both compute with these values without reading it.
FIXED = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",  # and vLLM renders chats with the harmony library
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "tie_word_embeddings": False,  # vLLM would skip lm_head
}
READ = ["sliding_window", "num_experts_per_tok", "max_position_embeddings", "rope_theta"]
ROPE = ["factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate"]
NOT_CONVERTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
NOT_CONVERTED += ["model.embed_tokens", "lm_head"]
TEXT_FILES = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
TEXT_FILES += ["chat_template.jinja"]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def find_faults(folder: Path) -> list[str]:
    """What a server would stumble over in a folder, plain or MXFP4; empty if nothing."""
    faults = [f"{name} is not there" for name in TEXT_FILES if not (folder / name).is_file()]
    if faults:
        return faults
    config = json.loads((folder / "config.json").read_text("utf-8"))
    faults += [f"{path.name} is a pickle" for path in folder.iterdir() if path.suffix in PICKLES]
    return [
        *(*faults, *find_config_faults(config), *find_weight_faults(folder, config)),
        *find_stop_faults(folder),
    ]


def find_config_faults(config: dict) -> list[str]:
    faults = [
        f"config.json: {name} is {config[name]!r}, not {value!r}"
        for name, value in FIXED.items()
        if config.get(name, value) != value
    ]
    required = ["architectures", "model_type", *READ]
    faults += [f"config.json: {name} is missing" for name in required if name not in config]
    rope = config.get("rope_scaling") or {}
    if rope.get("rope_type") != "yarn" or not rope.keys() >= set(ROPE):
        faults.append(f"config.json: rope_scaling is {rope}, not yarn with {ROPE}")
    # vLLM does not read layer_types: every other layer slides.
    types = [("sliding", "full")[n % 2] + "_attention" for n in range(config["num_hidden_layers"])]
    if config.get("layer_types", types) != types:
        faults.append("config.json: layer_types do not alternate, sliding first")
    # vLLM asks whether the key is there, so null is no way to say that there is none.
    if "quantization_config" in config:
        quantization = config["quantization_config"] or {}
        if quantization.get("quant_method") != "mxfp4":
            faults.append("config.json: quantization_config is not for mxfp4")
        elif sorted(quantization.get("modules_to_not_convert", [])) != sorted(NOT_CONVERTED):
            faults.append("config.json: modules_to_not_convert are not gpt-oss's")
    return faults


def find_stop_faults(folder: Path) -> list[str]:
    """A server stops at the end tokens of generation_config.json, and trained answers end so."""
    ends = json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id")
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    end = next((token["id"] for token in tokens if token["content"] == "<|return|>"), None)
    if end is None or end not in (ends if isinstance(ends, list) else [ends]):
        return [f"generation_config.json: eos_token_id is {ends}, without <|return|> ({end})"]
    return []


def expect_weights(config: dict) -> dict[str, list[int]]:
    """Name -> shape."""
    sizes = {name: value for name, value in config.items() if isinstance(value, int)} | {
        "q": config["num_attention_heads"] * config["head_dim"],
        "kv": config["num_key_value_heads"] * config["head_dim"],
        "gate_up": 2 * config["intermediate_size"],
        "hidden_size / 32": config["hidden_size"] // 32,
        "inner / 32": config["intermediate_size"] // 32,
    }
    layer = LAYER | (MXFP4 if config.get("quantization_config") else PLAIN)
    names = OUTER | {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return {name: [sizes.get(size, size) for size in shape] for name, shape in names.items()}


def find_weight_faults(folder: Path, config: dict) -> list[str]:
    faults, found = [], {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                found[name] = (part.get_shape(), part.get_dtype(), path.name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text("utf-8"))["weight_map"]
        if listed != {name: path for name, (_, _, path) in found.items()}:
            faults.append("the index does not list what is in the shards")
    elif {path for _, _, path in found.values()} != {"model.safetensors"}:
        faults.append("there is neither one model.safetensors nor an index")
    expected = expect_weights(config)
    faults += [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is not known" for name in found.keys() - expected.keys()]
    dtype = config.get("dtype") or config.get("torch_dtype")  # the older name
    dtype = {"bfloat16": "BF16", "float32": "F32"}.get(dtype, "of a known dtype")
    for name in sorted(expected.keys() & found.keys()):
        shape, kind, _ = found[name]
        if shape != expected[name]:
            faults.append(f"{name} is {shape}, not {expected[name]}")
        wanted = "U8" if name.endswith(("_blocks", "_scales")) else dtype
        if kind != wanted:
            faults.append(f"{name} is {kind}, not {wanted}")
    return faults
