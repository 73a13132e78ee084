# What guests do with an interrupt: for `ops.S`, and for `guest.S` of the benchmark's own VMM.

# EOI, with all registers as they were.
.macro end_interrupt
        push    rax
        push    rcx
        push    rdx
        mov     ecx, 0x80b
        xor     eax, eax
        xor     edx, edx
        wrmsr
        pop     rdx
        pop     rcx
        pop     rax
.endm

# A whole handler: whoever waits for the interrupt looks at EBX.
.macro handle_interrupt
        end_interrupt
        mov     ebx, 1
        iretq
.endm
