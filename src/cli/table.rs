//! Columns that are as wide as what stands in them.

use std::fmt;

/// Rows of text under a line of names.
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

struct Column {
    name: String,
    is_number: bool,
}

impl Table {
    /// A table with columns of these names; a name that starts with `>` makes a column of numbers, aligned right.
    pub fn new<const N: usize>(names: [&str; N]) -> Self {
        let column =
            |name: &str| Column { name: name.trim_start_matches('>').to_string(), is_number: name.starts_with('>') };
        Self { columns: names.map(column).into(), rows: Vec::new() }
    }

    /// Adds a row with one cell for each column.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let lines = || std::iter::once(&names).chain(&self.rows);
        let width = |idx: usize| lines().map(|cells| cells[idx].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for cells in lines() {
            let mut line = String::new();
            for ((cell, column), width) in cells.iter().zip(&self.columns).zip(&widths) {
                match column.is_number {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["op", ">us", "tile"]);
        table.row(["attn.wq_b".to_string(), "4.59".to_string(), "a b".to_string()]);
        table.row(["x".to_string(), "1234.50".to_string(), String::new()]);
        assert_eq!(table.to_string(), "op              us  tile\nattn.wq_b     4.59  a b\nx          1234.50\n");
    }
}
