"""What batching in the model in process gives, and what the service's own work costs beside a bare generation loop.

`python -m bench.pythia` prints Markdown; `--shape 70m` measures a model of that Pythia's shape with random weights.
All arms take turns in one process, on the same weights and threads, greedily and up to the same number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from services.inference.backend import Identity, Kind, ModelInfo
from services.inference.backends.pythia import PythiaBackend, PythiaLimits
from services.inference.chat import ChatCall, Finish, Message, Role, Sampling, Text
from services.inference.config import EMBEDDED_MODEL_DIR
from services.inference.pythia.engine import Engine
from services.inference.pythia.holding import Holding
from services.inference.pythia.weights import check

CONCURRENT: Final = 8
SHAPES: Final = {"70m": (512, 6, 8), "160m": (768, 12, 12), "410m": (1024, 24, 16)}
"""Width, layers and heads of the published models."""
VOCABULARY: Final = 50304
PROMPTS: Final = tuple(
    f"Count from {number} on, and tell me about the sea, the sky and the road."
    for number in range(CONCURRENT)
)

# Unknown to every stub: transformers and torch are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens per second of each arm: the medians of the rounds."""

    model: str
    bare: float
    """The faster of transformers' generate and a loop of passes."""
    single: float
    sequential: float
    concurrent: float

    @property
    def single_share(self) -> float:
        """How much of the bare loop's speed one stream has; the goal is 0.95."""
        return self.single / self.bare

    @property
    def gain(self) -> float:
        """How many times faster eight texts at once are than one after the other; the goal is 3."""
        return self.concurrent / self.sequential


def random_model(shape: str, folder: Path) -> Path:
    """Write a model of a published shape with random weights and the demo's tokenizer; it never ends by itself."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    width, layers, heads = SHAPES[shape]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_MODEL_DIR / name, folder)
    demo = json.loads((EMBEDDED_MODEL_DIR / "config.json").read_text())
    torch.manual_seed(1)
    model: Untyped = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=2048,
        )
    )
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        # Neither an end nor a token that the tokenizer does not have is ever the likeliest.
        weight[:8] = 0
        weight[demo["vocab_size"] :] = 0
    model.save_pretrained(folder)
    return folder


def bare_loops(engine: Engine, ids: list[int], tokens: int) -> dict[str, Callable[[], float]]:
    """Give what a person would write by hand, each timed for `tokens` tokens after `ids`."""
    import torch

    model, prompt = engine.model, torch.tensor([ids])

    def generate() -> float:
        started = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )
        return time.perf_counter() - started

    def passes() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            output = model(prompt, use_cache=True)
            for _ in range(tokens - 1):
                token = output.logits[:, -1:].argmax(-1)
                output = model(token, past_key_values=output.past_key_values, use_cache=True)
            int(output.logits[0, -1].argmax())
        return time.perf_counter() - started

    return {"generate": generate, "passes": passes}


async def measure_model(directory: Path, *, tokens: int, rounds: int, threads: int) -> Figures:
    """Measure one model; every round runs every arm."""
    holding = Holding(device="cpu", threads=threads)
    backend = PythiaBackend(
        Identity("bench", Kind.PYTHIA), directory, directory.name, holding=holding, limits=PythiaLimits()
    )
    (model,) = (await backend.look()).models
    engine = Engine(check(directory), holding)
    loops = bare_loops(engine, engine.encode([{"role": "user", "content": PROMPTS[0]}]), tokens)

    async def one(prompt: str) -> int:
        return await _drawn(backend, model, prompt, tokens)

    async def sequential() -> int:
        return sum([await one(prompt) for prompt in PROMPTS])

    async def concurrent() -> int:
        return sum(await asyncio.gather(*(one(prompt) for prompt in PROMPTS)))

    taken: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        speeds = {name: tokens / await asyncio.to_thread(loop) for name, loop in loops.items()}
        speeds["single"] = await _speed(lambda: one(PROMPTS[0]))
        speeds["sequential"] = await _speed(sequential)
        speeds["concurrent"] = await _speed(concurrent)
        if turn:  # the first round only warms up
            for name, speed in speeds.items():
                taken.setdefault(name, []).append(speed)
    await backend.aclose()
    medians = {name: statistics.median(speeds) for name, speeds in taken.items()}
    return Figures(
        directory.name,
        max(medians["generate"], medians["passes"]),
        medians["single"],
        medians["sequential"],
        medians["concurrent"],
    )


async def _drawn(backend: PythiaBackend, model: ModelInfo, prompt: str, tokens: int) -> int:
    call = ChatCall(
        (Message(Role.USER, (Text(prompt),)),),
        Sampling(temperature=0.0, max_output_tokens=tokens),
        stream=True,
    )
    drawn = 0
    async for event in backend.chat(call, model, lambda: None):
        if isinstance(event, Finish):
            drawn = event.usage.output_tokens or 0
    return drawn


async def _speed(arm: Callable[[], Coroutine[Any, Any, int]]) -> float:
    started = time.perf_counter()
    drawn = await arm()
    return drawn / (time.perf_counter() - started)


def lines(figures: Figures) -> list[str]:
    """Write Markdown rows."""
    speeds = (figures.bare, figures.single, figures.sequential, figures.concurrent)
    bare, single, sequential, concurrent = (f"{speed:.0f}" for speed in speeds)
    share, gain = f"{figures.single_share:.2f}", f"{figures.gain:.1f}"
    cells = (figures.model, bare, single, share, sequential, concurrent, gain)
    return [
        f"| model | bare loop tok/s | one stream tok/s | of it | in turn tok/s | {CONCURRENT} at once tok/s | gain |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {' | '.join(cells)} |",
    ]


def document(figures: Figures) -> dict[str, object]:
    """Give the figures by name."""
    return {**asdict(figures), "single_share": figures.single_share, "gain": figures.gain}


def measure(shape: str = "70m", *, tokens: int = 64, rounds: int = 5, threads: int = 1) -> Figures:
    """Measure a model of a published shape."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / f"pythia-{shape}-random"
        folder.mkdir()
        random_model(shape, folder)
        return asyncio.run(measure_model(folder, tokens=tokens, rounds=rounds, threads=threads))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="70m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    figures = measure(given.shape, tokens=given.tokens, rounds=given.rounds, threads=given.threads)
    print("\n".join(lines(figures)))
    print(
        f"\n{platform.processor() or platform.machine()}, {given.threads} threads, {given.tokens} tokens each"
    )


if __name__ == "__main__":
    main()
