"""Serves a folder with `transformers serve`, an OpenAI-compatible server, for tests."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from servers import wait_until_up

from ticketlib.paths import replace_atomically

REQUIREMENTS = Path(__file__).with_name("serving.txt")


def install_server(cache: Path) -> Path:
    """A folder for PYTHONPATH that holds what tests/serving.txt names; downloaded once."""
    folder = cache / "-".join(
        line.strip().replace("==", "-")
        for line in REQUIREMENTS.read_text().splitlines()
        if "==" in line
    )
    if not folder.exists():
        with replace_atomically(folder) as target:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--no-compile", "--disable-pip-version-check", "--target", str(target)]
            subprocess.run([*command, "-r", str(REQUIREMENTS)], check=True)
    return folder


@contextmanager
def serve(folder: Path, packages: Path, **chat_template_kwargs) -> Iterator[openai.OpenAI]:
    """A client of a server that runs on a free port until the block ends.

    Args:
        folder: Hugging Face folder; float32, on the CPU. Its path is the model's name.
        packages: Of `install_server`.
        chat_template_kwargs: What the server renders chats with.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "float32", "--log-level", "error"]
    command += ["--chat-template-kwargs", json.dumps(chat_template_kwargs)]
    log = packages.with_name(f"server-{port}.log")
    environment = os.environ | {
        "PYTHONPATH": str(packages),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until_up(process, f"http://127.0.0.1:{port}/health", log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
    log.unlink()
