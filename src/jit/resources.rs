//! What a kernel needs, read from ptxas' verbose log: counted without a GPU.

use serde::{Deserialize, Serialize};

/// Registers, spills and shared memory of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of the stack frame of a thread; not zero means that an array went to local memory.
    pub stack_bytes: u32,
    /// Bytes of registers stored to local memory, and loaded back, for a thread.
    pub spill_bytes: u32,
    /// Static shared memory of a block, bytes; dynamic shared memory comes on top.
    pub static_smem_bytes: u32,
    /// ptxas' warnings of lost performance, such as serialised wgmma.
    pub warnings: Vec<String>,
}

impl Resources {
    /// Reads the log of one compilation with `--ptxas-options=-v` and one kernel.
    pub(super) fn from_log(log: &str) -> Self {
        let number_before = |unit: &str| -> u32 {
            let numbers = log.match_indices(unit).filter_map(|(at, _)| last_number(&log[..at]));
            numbers.max().unwrap_or(0)
        };
        Self {
            registers: number_before(" registers"),
            stack_bytes: number_before(" bytes stack frame"),
            spill_bytes: number_before(" bytes spill stores").max(number_before(" bytes spill loads")),
            static_smem_bytes: number_before(" bytes smem"),
            warnings: log.lines().filter(|line| line.contains("Potential Performance Loss")).map(shortened).collect(),
        }
    }

    /// Whether the kernel keeps everything in registers and ptxas has nothing to say against it.
    pub fn is_clean(&self) -> bool {
        self.stack_bytes == 0 && self.spill_bytes == 0 && self.warnings.is_empty()
    }
}

fn last_number(text: &str) -> Option<u32> {
    let start = text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    text[start..].parse().ok()
}

fn shortened(line: &str) -> String {
    line.split_once("Potential Performance Loss: ").map_or(line, |(_, loss)| loss).trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_ptxas_words() {
        let log = "ptxas info    : Compiling entry function 'dense_mma' for 'sm_90a'\n\
                   ptxas info    : Function properties for dense_mma\n\
                   \t8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 56 registers, used 1 barriers, 8 bytes stack, 1040 bytes smem, \
                   640 bytes cmem[0]\n\
                   ptxas info (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized\n";
        let resources = Resources::from_log(log);
        assert_eq!(
            resources,
            Resources {
                registers: 56,
                stack_bytes: 8,
                spill_bytes: 12,
                static_smem_bytes: 1040,
                warnings: vec!["wgmma.mma_async instructions are serialized".to_string()],
            }
        );
        assert!(!resources.is_clean());
        assert!(Resources::from_log("ptxas info    : Used 32 registers, 380 bytes cmem[0]").is_clean());
    }
}
