//! What the demo prints: plain text, with colours for a terminal.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context as _, Result};

/// Characters of the longest bar.
const BAR: u64 = 24;

/// An output and whether it shows colours.
#[derive(Debug)]
pub struct Screen<W> {
    output: W,
    colours: bool,
}

impl<W: Write> Screen<W> {
    /// Writes to `output`, in colours if that is a terminal that wants them.
    pub fn new(output: W, colours: bool) -> Self {
        Self { output, colours }
    }

    /// A headline.
    pub fn title(&mut self, text: &str) -> Result<()> {
        let text = self.paint("1;36", text);
        self.line(&format!("\n{text}"))
    }

    /// A line of explanation.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.line(&format!("  {text}"))
    }

    /// An empty line.
    pub fn blank(&mut self) -> Result<()> {
        self.line("")
    }

    /// A command a reader could type.
    pub fn command(&mut self, text: &str) -> Result<()> {
        let text = self.paint("1", &format!("$ {text}"));
        self.line(&format!("\n    {text}"))
    }

    /// Something that happens to the cluster.
    pub fn event(&mut self, what: &str, text: &str) -> Result<()> {
        let what = self.paint("1;33", &format!("{what:>10}"));
        self.line(&format!("  {what}  {text}"))
    }

    /// A good result.
    pub fn good(&mut self, text: &str) -> Result<()> {
        let text = self.paint("1;32", text);
        self.line(&format!("  {text}"))
    }

    /// A command's output. Columns separated by tabs, as programs get them, are aligned for people.
    pub fn table(&mut self, text: &str) -> Result<()> {
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split('\t').collect())
            .collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<_> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for row in &rows {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:<width$}"))
                .collect();
            self.line(&format!("    {}", cells.join("  ").trim_end()))?;
        }
        Ok(())
    }

    /// Who answered how often.
    pub fn bars(&mut self, name: &str, counts: &BTreeMap<String, u64>) -> Result<()> {
        let most = counts.values().copied().max().unwrap_or(0).max(1);
        for (number, (server, &count)) in counts.iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let bar = "█".repeat(usize::try_from((count * BAR).div_ceil(most))?);
            let bar = self.paint("32", &bar);
            self.line(&format!("  {name:<17} {server:<11} {count:>6} {bar}"))?;
        }
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        // A reader that goes away ends the demo in order, with everything removed.
        writeln!(self.output, "{text}")
            .and_then(|()| self.output.flush())
            .context("printing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_free_of_colours_outside_of_terminals() -> Result<()> {
        let mut output = Vec::new();
        let mut screen = Screen::new(&mut output, false);
        screen.table("NAME\tPORT\nweb\t80\n")?;
        screen.bars("TCP", &BTreeMap::from([("a".into(), 24), ("b".into(), 12)]))?;
        let text = String::from_utf8(output)?;
        let bar = "█".repeat(12);
        assert_eq!(
            text,
            format!(
                "    NAME  PORT\n    web   80\n  TCP               a               24 {bar}{bar}\n                    b               12 {bar}\n"
            )
        );
        Ok(())
    }
}
