# The ELF note that makes the image bootable by PVH: XEN_ELFNOTE_PHYS32_ENTRY.
.section .note.pvh, "a", @note
.balign 4
        .long 4                         # size of the name
        .long 8                         # size of the descriptor
        .long 18
        .asciz "Xen"
        .quad trt_entry32

.section .data.boot, "aw"
.balign 16
.global trt_initial_gprs
trt_initial_gprs:
        .fill 8, 4, 0
        .fill 8, 8, 0

# Order as SYSCALL, SYSRET, SYSENTER and SYSEXIT want it; desc.rs names the selectors and fills in the TSS.
.balign 16
.global trt_gdt
trt_gdt:
        .quad 0
        .quad 0x00af9b000000ffff        # 08 kernel code, 64 bits
        .quad 0x00cf93000000ffff        # 10 kernel data
        .quad 0x00cffb000000ffff        # 18 user code, 32 bits
        .quad 0x00cff3000000ffff        # 20 user data
        .quad 0x00affb000000ffff        # 28 user code, 64 bits
        .quad 0x00cff3000000ffff        # 30 user data, for SYSEXIT
        .quad 0x00cf9b000000ffff        # 38 kernel code, 32 bits
        .quad 0x00009b000000ffff        # 40 kernel code, 16 bits, base 0
        .quad 0x000093000000ffff        # 48 kernel data, 64 KiB
        .quad 0, 0                      # 50 TSS
trt_gdt_end:

.global trt_gdt_pointer
trt_gdt_pointer:
        .word trt_gdt_end - trt_gdt - 1
        .quad trt_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.global trt_pml4
trt_pml4:
        .skip 4096
.global trt_pdpt
trt_pdpt:
        .skip 4096
.global trt_pd
trt_pd:
        .skip 4 * 4096
        .skip 64 * 1024
.global trt_stack_top
trt_stack_top:

.section .text.boot, "ax"
.code32
.global trt_entry32
trt_entry32:
        movl    %eax, trt_initial_gprs
        movl    %ecx, trt_initial_gprs + 4
        movl    %edx, trt_initial_gprs + 8
        movl    %ebx, trt_initial_gprs + 12
        movl    %esp, trt_initial_gprs + 16
        movl    %ebp, trt_initial_gprs + 20
        movl    %esi, trt_initial_gprs + 24
        movl    %edi, trt_initial_gprs + 28
        cli
        cld

        movl    $trt_bss_start, %edi
        movl    $trt_bss_end, %ecx
        subl    %edi, %ecx
        shrl    $2, %ecx
        xorl    %eax, %eax
        rep stosl

        # 4 GiB one to one: present, writable, for user mode too; the top GiB (MMIO) uncached.
        movl    $trt_pdpt + 0x7, trt_pml4
        movl    $trt_pd + 0x7, %eax
        xorl    %ecx, %ecx
1:      movl    %eax, trt_pdpt(,%ecx,8)
        addl    $4096, %eax
        incl    %ecx
        cmpl    $4, %ecx
        jb      1b
        movl    $0x87, %eax
        xorl    %ecx, %ecx
2:      movl    %eax, trt_pd(,%ecx,8)
        addl    $0x200000, %eax
        incl    %ecx
        cmpl    $1536, %ecx
        jne     3f
        orl     $0x18, %eax
3:      cmpl    $2048, %ecx
        jb      2b

        movl    $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $trt_pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    $0x80000033, %eax       # PG, NE, ET, MP, PE
        movl    %eax, %cr0
        lgdtl   trt_gdt_pointer
        ljmpl   $0x08, $trt_entry64

.code64
trt_entry64:
        movq    %r8,  trt_initial_gprs + 32
        movq    %r9,  trt_initial_gprs + 40
        movq    %r10, trt_initial_gprs + 48
        movq    %r11, trt_initial_gprs + 56
        movq    %r12, trt_initial_gprs + 64
        movq    %r13, trt_initial_gprs + 72
        movq    %r14, trt_initial_gprs + 80
        movq    %r15, trt_initial_gprs + 88
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movq    $trt_stack_top, %rsp
        movl    %ebx, %edi
        xorl    %ebp, %ebp
        call    trt_start
        ud2
