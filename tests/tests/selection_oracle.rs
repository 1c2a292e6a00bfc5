//! The agent's endpoint selection against the oracle's, over every pair of endpoints and many random cases.
//!
//! `BEELINE_SEED=<number>` starts the random cases elsewhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::model::{self, Frontend, FrontendKind, NodeView, Options};
use lb_agent::snapshot::Slice;
use lb_tests::oracle::case::{Case, Policies, Random, endpoint_in, every_endpoint};
use lb_tests::oracle::{self, Known, Selection, Target, Verdict};

const RANDOM_CASES: u64 = 40_000;

/// Spec B4, B5, B6, B7, B8, B10, B11, A28, §2.
#[test]
fn random_cases_agree() {
    let first = std::env::var("BEELINE_SEED")
        .ok()
        .map_or(1, |seed| seed.parse().expect("BEELINE_SEED is no number"));
    for seed in first..first + RANDOM_CASES {
        let case = Case::random(&mut Random::new(seed));
        check(case, &format!("seed {seed}"));
    }
}

#[test]
fn every_pair_of_endpoints_agrees() {
    let first = every_endpoint(address(1));
    let second = every_endpoint(address(2));
    for (index, one) in first.iter().enumerate() {
        for other in &second[index..] {
            for bits in 0..16 {
                let policies = Policies {
                    internal_local: bits & 1 != 0,
                    external_local: bits & 2 != 0,
                    external: bits & 4 != 0,
                };
                check(
                    Case::of(vec![one.clone(), other.clone()], bits & 8 != 0, policies),
                    "pair",
                );
            }
        }
    }
}

/// The tables of the rules (§1.I, §5.7, §5.8), so that oracle and model do not agree on a misreading.
///
/// A row: policies of ClusterIP and external traffic, endpoints here and elsewhere (the first is number 1),
/// and what each kind of traffic meets.
/// Spec §2, §5.8.
#[test]
fn documented_rows_hold() {
    let rows = [
        ("cluster", "local", "r r ts tn", "r", "1 2 5", "1 2"),
        ("cluster", "local", "ts ts tn", "r", "4", "1 2"),
        ("cluster", "local", "", "ts", "1", "drop"),
        ("cluster", "local", "tn", "tn", "reject", "reject"),
        ("cluster", "local", "", "", "reject", "reject"),
        ("cluster", "cluster", "r r", "ts tn r", "1 2 5", "1 2 5"),
        ("cluster", "cluster", "ts ts", "tn ts", "1 2 4", "1 2 4"),
        ("cluster", "cluster", "", "ts", "1", "1"),
        ("cluster", "cluster", "tn", "tn", "reject", "reject"),
        ("cluster", "local", "r ts", "r", "1 3", "1"),
        ("cluster", "local", "ts", "r", "2", "1"),
        (
            "cluster", "cluster", "failing", "failing", "reject", "reject",
        ),
        ("cluster", "cluster", "failing r", "failing", "2", "2"),
        ("local", "cluster", "r", "r r", "1", "1 2 3"),
        ("local", "cluster", "r r", "r", "1 2", "1 2 3"),
        ("local", "cluster", "", "r r r", "drop", "1 2 3"),
        ("local", "local", "ts", "r", "1", "1"),
        ("local", "cluster", "", "", "reject", "reject"),
    ];
    for row in rows {
        let (internal_policy, external_policy, here, elsewhere, internal, external) = row;
        let states = here.split_whitespace().zip(std::iter::repeat(true));
        let states = states.chain(elsewhere.split_whitespace().zip(std::iter::repeat(false)));
        let endpoints = states
            .zip(1..)
            .map(|((state, local), host)| endpoint_in(state, address(host), local));
        let policies = Policies {
            internal_local: internal_policy == "local",
            external_local: external_policy == "local",
            external: true,
        };
        let case = Case::of(endpoints.collect(), false, policies);
        for selection in by_oracle(&case).into_iter().chain(by_model(&case)) {
            assert_eq!(
                selection.internal,
                documented(internal),
                "ClusterIP of {row:?}"
            );
            assert_eq!(
                selection.external,
                Some(documented(external)),
                "external traffic of {row:?}"
            );
        }
    }
}

