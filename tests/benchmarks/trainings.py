"""Complete trainings of E1 per second, all included: `python -m tests.benchmarks.trainings`.

A training is 784-32-10 for four epochs of MNIST. A sweep of 64 against one training by itself.
"""

from tests.benchmarks import QUICK, in_words, mnist_seconds, options, print_machine


def main() -> None:
    chosen = options("Complete trainings of E1 per second.", rounds=3).parse_args()
    quick = QUICK if chosen.quick else ()
    seeds = 1 if chosen.quick else 16
    print_machine()
    sweeps, alone = [], []
    for _ in range(1 if chosen.quick else chosen.rounds):
        sweeps.append(mnist_seconds("sweep", "--config", "mlp.yaml", "--seeds", str(seeds), *quick))
        alone.append(mnist_seconds("train", "--config", "mlp.yaml", *quick))
    runs = 4 * seeds  # four learning rates
    print(f"mnist sweep of {runs} trainings: {in_words(sweeps)} s")
    print(f"mnist train: {in_words(alone)} s")
    print(f"trainings per second in a sweep: {in_words([runs / seconds for seconds in sweeps])}")
    ratios = [runs * one / together for one, together in zip(alone, sweeps, strict=True)]
    print(f"ratio to as many `mnist train` one after another: {in_words(ratios)}")


if __name__ == "__main__":
    main()
