"""``python -m bench COMMAND``: every number in the README and the docs comes from here."""

from __future__ import annotations

import argparse
import sys

from bench.classes import command as classes
from bench.distributed import command as distributed
from bench.evaluate import command as evaluate
from bench.gpu import command as gpu
from bench.kernels import command as kernels
from bench.launches import command as launches
from bench.loss import command as loss
from bench.losses import command as losses
from bench.quick import command as quick
from bench.report import command as report
from bench.reporting.errors import UserError
from bench.tune import command as tune

# A command is a module with HELP, add_arguments(parser) and run(arguments).
COMMANDS = {
    "quick": quick,
    "loss": loss,
    "losses": losses,
    "class": classes,
    "distributed": distributed,
    "evaluate": evaluate,
    "kernels": kernels,
    "launches": launches,
    "gpu": gpu,
    "tune": tune,
    "report": report,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 on success, 1 with a message for what the user can put right.

    Without one, say which there are.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        parsed.run(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
