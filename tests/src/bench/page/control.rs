//! The table and plots of `bench control --only beside`.

use std::fmt::Write as _;

use serde_json::Value;

use super::plot::{self, Bar, Shade};

/// Every proxy at every size, and a plot of the time from change to effect.
pub(super) fn table(lines: &[Value]) -> (String, Vec<(String, String)>) {
    let mut text = String::from(
        "| Services | | change → effect p50 / p99 ms | the same under changes of others | cold start s | \
         restart s | failed probes | resident MiB | CPU s per 1,000 changes | load |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut bars = Vec::new();
    for line in lines {
        let (Some(services), Some(proxy)) = (line["services"].as_u64(), line["proxy"].as_str())
        else {
            continue;
        };
        let number = |name: &str| line[name].as_f64().unwrap_or(f64::NAN);
        let quantile = |name: &str, at: usize| line[name][at].as_f64().unwrap_or(f64::NAN);
        let loads: Vec<f64> = line["loads"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        let (low, high) = loads
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), load| {
                (low.min(*load), high.max(*load))
            });
        let _ = writeln!(
            text,
            "| {services} | {proxy} | {:.1} / {:.1} | {:.1} / {:.1} | {:.2} | {:.2} | {} of {} | {:.0} | {:.2} | {low:.0}–{high:.0} |",
            quantile("effect ms", 0),
            quantile("effect ms", 1),
            quantile("effect under changes ms", 0),
            quantile("effect under changes ms", 1),
            number("cold start s"),
            number("restart s"),
            number("failed"),
            number("probes"),
            number("resident MiB"),
            number("cpu s per 1000"),
        );
        // The plot's full width is a tenth of a second.
        let scaled = |at: usize| quantile("effect under changes ms", at) / 100.0;
        bars.push(Bar {
            label: format!("{services} · {proxy}"),
            value: scaled(0),
            range: (scaled(0), scaled(1)),
            ours: line["ours"].as_bool().unwrap_or(false),
        });
    }
    let title = "Change → effect under changes of others, in tenths of a second: p50, line to p99";
    let plots = [Shade::Light, Shade::Dark].map(|shade| {
        (
            format!("control-{}.svg", shade.name()),
            plot::bars(title, &bars, shade),
        )
    });
    let _ = write!(
        text,
        "\n<picture><source media=\"(prefers-color-scheme: dark)\" srcset=\"benchmarks/control-dark.svg\">\
         <img alt=\"{title}\" src=\"benchmarks/control-light.svg\"></picture>"
    );
    (text, plots.into())
}
