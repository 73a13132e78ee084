.section .text.user, "ax"
.code64

# System call number of "leave ring 3 with this result".
.set LEAVE, -1

# trt_enter_user(body, argument, stack): the caller's context waits on its stack until the user's last call.
.global trt_enter_user
trt_enter_user:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, user_caller_rsp(%rip)
        movq    %rdi, %rax
        movq    %rsi, %rdi
        pushq   $0x23                   # SS: user data
        pushq   %rdx                    # RSP
        pushq   $0x202                  # RFLAGS: IF
        pushq   $0x2b                   # CS: user code
        leaq    trt_user_start(%rip), %rcx
        pushq   %rcx
        iretq

# Ring 3.
trt_user_start:
        xorl    %ebp, %ebp
        call    *%rax
        movq    %rax, %rdi
        movq    $LEAVE, %rax
        syscall
        ud2

.global trt_syscall_entry
trt_syscall_entry:
        swapgs
        movq    %rsp, %gs:8
        movq    %gs:0, %rsp
        cmpq    $LEAVE, %rax
        je      leave_user
        pushq   %rcx
        pushq   %r11
        movq    %rdi, %rsi
        movq    %rax, %rdi
        call    trt_system_call
        popq    %r11
        popq    %rcx
        movq    %gs:8, %rsp
        swapgs
        sysretq

leave_user:
        swapgs
        movq    %rdi, %rax
        movq    user_caller_rsp(%rip), %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret

# RSP comes from IA32_SYSENTER_ESP; RCX is the user's stack, RDX where the user goes on.
.global trt_sysenter_entry
trt_sysenter_entry:
        pushq   %rcx
        pushq   %rdx
        movq    %rdi, %rsi
        movq    %rax, %rdi
        call    trt_system_call
        popq    %rdx
        popq    %rcx
        sti
        rex64 sysexit

.section .bss.user, "aw", @nobits
.balign 8
user_caller_rsp:
        .skip 8
