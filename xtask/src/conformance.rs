//! `cargo xtask conformance`: the page that says of every rule of a service proxy who holds it.
//!
//! Rules stand in `tests/conformance/rules.tsv`, in our own words; tests quote their ids, or upstream's titles, in
//! comments, and are found by that ([`scan`]). Upstream's results come from `docs/e2e.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::say;

mod scan;

use scan::{Quote, Quotes};

const RULES: &str = "tests/conformance/rules.tsv";
const ELSEWHERE: &str = "tests/conformance/elsewhere.tsv";
const UPSTREAM: &str = "docs/e2e.md";
const PAGE: &str = "docs/conformance.md";

/// Tests named in one row; the others are counted.
const NAMED: usize = 4;

/// One rule.
struct Rule {
    id: String,
    text: String,
    /// With iptables, nftables and Beeline; "=" is what the text says.
    behaviour: [String; 3],
    reason: String,
}

/// One of upstream's own tests, and how it ended.
struct Upstream {
    title: String,
    kube_proxy: String,
    beeline: String,
    /// How long it took here; empty if it was not run.
    seconds: String,
}

/// What the page is made of.
struct Sources {
    rules: Vec<Rule>,
    upstream: Vec<Upstream>,
    /// Which run of upstream's tests that was.
    run: String,
    quotes: Quotes,
}

/// Writes the page.
pub(crate) fn run() -> Result<()> {
    let sources = Sources::read()?;
    fs::write(crate::root().join(PAGE), sources.page()).with_context(|| format!("write {PAGE}"))?;
    say(format_args!("conformance: {PAGE} is written"));
    sources.judge()
}

/// Whether the page is what it would be now, and every rule has a test.
pub(crate) fn check() -> Result<()> {
    let sources = Sources::read()?;
    sources.judge()?;
    ensure!(
        text(PAGE)? == sources.page(),
        "{PAGE} is stale: run `cargo xtask conformance`"
    );
    Ok(())
}

impl Sources {
    fn read() -> Result<Self> {
        let rules = rows(RULES)?
            .into_iter()
            .map(|row| match <[String; 6]>::try_from(row) {
                Ok([id, text, iptables, nftables, beeline, reason]) => Ok(Rule {
                    id,
                    text,
                    behaviour: [iptables, nftables, beeline],
                    reason,
                }),
                Err(row) => bail!("{RULES}: a row has six columns: {}", row.join(" | ")),
            })
            .collect::<Result<_>>()?;
        let results = text(UPSTREAM)?;
        let run = run_of(&results)
            .with_context(|| format!("{UPSTREAM} does not say of which commit its table is"))?
            .to_owned();
        let mut upstream = ran(&results);
        for row in rows(ELSEWHERE)? {
            let Ok([title, why]) = <[String; 2]>::try_from(row) else {
                bail!("{ELSEWHERE}: a row has two columns");
            };
            upstream.push(Upstream {
                title,
                kube_proxy: "not run".into(),
                beeline: why,
                seconds: String::new(),
            });
        }
        Ok(Self {
            rules,
            upstream,
            run,
            quotes: Quotes::collect()?,
        })
    }

