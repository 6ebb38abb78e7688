"""A search of E1 with halving, without it, and by Optuna over the loop that tutorials write.

`python -m tests.benchmarks.search`: 64 trials of learning rate, weight decay and betas, 8 epochs,
two seeds. Optuna's has the same sampler and the same pruner, one trial after another.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import fmean
from typing import Any

import optuna
import torch

from mnist_cli import config as configs
from mnist_cli.config import with_settings
from mnist_cli.data.dataset import load
from mnist_cli.models.modules import build
from tests.benchmarks import CPU, QUICK, in_words, options, print_machine

BETAS = ([0.8, 0.999], [0.9, 0.999], [0.95, 0.999])
SPACE = (
    *("lr=log:1e-4:1e-1", "weight_decay=log:1e-6:1e-2"),
    f"betas={','.join(map(str, BETAS))}",
)
SEEDS, RUNGS, FACTOR = 2, (1, 4), 4


def timed(*argv: str) -> tuple[float, dict[str, Any]]:
    """How long a process takes, and the JSON document that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", *argv],
            env={**os.environ, "MNIST_RUNS_DIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start, json.loads(ended.stdout)


def peer(trials: int, sampler_seed: int, quick: bool) -> None:
    """Optuna over a plain loop; prints the best accuracy."""
    torch.set_num_threads(1)
    base = configs.load("mlp", [*QUICK[:2] * quick, "train.epochs=8"]).config
    data = load(base.data, CPU, lambda _: None)
    images = data.train.images.float() / 255
    loaders = torch.utils.data.TensorDataset(images, data.train.labels)

    def objective(trial: optuna.Trial) -> float:
        settings = {
            "optimizer.lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
            "optimizer.weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
            "optimizer.betas": json.loads(
                trial.suggest_categorical("betas", list(map(json.dumps, BETAS)))
            ),
        }
        config = with_settings(base, settings)
        models = [build(config.model, data.shape, len(data.classes), s) for s in range(SEEDS)]
        optimizers = [
            torch.optim.Adam(m.parameters(), **config.optimizer.model_dump(exclude={"name"}))
            for m in models
        ]
        best = [0.0] * SEEDS
        for epoch in range(1, 9):
            for seed, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                loader = torch.utils.data.DataLoader(loaders, 64, shuffle=True)
                for x, y in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                with torch.no_grad():
                    logits = model(data.val.images.float() / 255)
                found = (logits.argmax(1) == data.val.labels).float().mean().item()
                best[seed] = max(best[seed], found)
            trial.report(fmean(best), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return fmean(best)

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=sampler_seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(RUNGS[0], FACTOR),
    )
    study.optimize(objective, trials)
    print(json.dumps({"val/acc": study.best_value}))


def main() -> None:
    parser = options("A search with halving, without, and Optuna over a plain loop.", rounds=3)
    parser.add_argument("--peer", type=int, metavar="SEED")
    parser.add_argument("--no-peer", action="store_true", help="leave Optuna's own out")
    chosen = parser.parse_args()
    quick = chosen.quick
    trials = 8 if quick else 64
    if chosen.peer is not None:
        peer(trials, chosen.peer, quick)
        return
    print_machine()
    times: dict[str, list[float]] = {}
    for seed in range(1 if quick else chosen.rounds):
        own = ("mnist_cli", "search", "-c", "mlp", *SPACE, "--seeds", str(SEEDS), "--json")
        own += (f"--trials={trials}", f"search.seed={seed}", *QUICK[:2] * quick, "--epochs=8")
        commands: dict[str, tuple[str, ...]] = {
            "halving": own,
            "all trials": (*own, "--pruner", "none"),
        }
        if not chosen.no_peer:
            peers = ("tests.benchmarks.search", "--peer", str(seed), *["--quick"] * quick)
            commands["Optuna"] = peers
        for name, command in commands.items():
            seconds, document = timed(*command)
            times.setdefault(name, []).append(seconds)
            accuracy = document.get("val/acc") or best_mean(document)
            tested = document.get("best", {}).get("test/acc")
            shown = f", test acc {tested:.2%}" if tested else ""
            print(f"seed {seed}, {name}: {seconds:.1f} s, val acc {accuracy:.2%}{shown}")
    for name in [name for name in times if name != "halving"]:
        ratios = [a / b for a, b in zip(times["halving"], times[name], strict=True)]
        print(f"halving / {name}: {in_words(ratios, 3)}")


def best_mean(document: dict[str, Any]) -> float:
    """The mean validation accuracy of the winner over its seeds."""
    keys = ("optimizer.lr", "optimizer.weight_decay")
    rows = document["trials"]
    same = [row for row in rows if all(row[key] == document["best"][key] for key in keys)]
    return fmean(row["val/acc"] for row in same)


if __name__ == "__main__":
    main()
