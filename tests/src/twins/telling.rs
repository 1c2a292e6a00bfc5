//! Tells the stories to all twins at once, and watches the flows while each change arrives and after it.
//!
//! All stories are told side by side, act by act: each has a Service, clients and ports of its own. What a flow meets
//! while a change is on its way must be what it met before or meets after it, unless it is something else with
//! kube-proxy too. Afterwards flows must fare alike, and new connections as well.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::campaign::compare;
use super::flow::{Flow, Met, Way, losses_left_out};
use super::flow_differences::{Turn, agree};
use super::outcome::Outcome;
use super::plot::Plot;
use super::question::questions;
use super::requests::changes;
use super::stage::{CLIENTS, Proxy, Stage, Who};
use super::state::{NAMESPACE, State};
use super::stories::{Act, Story};
use super::watch::{Asker, Cast};
use crate::address::FAMILIES;
use crate::control_plane::batch::Request;
use crate::control_plane::objects::node_path;
use crate::fuzz::random::Random;

/// Rounds of asking again before a disagreement is believed; kube-proxy cleans up flows after it wrote its rules.
const ROUNDS: u32 = 6;

/// Percentage of all questions about new connections that are asked after each act.
const SHARE: usize = 10;

/// What the stories came to.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub stories: usize,
    pub flows: usize,
    /// Outcomes of flows that were compared after an act.
    pub compared: usize,
    pub explained: BTreeMap<&'static str, usize>,
    pub faults: Vec<String>,
}

/// Tells these stories. The stage is empty afterwards but for their Services.
pub fn tell(stage: &mut Stage, stories: &[Story]) -> Result<Told> {
    let mut told = Told {
        stories: stories.len(),
        ..Told::default()
    };
    stage.put(&State {
        note: "stories".into(),
        zones: vec![Some("east".into()), Some("west".into())],
        cases: Vec::new(),
    })?;
    let mut plots: Vec<_> = stories.iter().map(|story| story.plot.clone()).collect();
    let mut requests = Vec::new();
    for story in stories {
        requests.extend(story.opening());
    }
    stage.write(&requests)?;

    let cast = Cast::of(&stage.twins, stories)?;
    let mut flows = Vec::new();
    for (number, story) in stories.iter().enumerate() {
        for &(who, aim, way) in &story.flows {
            for family in FAMILIES {
                let held = (0..stage.twins.len()).map(|twin| cast.peer(twin, number, who));
                let to = story.plot.socket(aim, family);
                flows.push(Flow::open(number, who, aim, to, way, held));
            }
        }
    }
    told.flows = flows.len();
    let asker = Asker::of(&cast);
    asker.after(stage, stories, &plots, None, &mut flows, &mut told)?;
    for number in 0.. {
        let acts: Vec<Option<&Act>> = stories.iter().map(|story| story.acts.get(number)).collect();
        if acts.iter().all(Option::is_none) {
            return Ok(told);
        }
        let mut requests = Vec::new();
        let mut waits = false;
        for ((story, plot), act) in stories.iter().zip(&mut plots).zip(&acts) {
            let Some(act) = act else { continue };
            let before = plot.clone();
            (act.change)(plot);
            requests.extend(story.write(&before, plot));
            if let Some(zone) = act.zone {
                let label = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
                requests.push(Request::merge(node_path("node1"), label));
                stage.zones[0] = Some(zone.into());
                waits = true;
            }
        }
        let lines = asker.meanwhile(stage, &flows, |stage| {
            stage.write(&requests)?;
            if waits {
                // Nothing a client sees tells that a node's label has arrived.
                thread::sleep(Duration::from_millis(1500));
            }
            Ok(())
        })?;
        let passed = Passed {
            lines,
            before: flows.iter().map(|flow| flow.met.clone()).collect(),
        };
        let arrived = Arrived {
            number,
            passed: &passed,
        };
        asker.after(
            stage,
            stories,
            &plots,
            Some(&arrived),
            &mut flows,
            &mut told,
        )?;
    }
    Ok(told)
}

