"""The service itself stays light: what trains runs in processes of its own."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "torch",
    "ray",
    "transformers",
    "peft",
    "numpy",
    "datasets",
    "datasketch",
    "gguf",
    "matplotlib",
    "mlflow",
    "bitsandbytes",
    "tensorboard",
)


def test_the_service_imports_nothing_that_trains() -> None:
    program = (
        "import sys, services.trainer.__main__; "
        f"print(sorted(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
