//! Pages of compressed entries: which sequence has which, and which are free.

/// The block table of a pool: `[slots, most pages of a sequence]`, as kernels read it.
#[derive(Clone, Debug)]
pub struct PageTable {
    /// Page numbers of each slot; what lies beyond a slot's pages is 0 and never read.
    entries: Vec<i32>,
    per_slot: usize,
    held: Vec<usize>,
    free: Vec<i32>,
    page_tokens: usize,
}

/// No page is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a free page of compressed keys for sequence {slot}, found all {pages} in use")]
pub struct NoPages {
    /// The sequence that needs one.
    pub slot: usize,
    /// Pages of the pool.
    pub pages: usize,
}

impl PageTable {
    /// Room for `slots` sequences of up to `context` tokens, in a pool of `pages` pages of `page_tokens` tokens each.
    pub fn new(slots: usize, context: usize, pages: usize, page_tokens: usize) -> Self {
        let per_slot = context.div_ceil(page_tokens).max(1);
        Self {
            entries: vec![0; slots * per_slot],
            per_slot,
            held: vec![0; slots],
            // The lowest page is taken first.
            free: (0..pages as i32).rev().collect(),
            page_tokens,
        }
    }

    /// Most pages of one sequence: the table's row length.
    pub fn per_slot(&self) -> usize {
        self.per_slot
    }

    /// The table.
    pub fn entries(&self) -> &[i32] {
        &self.entries
    }

    /// Gives `slot` the pages that `tokens` tokens need. True if the table has changed.
    ///
    /// # Errors
    /// [`NoPages`]; what the slot had before it keeps.
    pub fn reserve(&mut self, slot: usize, tokens: usize) -> Result<bool, NoPages> {
        let needed = tokens.div_ceil(self.page_tokens).min(self.per_slot);
        let missing = needed.saturating_sub(self.held[slot]);
        if missing > self.free.len() {
            return Err(NoPages { slot, pages: self.free.len() + self.held.iter().sum::<usize>() });
        }
        for page in self.free.split_off(self.free.len() - missing).into_iter().rev() {
            self.entries[slot * self.per_slot + self.held[slot]] = page;
            self.held[slot] += 1;
        }
        Ok(missing > 0)
    }

    /// Takes the pages of `slot` back.
    pub fn release(&mut self, slot: usize) {
        let first = slot * self.per_slot;
        let pages = self.entries[first..first + self.held[slot]].iter().rev();
        self.free.extend(pages);
        self.held[slot] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_taken_back_and_given_again() {
        let mut table = PageTable::new(3, 1000, 5, 256);
        assert_eq!(table.per_slot(), 4);
        assert_eq!(table.reserve(0, 257), Ok(true));
        assert_eq!(table.reserve(0, 512), Ok(false));
        assert_eq!(table.reserve(2, 700), Ok(true));
        assert_eq!(table.entries(), [0, 1, 0, 0, 0, 0, 0, 0, 2, 3, 4, 0]);
        let error = table.reserve(1, 1).unwrap_err();
        assert_eq!(error.to_string(), "expected a free page of compressed keys for sequence 1, found all 5 in use");
        table.release(0);
        assert_eq!(table.reserve(1, 300), Ok(true));
        assert_eq!(table.entries()[4..6], [0, 1]);
    }

    #[test]
    fn no_two_sequences_share_a_page() {
        let mut table = PageTable::new(4, 4096, 64, 256);
        for tokens in (1..4096).step_by(97) {
            for slot in 0..4 {
                table.reserve(slot, tokens).unwrap();
            }
        }
        let mut pages = table.entries().to_vec();
        pages.sort_unstable();
        assert_eq!(pages, (0..64).collect::<Vec<_>>());
    }
}
