"""Rebuild the shipped weights: `make classifier DATA=DIR`; half an hour on two free cores.

Writes model.onnx, tokenizer.json, calibration.json and training_report.json. Without `--data` only the project's own
lines are learnt from, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

import torch

from scripts.classifier.calibration import Scored, choose_thresholds, fit_temperatures, write_calibration
from scripts.classifier.corpus import Corpus, halves_of, independent_examples, make_corpus, without
from scripts.classifier.documents import refit
from scripts.classifier.encoding import encode, load_tokenizer
from scripts.classifier.examples import Example
from scripts.classifier.export import export, export_tokenizer
from scripts.classifier.network import Classifier, make_classifier
from scripts.classifier.report import training_report
from scripts.classifier.scoring import ask
from scripts.classifier.training import Plan, answer, labels_of, train

DESTINATION: Final = Path(__file__).parents[2] / "constitution" / "classifier"


def main(arguments: list[str] | None = None) -> int:
    """Train, export, calibrate and report; or estimate without some sources, writing nothing but figures."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    # Values next to nothing would cost the processor more than any others.
    torch.set_flush_denormal(True)
    corpus = make_corpus(options.data, options.seed)
    if options.without:
        return _estimate(corpus, set(options.without), _plan(options))
    began = time.monotonic()
    model, categories = _trained(corpus.train, _plan(options))
    options.out.mkdir(parents=True, exist_ok=True)
    export(model, options.out / "model.onnx")
    refit(options.out / "model.onnx", corpus.train, options.seed)
    export_tokenizer(options.out / "tokenizer.json")
    calibrate(corpus, categories, options.out, options.data, _plan(options))
    _say(f"done in {(time.monotonic() - began) / 60:.0f} minutes")
    return 0


def calibrate(corpus: Corpus, categories: list[str], out: Path, data: Path | None, plan: Plan) -> None:
    """Choose temperatures and thresholds for the exported file, and write them with the report."""
    development = [*corpus.development, *independent_examples()]
    _say(f"ask the exported model {len(development)} development texts")
    scored = Scored(development, ask(out / "model.onnx", encode(development, load_tokenizer())))
    temperatures = fit_temperatures(scored)
    halves = halves_of(development)
    windows = Scored(halves, ask(out / "model.onnx", encode(halves, load_tokenizer())))
    thresholds = choose_thresholds(scored, windows, temperatures)
    write_calibration(out / "calibration.json", categories, temperatures, thresholds)
    report = training_report(corpus, scored, temperatures, thresholds, data, plan)
    (out / "training_report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _trained(examples: list[Example], plan: Plan) -> tuple[Classifier, list[str]]:
    categories = sorted({example.category for example in examples if example.category})
    encoded = encode(examples, load_tokenizer())
    torch.manual_seed(plan.seed)
    model = make_classifier(len(categories))
    _say(f"train on {len(examples)} texts for {plan.epochs} epochs")
    train(model, encoded, labels_of(examples, categories), plan, _say)
    return model, categories


def _estimate(corpus: Corpus, sources: set[str], plan: Plan) -> int:
    """Train without these sources and say how the model does on them: what a source that nobody saw would get."""
    unseen = [example for example in [*corpus.train, *corpus.development] if example.source in sources]
    model, _ = _trained(without(corpus.train, sources), plan)
    logits = answer(model, encode(unseen, load_tokenizer())).astype("float64")
    for source in sorted(sources):
        for label in (0, 1):
            chosen = [row for row, e in enumerate(unseen) if e.source == source and e.unsafe == label]
            if chosen:
                share = float((logits[chosen, 0] > 0).mean())
                _say(
                    f"{source} {'harmful' if label else 'harmless'}: {share:.3f} of {len(chosen)} over one half"
                )
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(epochs=options.epochs, seed=options.seed)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.classifier", description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with train, dev and dev_ood.jsonl.gz")
    parser.add_argument("--out", type=Path, default=DESTINATION, help="where to write the four files")
    parser.add_argument("--epochs", type=int, default=Plan().epochs)
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--without", nargs="*", default=[], help="leave these sources out and estimate on them"
    )
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
