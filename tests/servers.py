"""Wait for servers that tests start."""

import subprocess
import time
import urllib.request
from pathlib import Path


def wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    """Return once the address answers; raise with the end of the log if that takes a minute."""
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args[:4]} did not start:\n{log.read_text()[-3000:]}")
