//! What this machine can do, as told to others.

/// The names of instruction sets and of the cryptography, a few words. Those of the instruction sets are as the compiler has them.
pub(super) fn of_this_machine() -> Vec<String> {
    let mut words = vec![std::env::consts::ARCH, "aws-lc", "x25519mlkem768"];
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vbmi", std::arch::is_x86_feature_detected!("avx512vbmi")),
            ("aes", std::arch::is_x86_feature_detected!("aes")),
            ("vaes", std::arch::is_x86_feature_detected!("vaes")),
            ("sha", std::arch::is_x86_feature_detected!("sha")),
            ("bmi2", std::arch::is_x86_feature_detected!("bmi2")),
        ];
        words.extend(found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let found = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("aes", std::arch::is_aarch64_feature_detected!("aes")),
            ("sha2", std::arch::is_aarch64_feature_detected!("sha2")),
            ("sha3", std::arch::is_aarch64_feature_detected!("sha3")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        words.extend(found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name));
    }
    words.into_iter().map(str::to_owned).collect()
}
