//! What a campaign came to, and how it is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::state::State;
use super::telling::Told;

/// What a campaign came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub cases: usize,
    pub states: usize,
    pub refused: usize,
    pub questions: usize,
    /// Health-check ports asked.
    pub health: usize,
    pub told: Told,
    pub explained: BTreeMap<&'static str, usize>,
    /// Disagreeing states: where they are kept, and what they disagree in.
    pub failed: Vec<(PathBuf, Vec<String>)>,
    /// Disagreements that the same state, put on once more, did not show.
    pub passing: Vec<String>,
}

impl Report {
    pub(super) fn complain(&mut self, state: &State, complaints: &[String]) {
        for complaint in complaints {
            println!("oracle: {}: refused: {complaint}", state.note);
        }
        self.refused += complaints.len();
    }

    /// The table at the end.
    pub fn print(&self) {
        println!("\n{:<32} {:>9}", "cases", self.cases);
        println!(
            "{:<32} {:>9}",
            "objects refused by the API server", self.refused
        );
        println!("{:<32} {:>9}", "questions to each cluster", self.questions);
        println!("{:<32} {:>9}", "health-check ports asked", self.health);
        for (rule, count) in &self.explained {
            println!("{:<32} {count:>9}", format!("  differ by {rule}"));
        }
        let told = &self.told;
        println!("{:<32} {:>9}", "stories", told.stories);
        println!("{:<32} {:>9}", "flows through changes", told.flows);
        println!("{:<32} {:>9}", "their outcomes compared", told.compared);
        for (rule, count) in &told.explained {
            println!("{:<32} {count:>9}", format!("  differ by {rule}"));
        }
        println!("{:<32} {:>9}", "faults in stories", told.faults.len());
        for fault in &told.faults {
            println!("{fault}");
        }
        println!("{:<32} {:>9}", "seen once, not again", self.passing.len());
        for text in &self.passing {
            println!("{text}");
        }
        println!("{:<32} {:>9}", "states that disagree", self.failed.len());
        // Once more, as of a long log only the end may be at hand.
        for (path, texts) in &self.failed {
            println!("FAILED  {}", path.display());
            for text in texts {
                println!("{text}");
            }
        }
    }
}
