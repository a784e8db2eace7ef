//! Tables without lines: what Dragonfly's tools print.

use std::fmt::Write as _;

/// Renders rows below their header, every column as wide as its widest cell, one space around each cell.
///
/// A row with fewer cells than the header is filled with empty ones; surplus cells are dropped.
#[must_use]
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for width in &widths {
            let cell = cells.next().unwrap_or_default();
            // A String takes every write.
            let _written = write!(row, " {cell:<width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["abc".to_owned(), "1".to_owned()], vec!["d".to_owned()]];
        assert_eq!(render(&["ID", "PIECES"], &rows), " ID    PIECES\n abc   1\n d\n");
    }
}
