//! The first instructions: Multiboot headers, the way to long mode, and the start of the other CPUs.

use core::arch::global_asm;

/// EAX from a Multiboot 1 loader (QEMU's -kernel).
pub const MULTIBOOT1_MAGIC: u32 = 0x2bad_b002;
/// EAX from a Multiboot 2 loader (GRUB).
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

/// Physical page that the other CPUs start at, in real mode. It is in the first MiB, which nobody is given.
pub const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
.set KERNEL_BASE, 0xffffffff80000000

.section .boot.header, "aw"
.balign 8
multiboot1_header:
    .long 0x1badb002
    .long 0x00010003                    // page-aligned modules, memory map, address fields
    .long -(0x1badb002 + 0x00010003)
    .long multiboot1_header
    .long nacre_image_start
    .long nacre_load_end
    .long nacre_image_end
    .long nacre_start
.balign 8
multiboot2_header:
    .long 0xe85250d6
    .long 0
    .long multiboot2_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_end - multiboot2_header))
    .word 1, 0                          // information request: memory map, ACPI
    .long 20
    .long 6, 14, 15
    .balign 8
    .word 6, 0                          // modules page-aligned
    .long 8
    .balign 8
    .word 0, 0
    .long 8
multiboot2_end:

.section .boot.text, "awx"
.code32
.global nacre_start
nacre_start:
    cli
    cld
    mov edi, eax                        // loader's magic
    mov esi, ebx                        // its information
    rdtsc
    mov [boot_tsc], eax
    mov [boot_tsc + 4], edx
    mov esp, offset boot_stack_end - KERNEL_BASE

    // Long mode and NX, or a line of text and a stop.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 29
    jz no_long_mode
    test edx, 1 << 20
    jz no_long_mode

    // Three views of the first 4 GiB: identity, direct map, and (first GiB) the kernel window.
    mov eax, offset boot_pdpt
    or eax, 3
    mov [boot_pml4], eax
    mov [boot_pml4 + 256 * 8], eax
    mov eax, offset boot_pdpt_high
    or eax, 3
    mov [boot_pml4 + 511 * 8], eax
    mov eax, offset boot_pd
    or eax, 3
    mov [boot_pdpt_high + 510 * 8], eax
    mov ecx, 0
2:  mov [boot_pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 2b
    mov eax, 0x83                       // present, writable, 2 MiB
    mov ecx, 0
3:  mov [boot_pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 3b

    call enter_long_mode
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset start64
    push eax
    retf

// Loads CR4, CR3, EFER and CR0 for long mode with the boot tables.
enter_long_mode:
    mov eax, cr4
    or eax, 1 << 5
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1 << 8 | 1 << 11 | 1
    wrmsr
    mov eax, cr0
    or eax, 1 << 31 | 1 << 16 | 1
    mov cr0, eax
    ret

no_long_mode:
    mov esi, offset no_long_mode_text
4:  lodsb
    test al, al
    jz 5f
    out 0xe9, al
    mov edx, 0x3f8
    out dx, al
    jmp 4b
5:  hlt
    jmp 5b

.code64
start64:
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov rsp, offset boot_stack_end
    mov edx, [boot_tsc + 4]
    shl rdx, 32
    mov eax, [boot_tsc]
    or rdx, rax
    xor ebp, ebp
    movabs rax, offset nacre_main
    call rax
6:  hlt
    jmp 6b

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt
boot_tsc:
    .quad 0
no_long_mode_text:
    .asciz "nacre: this CPU has no 64-bit mode with no-execute pages: Nacre cannot run here\r\n"
.balign 16
.global nacre_ap_stack
nacre_ap_stack:
    .quad 0
.global nacre_ap_main
nacre_ap_main:
    .quad 0

.balign 4096
.global boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pdpt_high: .skip 4096
boot_pd: .skip 4096 * 4

// In the image proper, which the final page tables map too.
.section .bss.boot_stack, "aw", @nobits
.balign 16
.skip 65536
boot_stack_end:

.section .boot.text

// Start of the other CPUs: copied to TRAMPOLINE, entered in real mode with CS = TRAMPOLINE >> 4.
.code16
.global nacre_trampoline
nacre_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x0f, 0x01, 0x16              // lgdt, relative to DS
    .word trampoline_gdt_pointer - nacre_trampoline
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea                    // far jump to a 32-bit offset
    .long trampoline32
    .word 0x18
trampoline_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
trampoline_gdt_pointer:
    .word trampoline_gdt_pointer - trampoline_gdt - 1
    .long {trampoline} + trampoline_gdt - nacre_trampoline
.global nacre_trampoline_end
nacre_trampoline_end:

.code32
trampoline32:                           // in place, no longer in the copy
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset boot_stack_end - KERNEL_BASE
    call enter_long_mode
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset ap64
    push eax
    retf
.code64
ap64:
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov rsp, [nacre_ap_stack]
    xor ebp, ebp
    call [nacre_ap_main]
7:  hlt
    jmp 7b
.text
"#,
    trampoline = const TRAMPOLINE,
);
