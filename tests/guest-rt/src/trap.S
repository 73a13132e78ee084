.section .text.trap, "ax"
.code64

# 256 entry points, 16 bytes apart: error code (0 where the processor pushes none), vector.
.balign 16
.global trt_stubs
trt_stubs:
.set vector, 0
.rept 256
        .balign 16
        .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
        pushq   $0
        .endif
        pushq   $vector
        jmp     trap_common
        .set vector, vector + 1
.endr

trap_common:
        pushq   %rax
        pushq   %rbx
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %rbp
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, %rdi
        # The processor aligned RSP before its frame; 22 words later it is a multiple of 16 again.
        cld
        call    trt_trap
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rbp
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rbx
        popq    %rax
        addq    $16, %rsp
        iretq

# trt_try(body, argument): see trap.rs. The chain of callers is kept on the stack, so that calls nest.
.global trt_try
trt_try:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        pushq   trt_catch_rsp(%rip)
        movq    %rsp, trt_catch_rsp(%rip)
        movq    %rdi, %rax
        movq    %rsi, %rdi
        call    *%rax
        xorl    %eax, %eax
        jmp     1f
.global trt_caught
trt_caught:
        movl    $1, %eax
1:      movq    trt_catch_rsp(%rip), %rsp
        popq    trt_catch_rsp(%rip)
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret
