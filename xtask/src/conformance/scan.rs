//! Finds what tests quote: ids of rules ("D4", "§5.9") and titles of upstream's tests, in comments on a test, in it, or
//! at the head of its file.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Index;

/// Where tests are: those of a file's own module, too.
const PLACES: &[&str] = &[
    "tests/tests",
    "tests/src/twins/stories.rs",
    "tests/src/twins/affinity.rs",
    "tests/src/twins/health.rs",
    "lb-agent/src",
    "lb-agent/tests",
    "lb-ebpf/src",
];

/// A test that quotes something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Quote {
    /// The file, without ending.
    file: String,
    /// The function; none if the file's head quotes it.
    test: Option<String>,
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Some(test) => write!(f, "{}::{test}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// Everything that tests quote.
#[derive(Default)]
pub(super) struct Quotes {
    rules: Index,
    titles: Index,
}

impl Quotes {
    pub(super) fn collect() -> Result<Self> {
        let mut quotes = Self::default();
        for place in PLACES {
            quotes.visit(&crate::root().join(place))?;
        }
        for index in [&mut quotes.rules, &mut quotes.titles] {
            for tests in index.values_mut() {
                tests.sort();
                tests.dedup();
            }
        }
        Ok(quotes)
    }

    /// Tests that quote a rule.
    pub(super) fn of_rule(&self, id: &str) -> Vec<&Quote> {
        self.rules.get(id).into_iter().flatten().collect()
    }

    /// Tests that quote an upstream test, or the greater part of its title.
    pub(super) fn of_title(&self, title: &str) -> Vec<&Quote> {
        let named = self
            .titles
            .iter()
            .filter(|(quoted, _)| title.contains(quoted.as_str()));
        named.flat_map(|(_, tests)| tests).collect()
    }

    /// All titles that are quoted.
    pub(super) fn titles(&self) -> impl Iterator<Item = (&str, &[Quote])> {
        self.titles
            .iter()
            .map(|(title, tests)| (title.as_str(), tests.as_slice()))
    }

    fn visit(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            let entries = path
                .read_dir()
                .with_context(|| format!("read {}", path.display()))?;
            let mut paths: Vec<_> = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?;
            paths.sort();
            return paths.iter().try_for_each(|path| self.visit(path));
        }
        if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read {}", path.display()))?;
            let below = path.strip_prefix(crate::root())?.with_extension("");
            self.read(&below.to_string_lossy(), &text);
        }
        Ok(())
    }

    /// Reads one file. Outside of files that are all tests, only what follows `mod tests` counts.
    fn read(&mut self, path: &str, text: &str) {
        let all_tests = path.starts_with("tests/") || path.contains("/tests");
        let file = short(path);
        let mut reader = Reader {
            quotes: self,
            file,
            test: None,
            comment: String::new(),
            head: all_tests,
            marked: false,
            all: path.starts_with("tests/src/twins/"),
            everywhere: path.starts_with("tests/src/twins/"),
        };
        let mut counts = all_tests;
        for line in text.lines() {
            counts |= line.trim_start().starts_with("mod tests {");
            if counts {
                reader.line(line);
            }
        }
        reader.close();
    }
}

/// "tests/tests/node_flows" is `node_flows`; a module's tests keep enough of their path to be found.
fn short(path: &str) -> String {
    let path = path.strip_prefix("tests/tests/").unwrap_or(path);
    let path = path.strip_prefix("tests/src/").unwrap_or(path);
    path.replace("lb-agent/src/", "")
        .replace("lb-agent/tests/", "")
        .replace('/', "::")
}

struct Reader<'a> {
    quotes: &'a mut Quotes,
    file: String,
    test: Option<String>,
    /// Lines of one comment, joined.
    comment: String,
    /// Nothing but the file's own comment so far.
    head: bool,
    /// The function to come has the attribute of a test.
    marked: bool,
    /// In a macro that makes tests, or a list of stories: all functions are some.
    all: bool,
    /// The file is such a list.
    everywhere: bool,
}

impl Reader<'_> {
    fn line(&mut self, whole: &str) {
        let line = whole.trim_start();
        if whole.starts_with("in_") && whole.contains("! {") {
            self.all = true;
        } else if whole == "}" && !self.everywhere {
            self.all = false;
        }
        if let Some(words) = line.strip_prefix("//") {
            self.comment.push_str(words.trim_start_matches(['/', '!']));
            return;
        }
        if self.head && !self.comment.is_empty() {
            let words = std::mem::take(&mut self.comment);
            self.quote(&words, None);
        }
        self.head &= line.is_empty();
        if let Some(name) = function(line) {
            self.test = (self.marked || self.all).then(|| name.to_owned());
            self.marked = false;
            for id in ids_of_name(name) {
                self.comment.push_str(&format!(" {id}"));
            }
        } else if line.starts_with('#') {
            // An attribute stands between a comment and its function.
            self.marked |= line.contains("test]") || line.contains("::test(");
            return;
        }
        self.close();
        if let Some((_, words)) = line.split_once("// ") {
            self.quote(words, self.test.clone());
        }
    }

    fn close(&mut self) {
        let words = std::mem::take(&mut self.comment);
        self.quote(&words, self.test.clone());
    }

    fn quote(&mut self, words: &str, test: Option<String>) {
        let quote = Quote {
            file: self.file.clone(),
            test,
        };
        for id in ids(words) {
            self.quotes.rules.entry(id).or_default().push(quote.clone());
        }
        for title in words
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|title| title.starts_with("should "))
        {
            self.quotes
                .titles
                .entry(title.to_owned())
                .or_default()
                .push(quote.clone());
        }
    }
}

