//! The story of an affinity that runs out (spec F2, F4, F7), told for itself: clients have to be silent in it.
//!
//! One endpoint, and every client has been there. More endpoints come: as long as clients go on asking they stay, and
//! once they were silent for longer than the timeout, chance decides again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::plot::{Kind, Plot, ready};
use super::question::Aim;
use super::requests::{changes, slices_path};
use super::stage::{CLIENTS, Stage};
use super::state::NAMESPACE;
use crate::address::FAMILIES;
use crate::control_plane::batch::Request;
use crate::peer::protocol::{Manner, Probe};
use crate::traffic::Peer;

const NAME: &str = "affinity-runs-out";

const TIMEOUT: Duration = Duration::from_secs(3);

/// Twelve clients (six, in two families) pick among three: all pick the first again once in half a million times.
const ENDS: [super::plot::End; 3] = [ready(2, 1), ready(1, 2), ready(2, 3)];

/// How the clients of a twin fared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fared {
    /// All stayed on the first endpoint while they kept asking.
    stayed: bool,
    /// Some were elsewhere after the silence.
    moved: bool,
    /// And stayed there.
    settled: bool,
}

/// Who answered each client, by family, in the order of asking.
type Answers = Vec<BTreeSet<String>>;

/// Tells it; where it went otherwise than told here, with kube-proxy or with us.
pub(super) fn tell(stage: &mut Stage) -> Result<Vec<String>> {
    let plot = Plot::of(14, Kind::ClusterIp, &ENDS[..1]);
    let mut service = plot.service(NAME).unwrap_or_default();
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    service["spec"]["sessionAffinityConfig"] =
        json!({"clientIP": {"timeoutSeconds": TIMEOUT.as_secs()}});
    let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let mut requests: Vec<Request> = plot
        .slices(NAME)
        .into_iter()
        .map(|slice| Request::post(slices_path(NAMESPACE), slice))
        .collect();
    requests.push(Request::post(services.clone(), service));
    stage.write(&requests)?;

    let crowds = stage
        .twins
        .iter()
        .map(|twin| CLIENTS.iter().map(|who| twin.peer(*who)).collect())
        .collect::<Result<Vec<Vec<Peer>>>>()?;
    let ask = || ask(&crowds, &plot);
    let first = ask()?;
    let before = plot.case(NAME);
    let mut grown = plot.clone();
    grown.endpoints = ENDS.into();
    let kept = while_asking(&ask, || {
        let path = format!("{services}/{NAME}");
        let mut changed = changes(&before, &grown.case(NAME));
        changed.retain(|request| request.path() != path);
        stage.write(&changed)
    })?;
    let last = ask()?;
    thread::sleep(TIMEOUT + Duration::from_secs(2));
    let after = ask()?;
    let again = ask()?;

    let home = BTreeSet::from([format!("node{}-pod{}", ENDS[0].node, ENDS[0].pod)]);
    let fared: Vec<Fared> = (0..crowds.len())
        .map(|twin| Fared {
            stayed: [&first, &kept, &last]
                .iter()
                .all(|answers| answers[twin].iter().all(|server| *server == home)),
            moved: after[twin].iter().any(|server| *server != home),
            settled: after[twin].iter().all(|server| server.len() == 1)
                && after[twin] == again[twin],
        })
        .collect();
    let expected = Fared {
        stayed: true,
        moved: true,
        settled: true,
    };
    let otherwise = (0..fared.len()).filter(|twin| fared[*twin] != expected);
    Ok(otherwise
        .map(|twin| {
            let answers = [&first, &kept, &last, &after, &again].map(|answers| &answers[twin]);
            let proxy = &stage.twins[twin].proxy;
            format!("{NAME}: {proxy}: {:?}: {answers:?}", fared[twin])
        })
        .collect())
}

/// Lets all clients ask without a pause until `change` is made: who answered each.
fn while_asking(
    ask: &(impl Fn() -> Result<Vec<Answers>> + Sync),
    change: impl FnOnce() -> Result<()>,
) -> Result<Vec<Answers>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut all = ask()?;
            while !over.load(Ordering::Relaxed) {
                for (all, more) in all.iter_mut().flatten().zip(ask()?.into_iter().flatten()) {
                    all.extend(more);
                }
            }
            Ok(all)
        });
        let changed = change();
        over.store(true, Ordering::Relaxed);
        let found = asking.join().expect("asking does not panic");
        changed?;
        found
    })
}

/// Two connections of each client, all twins at once.
fn ask(crowds: &[Vec<Peer>], plot: &Plot) -> Result<Vec<Answers>> {
    let probes: Vec<Probe> = FAMILIES
        .map(|family| Probe {
            to: plot.socket(Aim::ClusterIp, family),
            manner: Manner::Tcp,
            tries: 2,
            timeout_ms: 2000,
        })
        .into();
    let probes = &probes;
    thread::scope(|scope| {
        let asking: Vec<Vec<_>> = crowds
            .iter()
            .map(|crowd| {
                crowd
                    .iter()
                    .map(|peer| scope.spawn(move || peer.survey(probes.clone())))
                    .collect()
            })
            .collect();
        asking
            .into_iter()
            .map(|crowd| {
                let mut answers = Answers::new();
                for client in crowd {
                    for found in client.join().expect("a survey does not panic")? {
                        answers.push(found.answers.into_iter().map(|seen| seen.server).collect());
                    }
                }
                Ok(answers)
            })
            .collect()
    })
}
