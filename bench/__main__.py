"""`python -m bench NAME`: run a benchmark and print its table."""

import argparse

from bench import chain, operators

BENCHMARKS = {"chain": chain, "operators": operators}


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        module.add_arguments(subparsers.add_parser(name, help=module.__doc__.splitlines()[0]))
    arguments = parser.parse_args()
    BENCHMARKS[arguments.name].run(arguments)


if __name__ == "__main__":
    main()
