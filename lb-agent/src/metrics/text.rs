//! The Prometheus text format 0.0.4, which every scraper reads.
//!
//! The library writes OpenMetrics. That differs where old readers care: it names a counter without its
//! `_total` in HELP and TYPE, ends help texts with a full stop, and writes bucket bounds as `1.0` where
//! kube-proxy has `1`, so that sums over both by `le` would not add up.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

pub(super) fn render(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    // Writing to a String fails only if an encoder does, and ours write plain numbers and labels.
    if let Err(error) = encode_registry(&mut open_metrics, registry) {
        tracing::error!(%error, "metrics not encoded");
    }
    convert(&open_metrics)
}

/// The content type of [`render`]'s result.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn convert(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 256);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let counter = lines
                .peek()
                .is_some_and(|next| next.starts_with("# TYPE ") && next.ends_with(" counter"));
            let suffix = if counter { "_total" } else { "" };
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            let help = help.strip_suffix('.').unwrap_or(help);
            out.push_str(&format!("# HELP {name}{suffix} {help}\n"));
        } else if let Some(name) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.strip_suffix(" counter"))
        {
            out.push_str(&format!("# TYPE {name}_total counter\n"));
        } else if line.starts_with("# UNIT ") {
            continue;
        } else {
            push_sample(&mut out, line);
        }
    }
    out
}

fn push_sample(out: &mut String, line: &str) {
    let bound = line
        .find("le=\"")
        .map(|at| at + 4)
        .filter(|_| line.contains("_bucket{"));
    match bound.and_then(|at| Some((at, at + line[at..].find('"')?))) {
        Some((from, to)) => {
            // `Display` of f64 writes the shortest plain decimal, as Go does for bounds of this size.
            let plain = line[from..to]
                .parse::<f64>()
                .ok()
                .filter(|bound| bound.is_finite());
            out.push_str(&line[..from]);
            out.push_str(
                &plain.map_or_else(|| line[from..to].to_owned(), |bound| bound.to_string()),
            );
            out.push_str(&line[to..]);
        }
        None => out.push_str(line),
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::convert;

    #[test]
    fn counters_bounds_and_help_become_prometheus_text() {
        let open_metrics = "# HELP a_b Things counted.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n\
                            # HELP h H.\n# TYPE h histogram\n# UNIT h seconds\nh_bucket{le=\"1.0\"} 0\nh_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(
            convert(open_metrics),
            "# HELP a_b_total Things counted\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n\
             # HELP h H\n# TYPE h histogram\nh_bucket{le=\"1\"} 0\nh_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
