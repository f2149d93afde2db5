//! Aligned columns, short IDs, ages and sizes for people.

/// Rows below a heading, each column as wide as its widest cell, two spaces apart.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// `row` has as many cells as the heading. Control characters of a runtime stay off the terminal.
    pub fn row<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.into_iter().map(|cell| cell.replace(char::is_control, "?")).collect());
    }

    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |cell: &String| cell.chars().count();
        let widest = |i: usize| self.rows.iter().filter_map(|row| row.get(i)).map(width).max();
        let widths: Vec<usize> = (0..columns).map(|i| widest(i).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
            text += cells.collect::<String>().trim_end();
            text.push('\n');
        }
        text
    }
}

/// The first 13 characters of an ID, without the `sha256:` of an image's.
pub fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(13).collect()
}

/// How long ago, both in nanoseconds since the epoch.
pub fn age(created_at: i64, now: i64) -> String {
    if created_at <= 0 {
        return "unknown".into();
    }
    let seconds = now.saturating_sub(created_at).max(0) / 1_000_000_000;
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// In decimal units, as registries and disks count.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["a".into(), "longer name".into(), "x".into()]);
        table.row(["bbb".into(), "é\u{1b}[2J".into(), String::new()]);
        assert_eq!(table.render(), "ID   NAME         STATE\na    longer name  x\nbbb  é?[2J\n");
    }

    #[test]
    fn people_read_ages_and_sizes() {
        let second = 1_000_000_000;
        let ages = [(0, "0 seconds ago"), (1, "1 second ago"), (119, "1 minute ago"), (7200, "2 hours ago")];
        for (seconds, text) in ages {
            assert_eq!(age(1_000 * second, (1_000 + seconds) * second), text);
        }
        assert_eq!(age(2 * second, second), "0 seconds ago");
        assert_eq!(age(0, second), "unknown");
        let sizes =
            [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (999_960, "1.0 MB"), (5_000_000_000, "5.0 GB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789abc");
    }
}
