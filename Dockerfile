# syntax=docker/dockerfile:1
# NVIDIA's NeMo container with this project's versions of NeMo and Megatron-Core, for one or more GPUs:
#   docker build -t tickets .
#   docker run --rm -it --gpus all --ipc=host -p 8888:8888 -e HF_TOKEN -v "$PWD":/workspace/tickets tickets
#
# 25.11 brings Python 3.12, PyTorch 2.9.0a0, CUDA 13.0.1, cuDNN 9.13.1 and Transformer Engine 2.9, the
# release that megatron-core 0.15.3 asks for (>=2.9,<2.10). Its own NeMo 2.6.0, NeMo-Run 0.7.0 and
# Megatron-Core 0.15.0 (a development state) are replaced below. Later tags bring a newer Transformer Engine.
# Versions: docs/releases/software-versions.md in NVIDIA-NeMo/Megatron-Bridge.
ARG FW_VERSION=25.11
FROM nvcr.io/nvidia/nemo:${FW_VERSION}

WORKDIR /workspace/tickets
COPY pyproject.toml constraints.txt ./

# What to install is read from pyproject.toml and constraints.txt, with one exception: torch and all that is
# built for it (CUDA libraries, Transformer Engine, ...) stay as the container has them. They become
# constraints, so pip stops with an error where a pin cannot live with them; it never replaces them.
RUN python - > /opt/pins.txt <<'EOF'
import importlib.metadata, re, tomllib

def name(text):
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
groups = [project["dependencies"], *(extras[extra] for extra in ("notebooks", "test", "kaggle"))]
wanted = [r for group in groups for r in group if name(r) != "torch"]
built_for_torch = re.compile(r"torch|torchvision|pytorch-triton|triton|transformer-engine.*|flash-attn.*|apex|cuda-.*|nvidia-.*")
kept = {name(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
kept = {n: v for n, v in kept.items() if built_for_torch.fullmatch(n) and n not in map(name, wanted)}
locked = [line.strip() for line in open("constraints.txt") if "==" in line and not line.startswith("#")]
locked = [line for line in locked if name(line) not in {"torch", *kept}]
with open("/opt/constraints.txt", "w") as file:
    file.writelines(f"{line}\n" for line in [*locked, *(f"{n}=={v}" for n, v in sorted(kept.items()))])
print("\n".join(wanted))
EOF

# PIP_CONSTRAINT: the container's own constraints would hold NeMo and others at its versions.
RUN PIP_CONSTRAINT= python -m pip install --no-cache-dir -c /opt/constraints.txt -r /opt/pins.txt

# What training on a GPU takes from the container's torch; better missed here than there.
RUN python -c "from torch.nn.attention.flex_attention import BlockMask, flex_attention; from torch import _grouped_mm"

COPY . .
RUN python -m pip install --no-cache-dir --no-deps -e . \
    && mkdir -p /workspace/home && chmod -R a+rwX /workspace/tickets /workspace/home

# Any user may run it (docker run --user "$(id -u):$(id -g)"); Jupyter, Hugging Face and NeMo write below HOME.
ENV HOME=/workspace/home
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--allow-root", "--LabApp.news_url=None", "--notebook-dir=/workspace/tickets"]
