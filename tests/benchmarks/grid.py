"""Stacks against the same runs one after another, over many shapes: where does it not pay?

`python -m tests.benchmarks.grid` takes about ten minutes.
"""

from itertools import product

import torch

from mnist_cli import config as configs
from mnist_cli.engine.device import threaded
from mnist_cli.sweeps.bench import Variant, bench_data, engine, stack_variant, step_seconds
from tests.benchmarks import CPU, in_words, options, print_machine

MODELS = {
    "logistic": "logistic",
    "mlp 32": "{name: mlp, hidden: [32]}",
    "mlp 512-256": "{name: mlp, hidden: [512, 256]}",
    "cnn": "cnn",
}


def main() -> None:
    chosen = options("Stacks against the same runs one after another.", rounds=5).parse_args()
    quick = chosen.quick
    print_machine()
    with threaded(1):  # as in `bench`, before it forks
        torch.optim.SGD([torch.zeros(1)])
        data = bench_data(2560 if quick else 75 * 1024, CPU)
        cells: dict[tuple[str, int], list[Variant]] = {}
        for model, batch in product(MODELS, (64,) if quick else (16, 64, 512)):
            config = configs.load_text(
                f"model: {MODELS[model]}\ndata: {{name: mnist, batch_size: {batch}}}\n"
                "optimizer: {name: adam, lr: 1e-4}\ntrain: {epochs: 4}",
                model,
            )
            counts = (1, 2) if quick else (1, 2, 4, 16)
            cells[model, batch] = [stack_variant(config, runs, data) for runs in counts]
        for _ in range(1 if quick else chosen.rounds):
            for variants in cells.values():
                for variant in variants:
                    seconds = step_seconds(variant, engine, data, 0.01 if quick else 0.06)
                    variant.step_s.append(seconds)
    print("ratio: time of runs together / time of the same runs one after another")
    slower = 0
    for (model, batch), (alone, *stacks) in cells.items():
        for stack in stacks:
            runs, pairs = len(stack.configs), zip(stack.step_s, alone.step_s, strict=True)
            ratios = [together / (runs * one) for together, one in pairs]
            slower += sorted(ratios)[len(ratios) // 2] >= 1
            print(f"{model:12} batch {batch:3}, {runs:2} runs: ratio {in_words(ratios, 3)}")
    print(f"together is slower in {slower} of them")


if __name__ == "__main__":
    main()
