"""The reader of disassembled code finds loops and spills, and does not mistake cold ones for hot ones."""

from __future__ import annotations

from tests.support.sass import Loop, before_looks, main_loops, product_stretches, tensor_instructions

_LISTING = """
        .section        .text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   LDL R1, [R2] ;
.L_outer:
        /*0010*/                   MOV R3, R4 ;
.L_inner:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/              @P0  BRA `(.L_wait) ;
{hot}
        /*0050*/              @P1  BRA `(.L_inner) ;
        /*0060*/              @P2  BRA `(.L_outer) ;
        /*0070*/                   EXIT ;
.L_wait:
        /*0080*/              @P3  BRA `(.L_wait) ;
        /*0090*/                   BRA `(.L_inner) ;
        .section        .text.report,"ax",@progbits
        /*0000*/                   STL [R1], R2 ;
        /*0010*/                   EXIT ;
"""


def _listing(*hot: str) -> str:
    return _LISTING.replace("{hot}", "\n".join(f"        /*0040*/                   {line} ;" for line in hot))


def test_a_clean_loop() -> None:
    listing = _listing("IADD3 R1, R1, 1, RZ")
    assert main_loops(listing) == [Loop(4, 1, ())]
    assert tensor_instructions(listing) == 1


def test_a_spill_in_the_loop_is_found() -> None:
    (loop,) = main_loops(_listing("LDL.LU R42, [R1+0x8]", "STL [R1], R7"))
    assert loop.spills == ("LDL.LU R42, [R1+0x8]", "STL [R1], R7")


def test_a_spill_on_the_way_to_the_report_is_cold() -> None:
    (loop,) = main_loops(_listing("@P4 BRA `(.L_inner)", "LDL R4, [R1]", "CALL.REL.NOINC `(report)", "EXIT"))
    assert loop.spills == ()


def test_no_tensor_instruction_no_main_loop() -> None:
    assert main_loops(_listing().replace("HMMA", "FFMA")) == []


def test_products_close_to_each_other_are_one_stretch() -> None:
    product = "HMMA.16816.F32.BF16 R4, R8, R12, R4"
    far = ["MOV R1, R2"] * 40
    assert product_stretches(_listing("LDL R4, [R1]", product)) == [Loop(4, 2, ("LDL R4, [R1]",))]
    assert product_stretches(_listing(*far, "STL [R1], R4", product)) == [Loop(1, 1, ()), Loop(1, 1, ())]


def test_what_a_look_waits_for_is_found() -> None:
    look = "LDG.E.128.STRONG.GPU R20, desc[UR32][R24.64]"
    assert before_looks(_listing("IADD3 R1, R1, 1, RZ")) == []
    inner, outer, again = before_looks(_listing("LDS R8, [UR16]", look, "LDS R9, [UR16]"))
    assert inner[-1] == "LDS R8, [UR16]" and len(inner) == 3 and again == inner
    assert outer == ("MOV R3, R4", *inner)