/// The name of the function that begins here.
fn function(line: &str) -> Option<&str> {
    let words = line.strip_prefix("pub ").unwrap_or(line);
    let words = words.strip_prefix("async ").unwrap_or(words);
    words.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// Ids at the head of a name: `b2_b3_slices_…`, `s5_7_…`.
fn ids_of_name(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = name.split('_').peekable();
    while let Some(word) = words.next() {
        let (Some(letter), Ok(number)) = (
            word.chars().next(),
            word.get(1..).unwrap_or("").parse::<u32>(),
        ) else {
            break;
        };
        match (letter, words.peek()) {
            ('a'..='j', _) => found.push(format!("{}{number}", letter.to_ascii_uppercase())),
            ('s', _) if number == 2 => {
                found.push("§2".into());
                words.next();
            }
            ('s', Some(part)) if part.parse::<u32>().is_ok() => {
                found.push(format!("§{number}.{part}"));
                words.next();
            }
            _ => break,
        }
    }
    found
}

/// Ids in a text: a letter and a number, ranges of such ("H6-H13"), or a section's sign and its number.
fn ids(words: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: Option<(char, u32, usize)> = None;
    let place = |c: char| !c.is_ascii_alphanumeric() && c != '§' && c != '.' && c != '_';
    let mut position = 0;
    for word in words.split(place) {
        let at = position;
        position += word.len() + 1;
        let word = word.trim_end_matches('.');
        if let Some(section) = word.strip_prefix('§') {
            if section.starts_with(|c: char| c.is_ascii_digit()) {
                found.push(word.to_owned());
            }
            continue;
        }
        // "E13.5" is a part of E13.
        let word = word.split('.').next().unwrap_or_default();
        let mut letters = word.chars();
        let Some(letter @ 'A'..='J') = letters.next() else {
            continue;
        };
        let Some(number) = letters
            .as_str()
            .parse::<u32>()
            .ok()
            .filter(|number| *number < 100)
        else {
            continue;
        };
        if let Some((first, from, end)) = last
            && first == letter
            && at == end + 1
            && words.as_bytes().get(end) == Some(&b'-')
        {
            found.extend((from + 1..number).map(|between| format!("{letter}{between}")));
        }
        found.push(format!("{letter}{number}"));
        last = Some((letter, number, position - 1));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_other_words() {
        assert_eq!(
            ids("spec D4, E13.5 and §5.9; not IPv6, X1 or A100"),
            ["D4", "E13", "§5.9"]
        );
        assert_eq!(ids("(H6-H8)."), ["H6", "H7", "H8"]);
        assert_eq!(ids("H6, H8"), ["H6", "H8"]);
    }

    #[test]
    fn names_begin_with_ids() {
        assert_eq!(ids_of_name("b2_b13_slices_of_4_pods"), ["B2", "B13"]);
        assert_eq!(ids_of_name("s5_7_internal"), ["§5.7"]);
        assert!(ids_of_name("a_name_b2").is_empty());
    }

    #[test]
    fn a_comment_belongs_to_its_test_and_the_head_to_all() {
        let mut quotes = Quotes::default();
        let text = "//! Of D1.\n\nuse x;\n\n/// D2, upstream: \"should\n/// work\".\n#[test]\nfn one() {\n    // D3\n}\n// D4\nfn helper() {}\n";
        quotes.read("tests/tests/node_x", text);
        let names = |id: &str| {
            quotes
                .of_rule(id)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("D1"), ["node_x"]);
        assert_eq!(names("D2"), ["node_x::one"]);
        assert_eq!(names("D3"), ["node_x::one"]);
        assert_eq!(names("D4"), ["node_x"]);
        assert_eq!(quotes.of_title("Services should work for ever").len(), 1);
    }

    #[test]
    fn code_that_quotes_a_rule_is_no_test_of_it() {
        let mut quotes = Quotes::default();
        quotes.read(
            "lb-agent/src/model/mod",
            "// D1\nfn a() {}\nmod tests {\n    // D2\n    fn b() {}\n}\n",
        );
        assert!(quotes.of_rule("D1").is_empty());
        assert_eq!(quotes.of_rule("D2").len(), 1);
    }
}
