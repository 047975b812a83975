"""The exception tree: one root, messages that say what to do, facts that survive pickling."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import jitmk
from jitmk import errors
from jitmk.errors import CompileError, JitmkError, KernelTimeoutError


def all_errors() -> list[type[Exception]]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_every_error_derives_from_the_root_and_is_exported() -> None:
    for kind in all_errors():
        assert issubclass(kind, JitmkError)
        assert getattr(jitmk, kind.__name__) is kind


def test_bad_arguments_are_value_errors_too() -> None:
    assert issubclass(errors.GenerationError, ValueError)
    assert issubclass(errors.ContextLengthError, ValueError)


def test_every_error_survives_pickling() -> None:
    for kind in all_errors():
        error = pickle.loads(pickle.dumps(kind("what went wrong")))
        assert type(error) is kind
        assert str(error) == "what went wrong"


def test_compile_error_carries_what_is_needed_to_act() -> None:
    error = CompileError("no", log="line 1", command=["nvcc", "-cubin"], source_path=Path("/x/kernel.cu"))
    error = pickle.loads(pickle.dumps(error))
    assert (error.log, error.command, error.source_path) == ("line 1", ("nvcc", "-cubin"), Path("/x/kernel.cu"))


def test_timeout_names_sm_role_instruction_and_operand() -> None:
    error = KernelTimeoutError.at(
        sm=7,
        role="consumer",
        instruction=42,
        opcode="MATVEC",
        operand="input word 3",
        deadline_ms=2000,
        detail="epoch 5, wanted 6",
    )
    for word in ("SM 7", "consumer", "42", "MATVEC", "input word 3", "2000 ms", "epoch 5, wanted 6"):
        assert word in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.sm, copy.role, copy.instruction, copy.opcode) == (7, "consumer", 42, "MATVEC")
    assert (copy.operand, copy.deadline_ms) == ("input word 3", 2000)
