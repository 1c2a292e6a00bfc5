//! The loop: kept states first, then generated ones, until enough cases were compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use super::affinity;
use super::differences::reconcile;
use super::generate;
use super::health;
use super::mode_differences::in_iptables_mode;
use super::mutate::mutated;
use super::outcome::Outcome;
use super::question::{Question, questions};
pub use super::report::Report;
use super::shrink;
use super::stage::{CLIENTS, Proxy, Stage, Xdp};
use super::state::State;
use super::telling;
use crate::agent::SocketLb;
use crate::fuzz::random::Random;
use crate::kube_proxy::Mode;
use crate::link::Layout;
use crate::peer::protocol::Probe;

/// What to compare.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Generated cases: Services with their slices, and everything clients ask about one.
    #[arg(long, default_value_t = 200)]
    pub cases: usize,
    /// The same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// State to begin with; each has `--together` cases.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// Cases in the API server at one time.
    #[arg(long, default_value_t = 12, value_parser = together)]
    pub together: usize,
    /// Times that each state is changed, object by object, and compared again.
    #[arg(long, default_value_t = 1)]
    pub changes: usize,
    /// Percentage of all questions that are asked.
    #[arg(long, default_value_t = 40)]
    pub share: usize,
    /// kube-proxy's backend.
    #[arg(long, value_enum, default_value_t = Backend::Nftables)]
    pub mode: Backend,
    /// Pods on point-to-point links instead of bridges.
    #[arg(long)]
    pub point_to_point: bool,
    /// Beeline with --snat-local=preserve, its default.
    #[arg(long)]
    pub preserve: bool,
    /// One more twin: Beeline without hooks, with XDP on its uplinks.
    #[arg(long)]
    pub xdp: bool,
    /// Tell these stories only.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub stories: Vec<String>,
    /// Tell no stories.
    #[arg(long)]
    pub no_stories: bool,
    /// Compare this state only, with all its questions.
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Leave out the kept states.
    #[arg(long)]
    pub only_generated: bool,
    /// End after this many states that disagree.
    #[arg(long, default_value_t = 10)]
    pub failures: usize,
    /// Say what takes time.
    #[arg(long)]
    pub verbose: bool,
    /// Keep disagreeing states as they are.
    #[arg(long)]
    pub no_shrink: bool,
}

fn together(text: &str) -> Result<usize> {
    let most = generate::MOST_TOGETHER as usize;
    let number: usize = text.parse()?;
    ensure!((1..=most).contains(&number), "1 to {most}");
    Ok(number)
}

/// kube-proxy's backend, as a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Backend {
    Nftables,
    Iptables,
}

/// One question that was answered differently.
#[derive(Clone, Debug)]
pub struct Disagreement {
    pub question: Question,
    pub proxy: Proxy,
    pub theirs: Outcome,
    pub ours: Outcome,
}

/// What a comparison of one state came to.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    pub questions: usize,
    /// Questions by the rule that made their answers equal.
    pub explained: BTreeMap<&'static str, usize>,
    pub disagreements: Vec<Disagreement>,
}

/// Rounds of thorough asking before a disagreement is believed.
const ROUNDS: usize = 3;

/// Runs the whole campaign on a stage of its own.
pub fn run(options: &Options) -> Result<Report> {
    let start = Instant::now();
    println!("oracle: building the twins");
    let mode = match options.mode {
        Backend::Nftables => Mode::Nftables,
        Backend::Iptables => Mode::Iptables,
    };
    let ours = |socket_lb, xdp| Proxy::Beeline {
        socket_lb,
        snat_local: !options.preserve,
        xdp,
    };
    let mut proxies = vec![
        Proxy::KubeProxy(mode),
        ours(SocketLb::All, Xdp::Off),
        ours(SocketLb::Off, Xdp::Off),
    ];
    if options.xdp {
        proxies.push(ours(SocketLb::Off, Xdp::Native));
    }
    let layout = if options.point_to_point {
        Layout::PointToPoint
    } else {
        Layout::Bridge
    };
    let mut stage = Stage::build(&proxies, layout)?;
    stage.verbose = options.verbose;
    println!("oracle: the twins are up after {:.1?}", start.elapsed());
    let mut report = Report::default();
    let begun = Instant::now();
    if let Some(path) = &options.replay {
        one(
            &mut stage,
            &State::read(path)?,
            100,
            0,
            options,
            &mut report,
        )?;
        say(&report, begun);
        return Ok(report);
    }
    if !options.only_generated {
        for path in kept()? {
            one(
                &mut stage,
                &State::read(&path)?,
                100,
                0,
                options,
                &mut report,
            )?;
        }
        say(&report, begun);
    }
    if !options.no_stories {
        tell_stories(&mut stage, options, &mut report)?;
    }
    let kept_cases = report.cases;
    let mut number = options.from;
    while report.cases - kept_cases < options.cases && report.failed.len() < options.failures {
        let left = options.cases - (report.cases - kept_cases);
        let state = generate::state(options.seed, number, options.together.min(left));
        one(
            &mut stage,
            &state,
            options.share,
            options.changes,
            options,
            &mut report,
        )?;
        say(&report, begun);
        number += 1;
    }
    Ok(report)
}

