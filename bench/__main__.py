"""`python -m bench`: the benchmark of training steps; `python -m bench NAME`: another one."""

import argparse

from bench import blocks, chain, gpu, operators, steps

BENCHMARKS = {"blocks": blocks, "chain": chain, "gpu": gpu, "operators": operators}


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=steps.__doc__)
    steps.add_arguments(parser)
    subparsers = parser.add_subparsers(dest="name", title="other benchmarks", metavar="NAME")
    for name, module in BENCHMARKS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(subparsers.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args()
    BENCHMARKS.get(arguments.name, steps).run(arguments)


if __name__ == "__main__":
    main()