/// What flows met while a change was on its way: by flow, then by twin.
struct Passed {
    lines: Vec<Vec<Vec<Met>>>,
    before: Vec<Vec<Outcome>>,
}

/// An act that all proxies have seen.
struct Arrived<'a> {
    number: usize,
    passed: &'a Passed,
}

impl Story {
    /// What brings it into the world: slices first, so that nobody sees the Service without them.
    fn opening(&self) -> Vec<Request> {
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
        let mut requests: Vec<Request> = self
            .plot
            .slices(self.name)
            .into_iter()
            .map(|slice| Request::post(slices.clone(), slice))
            .collect();
        requests.extend(self.made(&self.plot));
        requests
    }

    /// What makes the Service, and its status.
    fn made(&self, plot: &Plot) -> Vec<Request> {
        let Some(mut service) = plot.service(self.name) else {
            return Vec::new();
        };
        let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
        let status = service["status"].take();
        let mut requests = vec![Request::post(services.clone(), service)];
        if !status.is_null() {
            let path = format!("{services}/{}/status", self.name);
            requests.push(Request::merge(path, json!({"status": status})));
        }
        requests
    }

    /// What turns one plot into another.
    fn write(&self, before: &Plot, plot: &Plot) -> Vec<Request> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{}", self.name);
        match (before.service(self.name), plot.service(self.name)) {
            (None, Some(_)) => self.made(plot),
            (Some(_), None) => vec![Request::delete(path)],
            (Some(_), Some(_)) => changes(&before.case(self.name), &plot.case(self.name)),
            (None, None) => {
                let gone = |plot: &Plot| plot.case(self.name);
                changes(&gone(before), &gone(plot))
                    .into_iter()
                    .filter(|request| request.path() != path)
                    .collect()
            }
        }
    }
}

impl Asker<'_> {
    /// Compares flows, on their way and now, and new connections.
    fn after(
        &self,
        stage: &mut Stage,
        stories: &[Story],
        plots: &[Plot],
        arrived: Option<&Arrived<'_>>,
        flows: &mut [Flow<'_>],
        told: &mut Told,
    ) -> Result<()> {
        let proxies: Vec<Proxy> = stage.twins.iter().map(|twin| twin.proxy).collect();
        let mut faults = Vec::new();
        let mut explained: BTreeMap<&'static str, usize> = BTreeMap::new();
        // What comes first may be the echo of what was before.
        self.once(flows, proxies.len())?;
        for round in 0..ROUNDS {
            if round > 0 {
                thread::sleep(Duration::from_millis(300));
            }
            let found = self.once(flows, proxies.len())?;
            faults.clear();
            explained.clear();
            for (flow, outcomes) in flows.iter_mut().zip(found) {
                let turn = Turn {
                    flow_way: flow.way,
                    question: &flow.question,
                    plot: &plots[flow.story],
                    beside: proxies[0],
                };
                for (twin, proxy) in proxies.iter().enumerate().skip(1) {
                    match agree(&turn, *proxy, &outcomes[0], &outcomes[twin]) {
                        Some(rules) => {
                            for rule in rules {
                                *explained.entry(rule).or_default() += 1;
                            }
                        }
                        None => faults.push((
                            flow.story,
                            Fault {
                                flow: flow.to_string(),
                                proxy: *proxy,
                                theirs: outcomes[0].to_string(),
                                ours: outcomes[twin].to_string(),
                            },
                        )),
                    }
                }
                flow.met = outcomes;
            }
            if faults.is_empty() {
                break;
            }
        }
        told.compared += flows.len() * (proxies.len() - 1);
        if let Some(arrived) = arrived {
            for (index, flow) in flows.iter().enumerate() {
                faults.extend(
                    on_the_way(flow, index, arrived.passed, &proxies, &plots[flow.story])
                        .into_iter()
                        .map(|fault| (flow.story, fault)),
                );
            }
        }
        for (rule, count) in explained {
            *told.explained.entry(rule).or_default() += count;
        }
        for (story, fault) in faults {
            told.faults
                .push(format!("{}: {fault}", heading(&stories[story], arrived)));
        }

        let state = State {
            note: "stories".into(),
            zones: stage.zones.clone(),
            cases: stories
                .iter()
                .zip(plots)
                .map(|(story, plot)| plot.case(story.name))
                .collect(),
        };
        let number = arrived.map_or(0, |arrived| arrived.number as u64 + 1);
        let asked = questions(&state, &mut Random::new(number), SHARE);
        let compared = compare(stage, &asked)?;
        for (rule, count) in compared.explained {
            *told.explained.entry(rule).or_default() += count;
        }
        for disagreement in compared.disagreements {
            let name = disagreement
                .question
                .case
                .map_or_else(String::new, |case| heading(&stories[case], arrived));
            told.faults.push(format!(
                "{name}: new connections:\n{}",
                disagreement.text(&state)
            ));
        }
        Ok(())
    }
}

