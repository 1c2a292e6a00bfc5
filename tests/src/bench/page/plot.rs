//! Bars with their quartiles, as SVG for light and for dark pages.

use std::fmt::Write as _;

/// What a page looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shade {
    Light,
    Dark,
}

impl Shade {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// Text, lines, our bars, others' bars.
    fn colours(self) -> [&'static str; 4] {
        match self {
            Self::Light => ["#1f2328", "#d0d7de", "#bf8700", "#8c959f"],
            Self::Dark => ["#e6edf3", "#3d444d", "#d29922", "#6e7681"],
        }
    }
}

/// A bar: a value with its quartiles, 1 being the full width.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    pub(super) range: (f64, f64),
    pub(super) ours: bool,
}

const ROW: usize = 20;
const TOP: usize = 34;
const LABELS: f64 = 250.0;
const WIDTH: f64 = 420.0;

/// Bars one below the other.
pub(super) fn bars(title: &str, bars: &[Bar], shade: Shade) -> String {
    let [text, line, ours, others] = shade.colours();
    // Room for what is better than direct.
    let largest = bars.iter().map(|bar| bar.range.1).fold(1.0, f64::max);
    let x = |value: f64| LABELS + WIDTH * value / largest;
    let height = TOP + bars.len() * ROW + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" viewBox=\"0 0 760 {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{text}\">\n\
         <text x=\"8\" y=\"18\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    let _ = writeln!(
        svg,
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\" stroke=\"{line}\"/>",
        x(1.0),
        height - 10
    );
    for (index, bar) in bars.iter().enumerate() {
        let top = TOP + index * ROW;
        let (middle, low, high) = (x(bar.value), x(bar.range.0), x(bar.range.1));
        let (baseline, centre) = (top + 14, top + 10);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS:.0}\" y=\"{}\" width=\"{:.1}\" height=\"12\" fill=\"{}\"/>\
             <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{centre}\" y2=\"{centre}\" stroke=\"{text}\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{:.2}</text>",
            LABELS - 8.0,
            escaped(&bar.label),
            top + 4,
            middle - LABELS,
            if bar.ours { ours } else { others },
            high.max(middle) + 6.0,
            bar.value,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_each_bar_with_its_value() {
        let bar = |label: &str, value, ours| Bar {
            label: label.into(),
            value,
            range: (value - 0.1, value + 0.1),
            ours,
        };
        let svg = bars(
            "a < b",
            &[bar("x", 0.5, true), bar("y", 1.5, false)],
            Shade::Dark,
        );
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains(">0.50<") && svg.contains(">1.50<"));
    }
}