/// Tells the stories; if there are faults, once more, as what is a proxy's doing shows again.
fn tell_stories(stage: &mut Stage, options: &Options, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let mut tell = || {
        let mut told = telling::tell(stage, &telling::chosen(&options.stories)?)?;
        if options.stories.is_empty() {
            told.faults.extend(affinity::tell(stage)?);
            told.stories += 1;
        }
        for fault in &told.faults {
            println!("oracle: {fault}");
        }
        anyhow::Ok(told)
    };
    report.told = tell()?;
    if !report.told.faults.is_empty() {
        println!("oracle: telling the stories once more");
        let again = tell()?;
        if again.faults.is_empty() {
            report.passing.append(&mut report.told.faults);
        }
        report.told = again;
    }
    println!(
        "oracle: {} stories took {:.1?}",
        report.told.stories,
        start.elapsed()
    );
    Ok(())
}

/// States of earlier disagreements, and those that show one rule.
fn kept() -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oracle");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Puts a state on, compares, changes it, and compares again.
fn one(
    stage: &mut Stage,
    state: &State,
    share: usize,
    changes: usize,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let start = Instant::now();
    let (mut taken, complaints) = stage.put(state)?;
    if stage.verbose {
        println!(
            "oracle: {} is there after {:.1?}",
            state.note,
            start.elapsed()
        );
    }
    report.complain(state, &complaints);
    let mut random = Random::new(options.seed ^ report.states as u64);
    let mut asked = questions(&taken, &mut random, share);
    judge(stage, &taken, None, &asked, options, report)?;
    for _ in 0..changes {
        let next = mutated(&taken, &mut random);
        let complaints = stage.change(&taken, &next)?;
        report.complain(&next, &complaints);
        // What was an address before must not be one still.
        asked.truncate(asked.len() / 2);
        asked = asked
            .into_iter()
            .map(|question| question.about(&next))
            .filter(|question| !question.is_open(&next))
            .collect();
        asked.extend(questions(&next, &mut random, share));
        judge(stage, &next, Some(&taken), &asked, options, report)?;
        taken = next;
    }
    Ok(())
}

/// Compares what is on the stage now; `before` is what it was changed from.
fn judge(
    stage: &mut Stage,
    taken: &State,
    before: Option<&State>,
    asked: &[Question],
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let compared = compare(stage, asked)?;
    report.cases += taken.cases.len();
    report.states += 1;
    report.questions += compared.questions;
    for (rule, count) in &compared.explained {
        *report.explained.entry(rule).or_default() += count;
    }
    let health = health::check(stage)?;
    report.health += health.asked;
    if compared.disagreements.is_empty() && health.faults.is_empty() {
        return Ok(());
    }
    for fault in &health.faults {
        println!("{fault}");
    }
    println!(
        "oracle: {}: {} questions are answered differently",
        taken.note,
        compared.disagreements.len()
    );
    let texts = compared.disagreements.iter().take(40);
    let texts: Vec<String> = texts.map(|each| each.text(taken)).collect();
    for text in &texts {
        println!("{text}");
    }
    // The same way to the same state once more: what is a proxy's doing shows again.
    match before {
        Some(before) => {
            stage.put(before)?;
            stage.change(before, taken)?;
        }
        None => {
            stage.put(taken)?;
        }
    }
    if compare(stage, asked)?.disagreements.is_empty() {
        // For whoever looks into it: this state, and the one before it, as they were.
        let path = place(taken, "once-")?;
        taken.write(&path)?;
        if let Some(before) = before {
            before.write(&path.with_extension("before.json"))?;
        }
        println!("oracle: not a second time; kept in {}", path.display());
        report.passing.extend(texts);
        return Ok(());
    }
    let path = keep(stage, taken, before, &compared.disagreements, options)?;
    println!("oracle: kept in {}", path.display());
    report.failed.push((path, texts));
    Ok(())
}

