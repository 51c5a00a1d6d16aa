//! Where the first NaN stands: a check of any tensor of a forward pass.

use super::{Element, Op};

/// Looks at every element: `(x [m * rows_per_token, columns], report u64 [3], m_on_device, ldx i64, m, rows_per_token,
/// columns)`.
///
/// `report` is raised, and is zero before the first launch: how many elements are not finite; the complement of the
/// least `row * columns + column` of one, 0 while there is none; the bits of the largest finite magnitude, as f32.
pub fn find_non_finite(element: Element) -> Op {
    Op::new("find_non_finite", [("element", element.word())], [FINITE_BLOCKS, 1, 1], 256)
}

/// Numbers that [`find_non_finite`] reports.
pub const FINITE_FIELDS: u32 = 3;

/// Enough for every SM of a large chip; they stride over the elements.
const FINITE_BLOCKS: u32 = 264;