/// "type-changes, after “NodePort → ClusterIP”".
fn heading(story: &Story, arrived: Option<&Arrived<'_>>) -> String {
    match arrived.and_then(|arrived| story.acts.get(arrived.number)) {
        Some(act) => format!("{}, “{}”", story.name, act.says),
        None => format!("{}, with nothing new", story.name),
    }
}

/// What our flows met on the way that was neither before nor after, and kube-proxy's neither.
fn on_the_way(
    flow: &Flow<'_>,
    index: usize,
    passed: &Passed,
    proxies: &[Proxy],
    plot: &Plot,
) -> Vec<Fault> {
    let turn = Turn {
        flow_way: flow.way,
        question: &flow.question,
        plot,
        beside: proxies[0],
    };
    let lines = &passed.lines[index];
    let before = &passed.before[index];
    let mut faults = Vec::new();
    for (twin, proxy) in proxies.iter().enumerate().skip(1) {
        let known = [&before[twin], &flow.met[twin]];
        let theirs = losses_left_out(&lines[0]);
        for met in losses_left_out(&lines[twin]) {
            let fine = known.contains(&met)
                || flow.way == Way::Fresh && met.failures.is_empty()
                || theirs
                    .iter()
                    .chain(&[&before[0], &flow.met[0]])
                    .any(|their| agree(&turn, *proxy, their, met).is_some());
            if !fine {
                faults.push(Fault {
                    flow: format!("{flow}, on the way"),
                    proxy: *proxy,
                    theirs: format!("{} → {} → {}", before[0], Met::text(&lines[0]), flow.met[0]),
                    ours: format!(
                        "{} → {} → {}",
                        before[twin],
                        Met::text(&lines[twin]),
                        flow.met[twin]
                    ),
                });
                break;
            }
        }
    }
    faults
}

/// A flow that fared otherwise.
struct Fault {
    flow: String,
    proxy: Proxy,
    theirs: String,
    ours: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            flow,
            proxy,
            theirs,
            ours,
        } = self;
        write!(f, "{flow}\n    kube-proxy: {theirs}\n    {proxy}: {ours}")
    }
}

/// The stories of these names, or all.
pub fn chosen(names: &[String]) -> Result<Vec<Story>> {
    let all = super::stories::all();
    for name in names {
        ensure!(
            all.iter().any(|story| story.name == name),
            "there is no story {name}; there are {}",
            all.iter()
                .map(|story| story.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(all
        .into_iter()
        .filter(|story| names.is_empty() || names.iter().any(|name| name == story.name))
        .collect())
}

/// Index among [`CLIENTS`].
pub(super) fn client(who: Who) -> usize {
    CLIENTS
        .iter()
        .position(|other| *other == who)
        .expect("stories are about clients of the twins")
}
