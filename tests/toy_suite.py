"""A suite to test with: it plays nothing, and has a claim of every verdict."""

from rich.progress import Progress

from llmcluster.experiments.statistics import Interval
from llmcluster.experiments.suites.suite import Claim, Plot, SuiteResult

NAN = float("nan")


def run(episodes: int, seed: int, progress: Progress) -> SuiteResult:
    bar = progress.add_task("toy", total=1)
    progress.advance(bar)
    return SuiteResult(
        "toy",
        "A toy | with a bar",
        (
            Claim("It is faster (§ 1)", "up to 20 %", Interval(12.345, 10.0, 15.0), "%", "reproduced", "as it is"),
            Claim("It is cheaper", "2 times", Interval(1234.5, NAN, NAN), "J", "partly", "one seed"),
            Claim("It flies", "always", Interval(NAN, NAN, NAN), "", "not reproduced", "no | wings"),
        ),
        {
            "Speed": (
                {"agent": "a", "load": 1.0, "speed": float(episodes)},
                {"agent": "a", "load": 2.0, "speed": float(seed)},
                {"agent": "b", "load": 1.0, "speed": NAN},
            ),
            "Nothing": (),
        },
        ("The paper does not say which wings.",),
        (
            Plot("Speed by load", "Speed", "load", ("speed",), by="agent"),
            Plot("Bars", "Speed", "agent", ("speed",), kind="bars"),
        ),
    )
