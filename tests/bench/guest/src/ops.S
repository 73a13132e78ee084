# Loops that store what RDTSC says about an operation: bench_NAME(results, count, argument). The operation finds the argument in
# R15 and may change RAX, RBX, RCX, RDX, RSI, RDI, RBP and R8 to R11. It runs once between two XCHG BX, BX, for whoever traces,
# unless it is nothing.

.macro enter name
        .global bench_\name
bench_\name:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        mov     r13, rdi
        mov     r12d, esi
        mov     r15, rdx
.endm

.macro leave_now
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret
.endm

.macro timed operation
        rdtsc
        mov     r14d, eax
        \operation
        rdtsc
        sub     eax, r14d
        mov     [r13], eax
        add     r13, 4
.endm

.macro marked operation
        .ifnb   \operation
        xchg    bx, bx
        \operation
        xchg    bx, bx
        .endif
.endm

# In the last iteration of a loop.
.macro mark_last operation
        .ifnb   \operation
        cmp     r12d, 1
        jne     3f
        xchg    bx, bx
3:
        .endif
.endm

# The same instruction again and again.
.macro again name, operation
        enter   \name
2:      mark_last "\operation"
        timed   "\operation"
        mark_last "\operation"
        dec     r12d
        jnz     2b
        leave_now
.endm

# Each instruction for the first time; the count is not looked at.
.macro once_each name, operation
        enter   \name
        .rept   {total}
        timed   "\operation"
        .endr
        marked  "\operation"
        leave_now
.endm

.pushsection .text.bench_ops, "ax"

again empty, ""
again cpuid, "xor eax, eax; cpuid"
again pio_out, "out 0x80, al"
again mmio_write, "mov [r15], eax"
again mmio_read, "mov eax, [r15]"
once_each mmio_write_first, "mov [r15], eax"
once_each mmio_read_first, "mov eax, [r15]"

# An interrupt to itself through x2APIC; the handler sets EBX. R15 is the vector.
.macro self_ipi
        xor     ebx, ebx
        mov     ecx, 0x83f
        mov     eax, r15d
        xor     edx, edx
        wrmsr
3:      test    ebx, ebx
        jz      3b
.endm
        enter   self_ipi
        sti
2:      timed   self_ipi
        dec     r12d
        jnz     2b
        marked  self_ipi
        cli
        leave_now

        .global bench_self_ipi_handler
bench_self_ipi_handler:
        handle_interrupt

# The end of an interrupt that only wakes.
        .global bench_wake_handler
bench_wake_handler:
        end_interrupt
        iretq

.popsection
