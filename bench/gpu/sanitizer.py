"""compute-sanitizer over two small problems: accesses out of bounds, and races in shared memory.

As a program (``python -m bench.gpu.sanitizer DEVICE BACKEND``) it is what the tool watches.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from bench.gpu.device_tests import NOT_RUN, row_of_test
from bench.gpu.smoke import EACH_ONE, USUAL, smoke_tasks
from bench.gpu.tasks import Rows
from bench.measuring.sweep import BuiltFunctions
from bench.places import ROOT

TOOLS = ("memcheck", "racecheck")
_NAME = "compute-sanitizer"
# Where toolkits put it that leave PATH as it is.
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")
_FOUND = 99  # exit status where the tool has found something
_DTYPE = "bfloat16"


def sanitizer_name(tool: str) -> str:
    """What the row of one of TOOLS is called."""
    return f"{_NAME} {tool}"


def sanitize(tool: str, seconds: float, device: str, backend: str = "triton") -> Rows:
    """The row of one of TOOLS, which has so many seconds."""
    name = sanitizer_name(tool)
    program = shutil.which(_NAME) or shutil.which(_NAME, path=os.pathsep.join(_FOLDERS))
    if program is None:
        return [row_of_test(name, "skipped", f"{_NAME} is neither on PATH nor where CUDA puts it")]
    command = [program, "--tool", tool, "--error-exitcode", str(_FOUND)]
    command += [sys.executable, "-m", "bench.gpu.sanitizer", device, backend]
    # What PyTorch keeps for later would hide what lies beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin = time.monotonic()
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(seconds, 1.0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [row_of_test(name, NOT_RUN, "no time left", seconds)]
    took = round(time.monotonic() - begin, 1)
    if ended.returncode == 0:
        return [row_of_test(name, "passed", seconds=took)]
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    # The tool's own lines begin so; the first of them that is no banner says what it is.
    told = [line for line in lines if line.startswith("=========")][1:] or lines[-3:]
    outcome = "failed" if ended.returncode == _FOUND else "error"
    what = " ".join(told[:6])[:500]
    return [row_of_test(name, outcome, f"ended with code {ended.returncode}: {what}", took)]


def main(arguments: list[str]) -> None:
    """Run a batch alone in label order, and one with references, once; 1 if a result is wrong."""
    device, backend = arguments
    wanted = {f"self, {EACH_ONE}", f"references, {USUAL}"}
    wrong = []
    for task in smoke_tasks(device, backend):
        if task.case.dtype == _DTYPE and wanted & {*task.variants}:
            wrong += [row["status"] for row in task.run(BuiltFunctions()) if row["status"] != "ok"]
    if wrong:
        sys.exit(f"{wrong}")


if __name__ == "__main__":
    main(sys.argv[1:])