/// The cases would prove little if they hardly ever met a rule.
#[test]
fn random_cases_reach_every_outcome() {
    let mut outcomes = BTreeSet::new();
    for seed in 1..=2_000 {
        let case = Case::random(&mut Random::new(seed));
        for selection in oracle::select(&case.service, &case.slices, &case.node) {
            let strict = selection.cluster.len() < selection.known.len();
            outcomes.insert((
                kind(&selection.internal),
                selection.external.as_ref().map(kind),
                strict,
            ));
        }
    }
    for internal in ["reject", "drop", "translate"] {
        for external in [None, Some("reject"), Some("drop"), Some("translate")] {
            // One port's endpoints either exist somewhere or not, whatever the direction.
            let possible =
                external.is_none_or(|external| (internal == "reject") == (external == "reject"));
            let met = outcomes
                .iter()
                .any(|outcome| (outcome.0, outcome.1) == (internal, external));
            assert_eq!(met, possible, "{internal}, {external:?}");
        }
    }
}

fn check(case: Case, origin: &str) {
    if agrees(&case) {
        return;
    }
    let case = case.shrink(|case| !agrees(case));
    panic!(
        "{origin}, made smaller:\n{case}\nmodel:  {:#?}\noracle: {:#?}",
        by_model(&case),
        by_oracle(&case)
    );
}

fn agrees(case: &Case) -> bool {
    by_model(case) == by_oracle(case)
}

fn by_oracle(case: &Case) -> Vec<Selection> {
    let mut selections = oracle::select(&case.service, &case.slices, &case.node);
    sort(&mut selections);
    selections
}

/// The model's answer in the oracle's words.
fn by_model(case: &Case) -> Vec<Selection> {
    let slices: Vec<&Slice> = case.slices.iter().collect();
    let node = NodeView {
        name: case.node.name.clone(),
        zone: case.node.zone.clone(),
        addresses: case.node.addresses.clone(),
        primary: case.node.addresses.clone(),
    };
    let ports = model::service_ports(&case.service, &slices, &node, &Options::default());
    let mut selections: Vec<Selection> = ports.into_iter().map(in_oracle_words).collect();
    sort(&mut selections);
    selections
}

fn in_oracle_words(port: model::ServicePort) -> Selection {
    let targets: Vec<_> = port
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.address, endpoint.port))
        .collect();
    assert!(
        targets.is_sorted_by(|one, next| one < next),
        "endpoints unsorted or twice: {targets:?}"
    );
    let set = |member: fn(&model::Endpoint) -> bool| -> BTreeSet<_> {
        port.endpoints
            .iter()
            .filter(|endpoint| member(endpoint))
            .map(|endpoint| (endpoint.address, endpoint.port))
            .collect()
    };
    let (cluster, local) = (
        set(|endpoint| endpoint.cluster),
        set(|endpoint| endpoint.in_local_set),
    );
    let verdict = |frontend: &Frontend| match port.verdict(frontend) {
        model::Verdict::Reject => Verdict::Reject,
        model::Verdict::Drop => Verdict::Drop,
        model::Verdict::Translate if frontend.local_policy => Verdict::Translate(local.clone()),
        model::Verdict::Translate => Verdict::Translate(cluster.clone()),
    };
    let shared_verdict = |internal: bool| {
        let frontends = port.frontends.iter();
        let mut verdicts = frontends
            .filter(|frontend| (frontend.kind == FrontendKind::ClusterIp) == internal)
            .map(verdict);
        let first = verdicts.next()?;
        assert!(
            verdicts.all(|verdict| verdict == first),
            "verdicts differ: {port:?}"
        );
        Some(first)
    };
    Selection {
        port: port.id.port.to_string(),
        protocol: port.id.protocol,
        family: port.id.family,
        has_any: port.has_any,
        known: port.endpoints.iter().map(known).collect(),
        internal: shared_verdict(true).expect("a ClusterIP frontend"),
        external: shared_verdict(false),
        cluster,
        local,
    }
}

fn known(endpoint: &model::Endpoint) -> (Target, Known) {
    let known = Known {
        local: endpoint.local,
        serving: endpoint.serving,
    };
    ((endpoint.address, endpoint.port), known)
}

fn sort(selections: &mut [Selection]) {
    selections.sort_by(|one, other| {
        (&one.port, one.protocol, one.family).cmp(&(&other.port, other.protocol, other.family))
    });
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, host])
}

fn documented(outcome: &str) -> Verdict {
    match outcome {
        "reject" => Verdict::Reject,
        "drop" => Verdict::Drop,
        hosts => {
            let hosts = hosts.split(' ').map(|host| host.parse().expect("a number"));
            Verdict::Translate(hosts.map(|host| (address(host), 8080)).collect())
        }
    }
}

fn kind(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Reject => "reject",
        Verdict::Drop => "drop",
        Verdict::Translate(_) => "translate",
    }
}
