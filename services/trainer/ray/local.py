"""A Ray of this machine alone, for one trainer: `python -m services.trainer.ray.local CPUS` until its input ends.

It listens on loopback, has a directory and a token of its own, and takes its processes with it. Nothing else on the
machine is touched: `ray stop` would end every Ray there is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from typing import Any, Final

USAGE: Final = 64


def main(arguments: list[str]) -> int:
    """Start it, say its address as one line of JSON, and end it when the input ends."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        sys.stderr.write("usage: python -m services.trainer.ray.local CPUS\n")
        return USAGE
    answer = os.fdopen(os.dup(1), "w")
    # Ray talks on its outputs; the address must be all that is said on ours.
    os.dup2(2, 1)
    # Short: the sockets below it must stay within 107 bytes.
    directory = tempfile.mkdtemp(prefix="kala-ray-")
    import ray

    try:
        context: Any = ray.init(  # Any: typed in part
            address="local",
            num_cpus=int(arguments[0]),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=0,
            _node_ip_address="127.0.0.1",
            _temp_dir=directory,
            log_to_driver=False,
        )
        answer.write(json.dumps({"address": f"http://{context.dashboard_url}"}) + "\n")
        answer.flush()
        sys.stdin.buffer.read()
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