    fn judge(&self) -> Result<()> {
        let mut faults: Vec<String> = self
            .rules
            .iter()
            .filter(|rule| self.quotes.of_rule(&rule.id).is_empty())
            .map(|rule| format!("no test quotes {}: write one", rule.id))
            .collect();
        let ids: BTreeSet<&str> = self.rules.iter().map(|rule| rule.id.as_str()).collect();
        if ids.len() != self.rules.len() {
            faults.push(format!("{RULES}: an id is there twice"));
        }
        for (title, places) in self.quotes.titles() {
            if !self.upstream.iter().any(|test| test.title.contains(title)) {
                let places: Vec<String> = places.iter().map(ToString::to_string).collect();
                faults.push(format!(
                    "{}: no test of upstream is called \"{title}\"",
                    places.join(", ")
                ));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        bail!("{}", faults.join("\n"))
    }

    fn page(&self) -> String {
        let mut page = String::from(HEAD);
        let passed = self.upstream.iter().filter(|test| test.beeline == "passed");
        let here = self
            .upstream
            .iter()
            .filter(|test| !self.quotes.of_title(&test.title).is_empty());
        let _ = writeln!(
            page,
            "{} rules, each with tests.\n\nOf {} tests of upstream {} pass on a cluster; what {} of them say is tested in \
             namespaces, too.\n",
            self.rules.len(),
            self.upstream.len(),
            passed.count(),
            here.count(),
        );
        page.push_str(
            "## Rules\n\n| id | rule | iptables | nftables | Beeline | reason | tests |\n| --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for rule in &self.rules {
            let [iptables, nftables, beeline] = &rule.behaviour;
            let _ = writeln!(
                page,
                "| {} | {} | {iptables} | {nftables} | {beeline} | {} | {} |",
                rule.id,
                rule.text,
                rule.reason,
                named(&self.quotes.of_rule(&rule.id), "no test")
            );
        }
        let _ = writeln!(
            page,
            "\n## Upstream's tests\n\n{}\n\n| test | kube-proxy | Beeline | seconds | in namespaces |\n\
             | --- | --- | --- | --- | --- |",
            self.run
        );
        for test in &self.upstream {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} |",
                test.title,
                test.kube_proxy,
                test.beeline,
                test.seconds,
                named(&self.quotes.of_title(&test.title), "")
            );
        }
        page
    }
}

const HEAD: &str = "# Conformance

<!-- Written by `cargo xtask conformance`; `cargo xtask check` fails where it is stale. -->

What a service proxy has to do, rule by rule: what kube-proxy does in its two modes, what Beeline does, and which tests
hold it. Rules come from reading kube-proxy 1.37 and watching it run. \"=\" means: as the rule says. Beside these tests
the [comparison with the real kube-proxy](differences.md) asks about generated Services, and [upstream's end-to-end
tests](e2e.md) run on a cluster. A test is found by the id it quotes.

";

/// Names of tests, shortened.
fn named(tests: &[&Quote], nobody: &str) -> String {
    if tests.is_empty() {
        return nobody.into();
    }
    let mut names: Vec<String> = tests
        .iter()
        .take(NAMED)
        .map(|quote| format!("`{quote}`"))
        .collect();
    if tests.len() > NAMED {
        names.push(format!("{} more", tests.len() - NAMED));
    }
    names.join(", ")
}

/// What `cargo xtask e2e --record` writes above its table: commit, how many passed, on which cluster.
fn run_of(page: &str) -> Option<&str> {
    page.lines()
        .skip_while(|line| *line != "## Every test")
        .find(|line| line.starts_with("Commit "))
}

/// The table that `cargo xtask e2e --record` writes.
fn ran(page: &str) -> Vec<Upstream> {
    let cells = |line: &str| -> Option<[String; 4]> {
        let cells: Vec<String> = line
            .strip_prefix("| ")?
            .strip_suffix(" |")?
            .split(" | ")
            .map(String::from)
            .collect();
        cells.try_into().ok()
    };
    page.lines()
        .skip_while(|line| *line != "## Every test")
        .filter_map(cells)
        .filter(|[title, ..]| title != "test" && title != "---")
        .map(|[title, kube_proxy, beeline, seconds]| Upstream {
            title,
            kube_proxy,
            beeline,
            seconds,
        })
        .collect()
}

/// Rows of a table with tabs; lines that begin with "#" are remarks.
fn rows(path: &str) -> Result<Vec<Vec<String>>> {
    Ok(text(path)?
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split('\t').map(String::from).collect())
        .collect())
}

fn text(path: &str) -> Result<String> {
    fs::read_to_string(crate::root().join(path)).with_context(|| format!("read {path}"))
}

/// Quotes by what is quoted.
type Index = BTreeMap<String, Vec<Quote>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_results_are_read_from_its_table_alone() {
        let page = "Commit a\n| a | b | c | d |\n## Every test\nCommit b: 1 of 2\n| test | kube-proxy | Beeline | seconds |\n| --- | --- | --- | --- |\n\
                    | Services should | passed | failed | 3 |\n";
        let found = ran(page);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].title, "Services should");
        assert_eq!(found[0].beeline, "failed");
        assert_eq!(found[0].seconds, "3");
        assert_eq!(run_of(page), Some("Commit b: 1 of 2"));
    }
}
