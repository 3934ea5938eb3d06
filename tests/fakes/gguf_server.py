"""A real llama-server over a GGUF file, where this machine has one, asked to go on with tokens as PEFT did."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx

from services.trainer.export.comparing import NEW_TOKENS, Spoken

PROGRAM: Final = os.environ.get("KALA_TEST_LLAMA_SERVER") or shutil.which("llama-server")

LISTEN_SECONDS: Final = 60

# Numbers as they are: neither a cache in half precision nor a faster attention.
EXACT: Final = (
    "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--ctx-size", "512", "--parallel", "1",
    "--threads", "1", "--offline",
)  # fmt: skip


@asynccontextmanager
async def gguf_server(*arguments: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run it on a free port until the context is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), "--host", "127.0.0.1", "--port", port, *EXACT, *arguments,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            async with asyncio.timeout(LISTEN_SECONDS):
                while not await _is_up(client):
                    assert process.returncode is None, "llama-server ended"
                    await asyncio.sleep(0.05)
            yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def share_of_equal_texts(client: httpx.AsyncClient, spoken: Sequence[Spoken]) -> float:
    """The share of prompts that it goes on with PEFT's very tokens."""
    equal = 0
    for each in spoken:
        asked = {
            "prompt": each.ids[: each.start],
            "n_predict": NEW_TOKENS,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        answer = await client.post("/completion", json=asked)
        equal += answer.json()["tokens"] == each.ids[each.start :]
    return equal / len(spoken)


async def share_of_equal_cuts(client: httpx.AsyncClient, spoken: Sequence[Spoken]) -> float:
    """The share of prompts that it cuts into the same tokens."""
    equal = 0
    for each in spoken:
        answer = await client.post("/tokenize", json={"content": each.text, "parse_special": True})
        equal += answer.json()["tokens"] == each.prompt
    return equal / len(spoken)


async def _is_up(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
