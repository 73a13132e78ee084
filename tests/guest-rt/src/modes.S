# What is done in every mode. DS has base 0; all data is below 64 KiB, where 16-bit code reaches it.
.macro mode_body
        xorl    %eax, %eax
        xorl    %ecx, %ecx
        cpuid
        movl    %ebx, {EBX}
        movb    $0x5a, %al
        outb    %al, $0x80
        inb     $0xe9, %al
        movb    %al, {PORT}
        int     $0x42
        sti
        hlt
        cli
        incl    {DONE}
.endm

.section .text.modes, "ax"
.code64
# trt_run_mode(mode)
.global trt_run_mode
trt_run_mode:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movl    %edi, %esi
        pushq   $0x38
        pushq   $to_compatibility
        lretq

.code32
to_compatibility:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        testl   %esi, %esi
        jnz     leave_long_mode
        mode_body
        jmp     return_to_64

leave_long_mode:
        movl    %cr0, %eax
        andl    $0x7fffffff, %eax
        movl    %eax, %cr0
        movl    $0xc0000080, %ecx
        rdmsr
        andl    $~0x100, %eax
        wrmsr
        lidtl   idt32_pointer
        cmpl    $1, %esi
        je      pae
        movl    %cr4, %eax
        andl    $~0x20, %eax
        movl    %eax, %cr4
        cmpl    $2, %esi
        jne     to_16_bits
        mode_body
        jmp     return_to_long_mode

pae:
        movl    $pae_pdpt, %eax
        movl    %eax, %cr3
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        mode_body
        movl    %cr0, %eax
        andl    $0x7fffffff, %eax
        movl    %eax, %cr0
        jmp     return_to_long_mode

to_16_bits:
        movl    %esp, saved_esp
        movl    $0x48, %eax
        ljmpl   $0x40, $(low_protected16 - trt_low_start + 0x8000)

from_16_bits:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    saved_esp, %esp

return_to_long_mode:
        movl    %cr4, %eax
        orl     $0x20, %eax
        movl    %eax, %cr4
        movl    $trt_pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
return_to_64:
        ljmpl   $0x08, $returned_to_64

.global trt_soft32
trt_soft32:
        incl    {SOFT}
        iretl

.global trt_timer32
trt_timer32:
        incl    {TIMER}
        iretl

.code64
returned_to_64:
        # The upper half of RSP is undefined after 32-bit modes.
        movl    %esp, %esp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret

# Copied to 8000H: the 16-bit code. ESI still holds the mode, EAX the data selector.
.code16
.global trt_low_start
trt_low_start:
low_protected16:
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x8ef0, %esp
        cmpl    $3, %esi
        jne     low_to_real
        mode_body
        jmp     low_leave

low_to_real:
        lidtl   ivt_pointer - trt_low_start + 0x8000
        movl    %cr0, %eax
        andb    $0xfe, %al
        movl    %eax, %cr0
        ljmpw   $0, $(low_real - trt_low_start + 0x8000)
low_real:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        mode_body
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
low_leave:
        ljmpl   $0x38, $from_16_bits

.global trt_low_soft16
trt_low_soft16:
        incl    {SOFT}
        iretw
.global trt_low_timer16
trt_low_timer16:
        incl    {TIMER}
        iretw

# Real mode: DS is 0 here as well, but a handler must not rely on it.
.global trt_low_soft_real
trt_low_soft_real:
        incl    %cs:{SOFT}
        iretw
.global trt_low_timer_real
trt_low_timer_real:
        incl    %cs:{TIMER}
        iretw

.balign 4
ivt_pointer:
        .word 0x3ff
        .long 0xa000
.global trt_low_end
trt_low_end:

.section .data.modes, "aw"
.balign 8
idt32_pointer:
        .word 0x7ff
        .long 0xb000
.balign 32
# PAE: the four page directories of long mode serve as they are.
pae_pdpt:
        .quad trt_pd + 0x1, trt_pd + 0x1001, trt_pd + 0x2001, trt_pd + 0x3001
saved_esp:
        .long 0
