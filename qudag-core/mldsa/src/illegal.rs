//! An illegal instruction on purpose, for tests of what a program does about a self-test that dies of one.

/// Executes an instruction that no processor has: the process ends by `SIGILL`. Only with debug assertions.
pub fn illegal_instruction() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: The instruction is defined to raise an exception; nothing after it runs.
    unsafe {
        std::arch::asm!("ud2", options(noreturn, nomem, nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: As above.
    unsafe {
        std::arch::asm!("udf #0", options(noreturn, nomem, nostack));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::process::abort()
}