fn keep(
    stage: &mut Stage,
    state: &State,
    before: Option<&State>,
    disagreements: &[Disagreement],
    options: &Options,
) -> Result<PathBuf> {
    let path = place(state, "")?;
    state.write(&path)?;
    if !options.no_shrink {
        let small = shrink::shrink(stage, state, disagreements)?;
        if small == *state
            && let Some(before) = before
        {
            // Perhaps only the way there makes the difference.
            before.write(&path.with_extension("before.json"))?;
        }
        small.write(&path)?;
        println!("{}", serde_json::to_string(&small)?);
        // What follows begins with this state.
        stage.put(state)?;
    }
    Ok(path)
}

/// The file of a state that disagrees.
fn place(state: &State, prefix: &str) -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oracle");
    fs::create_dir_all(&directory)?;
    let name: String = state
        .note
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    Ok(directory.join(format!("{prefix}{name}.json")))
}

/// Asks all twins and compares; what differs is asked again, often.
pub fn compare(stage: &Stage, asked: &[Question]) -> Result<Compared> {
    let mut compared = Compared {
        questions: asked.len(),
        ..Compared::default()
    };
    let mut open: Vec<Question> = asked.to_vec();
    for round in 0..=ROUNDS {
        if round > 0 && stage.verbose {
            println!("oracle: {} questions are asked again", open.len());
        }
        if round > 1 {
            std::thread::sleep(Duration::from_millis(500));
        }
        let probe: fn(&Question) -> Probe = if round == 0 {
            Question::quickly
        } else {
            Question::thoroughly
        };
        let mut groups: Vec<Vec<Question>> = vec![Vec::new(); CLIENTS.len()];
        for question in open.drain(..) {
            groups[question.client].push(question);
        }
        let probes: Vec<Vec<Probe>> = groups
            .iter()
            .map(|group| group.iter().map(probe).collect())
            .collect();
        let start = Instant::now();
        let found = stage.ask(&probes)?;
        if stage.verbose {
            println!("oracle: round {round} took {:.1?}", start.elapsed());
        }
        compared.disagreements.clear();
        for (client, group) in groups.into_iter().enumerate() {
            for (index, question) in group.into_iter().enumerate() {
                let outcome = |twin: usize| {
                    Outcome::of(&question, &found[twin][client][index]).unrouted(&question)
                };
                let theirs = outcome(0);
                let mut rules = Vec::new();
                let mut against = Vec::new();
                for (number, twin) in stage.twins.iter().enumerate().skip(1) {
                    let ours = outcome(number);
                    let agreed = reconcile(&question, twin.proxy, &theirs, &ours).or_else(|| {
                        in_iptables_mode(stage.twins[0].proxy, &question, &theirs, &ours)
                    });
                    match agreed {
                        Some(used) => rules.extend(used),
                        None => against.push(Disagreement {
                            question: question.clone(),
                            proxy: twin.proxy,
                            theirs: theirs.clone(),
                            ours,
                        }),
                    }
                }
                if against.is_empty() {
                    for rule in rules {
                        *compared.explained.entry(rule).or_default() += 1;
                    }
                } else {
                    open.push(question);
                    compared.disagreements.extend(against);
                }
            }
        }
        if open.is_empty() {
            break;
        }
    }
    Ok(compared)
}

impl Disagreement {
    /// One line for a person.
    pub fn text(&self, state: &State) -> String {
        let Question {
            case,
            aim,
            to,
            manner,
            ..
        } = &self.question;
        let case = case.map_or("nobody", |index| state.cases[index].name());
        format!(
            "  {case}: {:?} → {aim:?} {to} {manner:?}\n    kube-proxy: {}\n    {}: {}",
            self.question.who(),
            self.theirs,
            self.proxy,
            self.ours
        )
    }
}

fn say(report: &Report, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "oracle: {} cases in {} states, {} questions, {:.2} s a case, {} states disagree",
        report.cases,
        report.states,
        report.questions,
        seconds / report.cases.max(1) as f64,
        report.failed.len()
    );
}
