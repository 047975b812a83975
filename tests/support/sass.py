"""Reads disassembled machine code: where its loops and its products are, and what runs in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECTION = re.compile(r"^\s*\.section\s")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
_TENSOR = re.compile(r"\bHMMA\b")
_SPILL = re.compile(r"\b(?:STL|LDL)\b")
_LOOK = re.compile(r"\bLDG\.E\.128\.STRONG\.GPU\b")
_POLL = 100  # instructions of a loop that polls, at most
_LEAVES = re.compile(r"\b(?:BRA|EXIT|RET|BRX|JMP)\b")
_CALL = re.compile(r"\bCALL\b")
_GAP = 32  # instructions between two tensor instructions of one stretch


@dataclass(frozen=True)
class Loop:
    """An innermost loop around tensor-core instructions, or a stretch of them, and the spills in its hot part."""

    instructions: int
    tensor: int
    spills: tuple[str, ...]


@dataclass
class _Function:
    instructions: list[str]
    labels: dict[str, int]


def main_loops(listing: str) -> list[Loop]:
    """The innermost loops around tensor-core instructions in what `nvdisasm -c` prints.

    A spill is not counted where the straight line that it stands on ends in a call: the only function that is not
    inlined writes the report of a hang, after which nothing needs to be fast.
    """
    return [loop for function in _functions(listing) for loop in _main_loops(function)]


def product_stretches(listing: str) -> list[Loop]:
    """Every tensor-core instruction with its neighbours: from one to the next where little lies between them."""
    return [stretch for function in _functions(listing) for stretch in _product_stretches(function)]


def before_looks(listing: str) -> list[tuple[str, ...]]:
    """Of each short loop that polls pairs of words, the instructions in front of the first load of a look."""
    found = []
    for function in _functions(listing):
        text = function.instructions
        for begin, end in _loops(function):
            looks = [i for i in range(begin, end + 1) if _LOOK.search(text[i])]
            if looks and end - begin < _POLL:
                found.append(tuple(text[begin : looks[0]]))
    return found


def tensor_instructions(listing: str) -> int:
    """How many tensor-core instructions there are in all."""
    return sum(bool(_TENSOR.search(text)) for function in _functions(listing) for text in function.instructions)


def _functions(listing: str) -> list[_Function]:
    functions = [_Function([], {})]
    for line in listing.splitlines():
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if _SECTION.match(line):
            functions.append(_Function([], {}))
        elif label:
            functions[-1].labels[label[1]] = len(functions[-1].instructions)
        elif instruction:
            functions[-1].instructions.append(instruction[1])
    return [function for function in functions if function.instructions]


def _loops(function: _Function) -> list[tuple[int, int]]:
    """First and last instruction of what a branch goes back to."""
    found = []
    for at, instruction in enumerate(function.instructions):
        branch = _BRANCH.search(instruction)
        begin = function.labels.get(branch[1], at + 1) if branch else at + 1
        if begin <= at:
            found.append((begin, at))
    return found


def _main_loops(function: _Function) -> list[Loop]:
    text = function.instructions
    tensor = [i for i, instruction in enumerate(text) if _TENSOR.search(instruction)]
    spans = [(begin, end) for begin, end in _loops(function) if any(begin <= i <= end for i in tensor)]
    inner = [(b, e) for b, e in spans if not any((x, y) != (b, e) and b <= x and y <= e for x, y in spans)]
    return [
        Loop(
            end - begin + 1,
            sum(begin <= i <= end for i in tensor),
            tuple(text[i] for i in range(begin, end + 1) if _SPILL.search(text[i]) and not _leads_to_call(text, i)),
        )
        for begin, end in sorted(set(inner))
    ]


def _product_stretches(function: _Function) -> list[Loop]:
    text = function.instructions
    stretches: list[list[int]] = []
    for at in (i for i, instruction in enumerate(text) if _TENSOR.search(instruction)):
        if stretches and at - stretches[-1][-1] <= _GAP:
            stretches[-1].append(at)
        else:
            stretches.append([at])
    return [
        Loop(last - first + 1, len(tensor), tuple(i for i in text[first : last + 1] if _SPILL.search(i)))
        for tensor in stretches
        for first, last in [(tensor[0], tensor[-1])]
    ]


def _leads_to_call(text: list[str], at: int) -> bool:
    for instruction in text[at:]:
        if _CALL.search(instruction):
            return True
        if _LEAVES.search(instruction):
            return False
    return False
