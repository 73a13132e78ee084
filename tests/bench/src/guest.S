# The guest of the benchmark: for each operation a loop that stores what RDTSC says about it, and a HLT. It is copied to
# GUEST_CODE, so that only relative addresses are used; results go to GUEST_RESULTS. Between two XCHG BX, BX the operation runs
# once more, for whoever traces, unless it is nothing.

# Leaves R14 for the start, R13 for the next result and R12 for the count; the operation may change all others.
.macro measured name, operation
        .global bench_guest_\name
bench_guest_\name:
        mov     r13d, {results}
        mov     r12d, {total}
2:      rdtsc
        mov     r14d, eax
        \operation
        rdtsc
        sub     eax, r14d
        mov     [r13], eax
        add     r13, 4
        add     rsi, rbp
        dec     r12d
        jnz     2b
        .ifnb   \operation
        xchg    bx, bx
        \operation
        xchg    bx, bx
        .endif
        hlt
.endm

.macro measured16 name, operation
        .global bench_guest_\name
bench_guest_\name:
        mov     di, {results}
        mov     bp, {total}
2:      rdtsc
        mov     esi, eax
        \operation
        rdtsc
        sub     eax, esi
        mov     [di], eax
        add     di, 4
        dec     bp
        jnz     2b
        .ifnb   \operation
        xchg    bx, bx
        \operation
        xchg    bx, bx
        .endif
        hlt
.endm

.pushsection .rodata.bench_guest, "a"
.global bench_guest_start
bench_guest_start:

.code16
measured16 real_empty, ""
measured16 real_cpuid, "xor eax, eax; cpuid"

.code64
# Registers that the host's code does not use, filled once: x87, SSE and, if RDI says so, AVX.
.global bench_guest_prepare
bench_guest_prepare:
        fninit
        fldpi
        fld1
        movq    xmm0, rsp
        pshufd  xmm15, xmm0, 0
        test    edi, edi
        jz      1f
        vbroadcastss ymm7, xmm0
1:      hlt

measured empty, ""
measured cpuid, "xor eax, eax; cpuid"
measured pio_out, "out 0x80, al"
measured pio_in, "in al, 0x80"
measured vmcall, "vmcall"
measured vmmcall, "vmmcall"
measured bell_vmcall, "mov eax, {bell_call}; vmcall"
measured bell_vmmcall, "mov eax, {bell_call}; vmmcall"
measured bell_port, "mov edx, {bell_port}; out dx, ax"
measured bell_page, "mov [rsi], eax"
# The handler sets EBX.
measured roundtrip_vmcall, "xor ebx, ebx; mov eax, {bell_call} + 1; vmcall; 3: test ebx, ebx; jz 3b"
measured roundtrip_vmmcall, "xor ebx, ebx; mov eax, {bell_call} + 1; vmmcall; 3: test ebx, ebx; jz 3b"
measured self_ipi, "xor ebx, ebx; mov ecx, 0x83f; mov eax, {vector}; xor edx, edx; wrmsr; 3: test ebx, ebx; jz 3b"

.global bench_guest_handler
bench_guest_handler:
        handle_interrupt

# A page that nobody touched; RSI moves on by RBP.
measured touch, "mov eax, [rsi]"

.global bench_guest_end
bench_guest_end:
.popsection
