"""Everything the training script does, in order: data, tokenizer, training, files, scores, report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

from scripts.embedded import network, publish, scoring, tokens, training
from scripts.embedded.dialogue import Curriculum
from scripts.embedded.wording import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scripts.embedded.scoring import Score

DEFAULT_FOLDER: Final = Path("services/inference/embedded/model")
DEFAULT_STEPS: Final = 5400
DEFAULT_SEED: Final = 1
_TOKENIZER_CONVERSATIONS: Final = 40_000
_SCORED_QUESTIONS: Final = 1000


def run(arguments: Sequence[str], report: Callable[[str], None]) -> None:
    """Trains, scores and writes the embedded model as the arguments say; one thread, deterministic kernels."""
    parser = argparse.ArgumentParser(description="Train the embedded demo model and write its files.")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_STEPS, help="training batches (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="seed of all randomness (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    _make(options.out, options.steps, options.seed, report)


def _make(folder: Path, steps: int, seed: int, report: Callable[[str], None]) -> None:
    started_wall, started_cpu = time.perf_counter(), time.process_time()
    curriculum = Curriculum()
    rng = Random(seed)
    texts = (m.content for _ in range(_TOKENIZER_CONVERSATIONS) for m in curriculum.conversation(rng))
    tokenizer = tokens.train_tokenizer(texts, network.VOCABULARY)
    model = network.build_model(tokenizer.get_vocab_size(), seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = training.train(model, training.batches(curriculum, tokenizer, seed + 1), steps, report)
    folder.mkdir(parents=True, exist_ok=True)
    network.save_model(model, folder)
    tokens.save_tokenizer(tokenizer, folder)
    report("scoring the saved files")
    scores = _scores(folder, curriculum, seed)
    command = f"python -m scripts.train_embedded_model --steps {steps} --seed {seed}"
    wall, cpu = time.perf_counter() - started_wall, time.process_time() - started_cpu
    publish.write_report(
        folder, publish.Run(command, seed, curriculum, record, scores, parameters, wall, cpu)
    )
    publish.write_manifest(folder, seed)
    report("; ".join(f"{score.name} {score.right}/{score.asked}" for score in scores))


def _scores(folder: Path, curriculum: Curriculum, seed: int) -> tuple[Score, ...]:
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    responder = scoring.Responder(model, PreTrainedTokenizerFast.from_pretrained(folder))
    splits = (Split.COMBINATION, Split.DEV, Split.TEST)
    scored = [
        scoring.score_split(responder, curriculum, split, _SCORED_QUESTIONS, seed + 2) for split in splits
    ]
    return (*scored, scoring.score_free_prompts(responder))
