//! How results look: aligned columns on a terminal, tab-separated ones in a pipe, JSON on request.

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use super::API_VERSION;

/// `-o`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// JSON with a version.
    Json,
}

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Palette {
    /// A program: tab-separated values, so that `cut` and `awk` work.
    Pipe,
    /// A person, without colours.
    Plain,
    /// A person, with colours.
    Colour,
}

impl Palette {
    /// `NO_COLOR`: see <https://no-color.org>, set to anything but nothing.
    pub(super) fn for_stdout(terminal: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match (terminal, no_colour) {
            (false, _) => Palette::Pipe,
            (true, true) => Palette::Plain,
            (true, false) => Palette::Colour,
        }
    }

    /// Something that needs attention.
    pub(super) fn alarm(self, text: &str) -> String {
        self.paint(text, "31;1")
    }

    /// A heading.
    pub(super) fn heading(self, text: &str) -> String {
        self.paint(text, "1")
    }

    fn paint(self, text: &str, code: &str) -> String {
        match self {
            Palette::Colour => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Palette::Plain | Palette::Pipe => text.to_owned(),
        }
    }
}

/// Words that are alarming in a last column.
const ALARMING: [&str; 2] = ["REJECT", "DROP"];

/// Renders rows under a header. Cells are cleaned, so text from the cluster may be passed as it is.
pub(super) fn columns(palette: Palette, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let rows = rows
        .into_iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    if palette == Palette::Pipe {
        let mut text = header.join("\t") + "\n";
        for row in rows {
            text.push_str(&row.join("\t"));
            text.push('\n');
        }
        return text;
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.trim_fmt().lines() {
        let alarming = ALARMING.iter().find(|word| line.ends_with(*word));
        match alarming.and_then(|word| line.strip_suffix(word).map(|rest| (rest, word))) {
            Some((rest, word)) => text.push_str(&(rest.to_owned() + &palette.alarm(word))),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// A versioned JSON list.
pub(super) fn json_list<T: Serialize>(kind: &str, items: &[T]) -> String {
    pretty(&json!({ "apiVersion": API_VERSION, "kind": kind, "items": items }))
}

/// A versioned JSON object; `fields` must be one.
pub(super) fn json_object<T: Serialize>(kind: &str, fields: &T) -> String {
    let mut object = json!({ "apiVersion": API_VERSION, "kind": kind });
    if let (Some(object), Ok(Value::Object(fields))) =
        (object.as_object_mut(), serde_json::to_value(fields))
    {
        object.extend(fields);
    }
    pretty(&object)
}

/// Text without what could change a terminal or a reader's view of a line: control characters and the
/// marks that reorder text.
pub(super) fn clean(text: &str) -> String {
    let reorders = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .filter(|c| !c.is_control() && !reorders(*c))
        .collect()
}

fn pretty(value: &Value) -> String {
    format!("{:#}\n", cleaned(value))
}

/// Every text in it cleaned, as JSON is read on terminals, too.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => Value::Array(items.iter().map(cleaned).collect()),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (clean(name), cleaned(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![
            vec!["a".into(), "x\u{1b}[2J\t".into()],
            vec!["long-name".into(), "DROP".into()],
        ]
    }

    #[test]
    fn pipes_get_tab_separated_values() {
        assert_eq!(
            columns(Palette::Pipe, &["NAME", "VERDICT"], rows()),
            "NAME\tVERDICT\na\tx[2J\nlong-name\tDROP\n"
        );
    }

    #[test]
    fn people_get_aligned_columns_without_borders() {
        assert_eq!(
            columns(Palette::Plain, &["NAME", "VERDICT"], rows()),
            "NAME       VERDICT\na          x[2J\nlong-name  DROP\n"
        );
        assert!(
            columns(Palette::Colour, &["NAME", "VERDICT"], rows())
                .contains("\u{1b}[31;1mDROP\u{1b}[0m\n")
        );
    }

    #[test]
    fn json_carries_version_and_kind() {
        let value: Value = serde_json::from_str(&json_object("Thing", &json!({ "x": 1 }))).unwrap();
        assert_eq!(
            value,
            json!({ "apiVersion": "beeline.dev/v1", "kind": "Thing", "x": 1 })
        );
        let list: Value = serde_json::from_str(&json_list("ThingList", &[1, 2])).unwrap();
        assert_eq!(
            list,
            json!({ "apiVersion": "beeline.dev/v1", "kind": "ThingList", "items": [1, 2] })
        );
    }

    #[test]
    fn control_characters_are_taken_out() {
        assert_eq!(clean("a\u{1b}[31mb\u{7f}\u{9b}c\u{202e}d\n"), "a[31mbcd");
        let list = json_list("L", &[json!({ "k\u{9b}": ["v\u{9b}", 1] })]);
        assert!(!list.contains('\u{9b}') && list.contains("\"v\""), "{list}");
    }
}
