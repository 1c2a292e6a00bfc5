//! Histories after which the tables once said what they must not, and now do not.

use std::path::Path;

use lb_tests::history::run::run;
use lb_tests::history::script::Fixture;

#[test]
fn every_kept_history_ends_well() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/control");
    let mut failures = Vec::new();
    let mut kept = 0;
    for entry in std::fs::read_dir(&directory).expect("the kept histories") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a kept history");
        let fixture = Fixture::read(&text).unwrap_or_else(|error| panic!("{path:?}: {error:#}"));
        if let Err(failure) = run(&fixture.script) {
            failures.push(format!("{}: {failure:?}", path.display()));
        }
        kept += 1;
    }
    assert!(kept > 0, "no histories in {directory:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
