//! Results of a run: read from the report, compared with kube-proxy's, written down.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// How one test ended, and after how many seconds.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Outcome {
    pub(super) passed: bool,
    pub(super) seconds: f32,
}

/// By the test's name. What skipped itself is not in it.
#[derive(Default, PartialEq, Debug)]
pub(super) struct Results(BTreeMap<String, Outcome>);

impl Results {
    /// From a report in JUnit's form.
    pub(super) fn from_junit(text: &str) -> Self {
        let cases = text.split("<testcase ").skip(1);
        let results = cases.filter_map(|case| {
            let head = case.split('>').next()?;
            let attribute = |name: &str| {
                let value = head.split_once(&format!("{name}=\""))?.1;
                Some(unescape(value.split('"').next()?))
            };
            // Set-up of the whole run is a case too.
            let name = attribute(" name").or_else(|| attribute("name"))?;
            let name = name.strip_prefix("[It] ")?.to_owned();
            let passed = match attribute("status")?.as_str() {
                "passed" => true,
                "skipped" | "pending" => return None,
                _ => false,
            };
            let seconds = attribute("time")?.parse().ok()?;
            Some((name, Outcome { passed, seconds }))
        });
        Self(results.collect())
    }

    /// From a table: result, seconds, name.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let line = |line: &str| {
            let mut words = line.splitn(3, '\t');
            let passed = words.next()? == "passed";
            let seconds = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), Outcome { passed, seconds }))
        };
        let mut results = BTreeMap::new();
        for (number, text) in text.lines().enumerate() {
            let Some((name, outcome)) = line(text) else {
                bail!(
                    "{}:{}: expected result, seconds, name",
                    file.display(),
                    number + 1
                );
            };
            results.insert(name, outcome);
        }
        Ok(Self(results))
    }

    pub(super) fn table(&self) -> String {
        let line = |(name, outcome): (&String, &Outcome)| {
            format!("{}\t{:.1}\t{name}\n", word(outcome.passed), outcome.seconds)
        };
        self.0.iter().map(line).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn passed(&self) -> usize {
        self.0.values().filter(|outcome| outcome.passed).count()
    }

    pub(super) fn failures(&self) -> Vec<&str> {
        let failed = self.0.iter().filter(|(_, outcome)| !outcome.passed);
        failed.map(|(name, _)| name.as_str()).collect()
    }

    /// Tests that fail here and pass there, or are not known there.
    pub(super) fn worse_than(&self, baseline: &Self) -> Vec<&str> {
        let fails_there = |name: &str| baseline.0.get(name).is_some_and(|outcome| !outcome.passed);
        self.failures()
            .into_iter()
            .filter(|name| !fails_there(name))
            .collect()
    }

    /// A page's table: test, kube-proxy, here, seconds.
    pub(super) fn page(&self, baseline: &Self) -> String {
        let mut text =
            String::from("| test | kube-proxy | Beeline | seconds |\n| --- | --- | --- | --- |\n");
        for (name, outcome) in &self.0 {
            let there = baseline
                .0
                .get(name)
                .map_or("not run", |there| word(there.passed));
            text.push_str(&format!(
                "| {} | {there} | {} | {:.0} |\n",
                short(name),
                word(outcome.passed),
                outcome.seconds
            ));
        }
        text
    }
}

fn word(passed: bool) -> &'static str {
    if passed { "passed" } else { "failed" }
}

/// Without labels that are repeated at the end, and what a table would take for its own.
fn short(name: &str) -> String {
    let name = name.strip_prefix("[sig-network] ").unwrap_or(name);
    let name = name
        .rsplit_once(" [sig-network")
        .map_or(name, |(name, _)| name);
    name.replace('|', "\\|")
}

fn unescape(text: &str) -> String {
    [
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escaped, plain)| {
        text.replace(escaped, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<testsuite>
  <testcase name="[SynchronizedBeforeSuite]" classname="x" status="passed" time="0.9"></testcase>
  <testcase name="[It] [sig-network] Services a &lt;b&gt; [sig-network]" classname="x" status="passed" time="12.34"></testcase>
  <testcase name="[It] [sig-network] Services c [sig-network, Slow]" classname="x" status="failed" time="60"><failure>> time="1"</failure></testcase>
  <testcase name="[It] [sig-network] Services d [sig-network]" classname="x" status="skipped" time="0"></testcase>
  <testcase name="[It] [sig-network] Services e [sig-network]" classname="x" status="timedout" time="3"></testcase>
</testsuite>"#;

    fn results(lines: &[(&str, bool)]) -> Results {
        let one = |(name, passed): &(&str, bool)| {
            let outcome = Outcome {
                passed: *passed,
                seconds: 1.0,
            };
            ((*name).to_owned(), outcome)
        };
        Results(lines.iter().map(one).collect())
    }

    #[test]
    fn a_report_is_read() {
        let read = Results::from_junit(REPORT);
        assert_eq!(
            read.table(),
            "passed\t12.3\t[sig-network] Services a <b> [sig-network]\n\
             failed\t60.0\t[sig-network] Services c [sig-network, Slow]\n\
             failed\t3.0\t[sig-network] Services e [sig-network]\n"
        );
        assert_eq!((read.count(), read.passed()), (3, 1));
    }

    #[test]
    fn only_what_passes_there_or_is_unknown_counts_against_us() {
        let here = results(&[("a", false), ("b", false), ("c", true), ("new", false)]);
        let there = results(&[("a", false), ("b", true), ("c", false)]);
        assert_eq!(here.worse_than(&there), ["b", "new"]);
    }

    #[test]
    fn names_are_shortened_for_the_page() {
        assert_eq!(
            short("[sig-network] Services a|b [Slow] [sig-network, Slow]"),
            "Services a\\|b [Slow]"
        );
    }

    #[test]
    fn the_baselines_are_readable() {
        for name in ["nftables", "iptables"] {
            let file = crate::root().join(format!("tests/e2e/baseline-kube-proxy-{name}.tsv"));
            assert!(Results::read(&file).unwrap().passed() > 50, "{name}");
        }
    }
}
