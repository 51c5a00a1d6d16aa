//! The layout in which tensor cores with block scaling read scale factors: tiles of 128 rows by 4 scales, 512 bytes.
//!
//! Within a tile, row `r` and column `c` stand at `(r % 32) * 16 + (r / 32) * 4 + c`; tiles follow each other along k,
//! then along the rows. Rows are padded to 128 and columns to 4 **with zeros**: padding that was never written has
//! held NaN bytes and poisoned real rows. Source: NVIDIA PTX ISA, tcgen05 scale factor layout.

use super::ShapeError;
use super::shape::Shape;

/// Rows of a tile.
pub const TILE_ROWS: usize = 128;

/// Scales of a row within a tile.
pub const TILE_COLUMNS: usize = 4;

/// Rows of the layout for a matrix of `rows` rows.
pub fn padded_rows(rows: usize) -> usize {
    rows.next_multiple_of(TILE_ROWS)
}

/// Scales of a row in the layout where the matrix has `columns`.
pub fn padded_columns(columns: usize) -> usize {
    columns.next_multiple_of(TILE_COLUMNS)
}

/// Bytes of the layout for a matrix of scales `[rows, columns]`.
pub fn padded_bytes(rows: usize, columns: usize) -> usize {
    padded_rows(rows) * padded_columns(columns)
}

/// Where the scale of `row` and `column` stands, in a matrix of `columns` scales a row.
pub fn offset(row: usize, column: usize, columns: usize) -> usize {
    let tile = row / TILE_ROWS * columns.div_ceil(TILE_COLUMNS) + column / TILE_COLUMNS;
    tile * TILE_ROWS * TILE_COLUMNS + row % 32 * 16 + row / 32 % 4 * 4 + column % TILE_COLUMNS
}

/// Row-major scales `[rows, columns]` in the layout, padding zero.
///
/// # Errors
/// [`ShapeError`] if `scales` is not `[rows, columns]`.
pub fn swizzle(scales: &[u8], rows: usize, columns: usize) -> Result<Vec<u8>, ShapeError> {
    Shape { rows, k: columns }.holds("block scales", rows * columns, scales.len())?;
    let mut swizzled = vec![0; padded_bytes(rows, columns)];
    for (idx, &scale) in scales.iter().enumerate() {
        swizzled[offset(idx / columns, idx % columns, columns)] = scale;
    }
    Ok(swizzled)
}

/// The row-major scales `[rows, columns]` of a layout; padding is dropped unseen.
///
/// # Errors
/// [`ShapeError`] if `swizzled` is not [`padded_bytes`] long.
pub fn unswizzle(swizzled: &[u8], rows: usize, columns: usize) -> Result<Vec<u8>, ShapeError> {
    Shape { rows, k: columns }.holds("bytes of swizzled scales", padded_bytes(rows, columns), swizzled.len())?;
    Ok((0..rows * columns).map(|idx| swizzled[offset(idx / columns, idx % columns, columns)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 5), (32, 4), (127, 9), (128, 4), (129, 7), (400, 33)];

    /// The layout is the row-major array [row tile][column tile][r % 32][r / 32][c]: walk it in order.
    #[test]
    fn offsets_count_up_along_the_five_dimensions() {
        for (rows, columns) in SHAPES {
            let mut expected = 0;
            for row_tile in 0..rows.div_ceil(128) {
                for column_tile in 0..columns.div_ceil(4) {
                    for lane in 0..32 {
                        for quarter in 0..4 {
                            for column in 0..4 {
                                let row = row_tile * 128 + quarter * 32 + lane;
                                assert_eq!(offset(row, column_tile * 4 + column, columns), expected);
                                expected += 1;
                            }
                        }
                    }
                }
            }
            assert_eq!(padded_bytes(rows, columns), expected);
        }
    }

    #[test]
    fn swizzling_is_a_bijection_with_zero_padding() {
        for (rows, columns) in SHAPES {
            // Never zero, so that padding can be told from a scale.
            let scales: Vec<u8> = (0..rows * columns).map(|idx| (idx % 251) as u8 + 1).collect();
            let swizzled = swizzle(&scales, rows, columns).unwrap();
            assert_eq!(swizzled.len(), padded_rows(rows) * padded_columns(columns));
            assert_eq!(swizzled.iter().filter(|&&scale| scale != 0).count(), scales.len());
            let (mut sorted, mut found) = (scales.clone(), swizzled.clone());
            sorted.sort_unstable();
            found.retain(|&scale| scale != 0);
            found.sort_unstable();
            assert_eq!(found, sorted);
            assert_eq!(unswizzle(&swizzled, rows, columns).unwrap(), scales);
        }
    }

    #[test]
    fn stale_padding_is_dropped_and_wrong_lengths_are_refused() {
        let mut stale = vec![0x7F; padded_bytes(2, 3)];
        for (row, column) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            stale[offset(row, column, 3)] = 1;
        }
        assert_eq!(unswizzle(&stale, 2, 3).unwrap(), [1; 6]);
        assert!(swizzle(&[0; 5], 2, 3).is_err());
        assert!(unswizzle(&[0; 511], 2, 3).is_err());
    }
}
