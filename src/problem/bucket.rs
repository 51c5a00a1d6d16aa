//! The numbers of tokens that kernels are tuned for: every `m` is rounded up to one of them.

/// Every bucket, ascending. Grids and parameters depend on the bucket; the actual `m` is data.
pub const BUCKETS: [u32; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// The smallest bucket that holds `m` tokens; `None` above the largest, where a step must be cut into chunks.
pub fn bucket_of(m: u32) -> Option<u32> {
    BUCKETS.into_iter().find(|&bucket| bucket >= m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_up() {
        assert_eq!(bucket_of(1), Some(1));
        assert_eq!(bucket_of(3), Some(4));
        assert_eq!(bucket_of(8192), Some(8192));
        assert_eq!(bucket_of(8193), None);
    }
}
