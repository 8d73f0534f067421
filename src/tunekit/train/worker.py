"""The entry of one rank: `python -m tunekit.train.worker plan.json data_folder [--quiet | --json]`, under torchrun."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tunekit.core.errors import TunekitError
from tunekit.core.files import write_json
from tunekit.data.prepare import Prepared
from tunekit.plan.plan import Plan
from tunekit.runs.layout import RunFolder
from tunekit.runs.screen import make_screen
from tunekit.train.launch import ERROR, OUTCOME, write_error
from tunekit.train.logs import library_logs_to
from tunekit.train.session import Session


def main(arguments: list[str]) -> int:
    """Runs this rank's session; rank 0 leaves the outcome, a failing rank its error."""
    plan_path, data_folder, *options = arguments
    plan = Plan.load(Path(plan_path))
    folder = RunFolder(Path(plan.run_dir))
    screen = make_screen(quiet="--quiet" in options, json="--json" in options)
    try:
        with library_logs_to(folder.log):
            session = Session(plan, Prepared(Path(data_folder)), screen)
            outcome = session.run()
            if session.rank == 0:
                write_json(folder.path / OUTCOME, dataclasses.asdict(outcome))
    except TunekitError as error:
        write_error(folder.path / ERROR, error)
        return error.exit_code
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
