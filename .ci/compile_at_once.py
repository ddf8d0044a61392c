"""Imported by a package's setup: the files of its extensions are compiled on all processors at once."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from distutils.ccompiler import CCompiler
from typing import Any

_compile_in_turn = CCompiler.compile


def _compile_at_once(self: Any, *arguments: Any, **named: Any) -> list[str]:
    compile_one, jobs = self._compile, list[Future[None]]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        self._compile = lambda *one: jobs.append(pool.submit(compile_one, *one))
        objects: list[str] = _compile_in_turn(self, *arguments, **named)
    self._compile = compile_one
    for job in jobs:
        job.result()
    return objects


CCompiler.compile = _compile_at_once
