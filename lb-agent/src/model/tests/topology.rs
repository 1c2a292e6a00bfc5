//! Spec §1.C and §2 step 2: hints.

use super::*;

#[test]
fn s2_2_same_node_wins_over_same_zone() {
    let here = hinted(remote("10.0.0.1"), &["z1"], &[NODE]);
    let zone = hinted(remote("10.0.0.2"), &["z1"], &["n2"]);
    assert_eq!(
        set(&only(&service(), vec![here, zone]), |e| e.cluster),
        ["10.0.0.1"]
    );
}

#[test]
fn c3_same_node_without_an_endpoint_here_falls_to_the_zone_then_to_all() {
    let zone = hinted(remote("10.0.0.2"), &["z1"], &["n2"]);
    let far = hinted(remote("10.0.0.3"), &["z2"], &["n3"]);
    assert_eq!(
        set(&only(&service(), vec![zone, far.clone()]), |e| e.cluster),
        ["10.0.0.2"]
    );
    assert_eq!(
        set(&only(&service(), vec![far]), |e| e.cluster),
        ["10.0.0.3"]
    );
}

#[test]
fn c6_one_ready_endpoint_without_hints_disables_a_mode() {
    let here = hinted(remote("10.0.0.1"), &["z1"], &[NODE]);
    let plain = remote("10.0.0.2");
    assert_eq!(
        set(&only(&service(), vec![here.clone(), plain]), |e| e.cluster),
        ["10.0.0.1", "10.0.0.2"]
    );
    // Node hints missing on one, zone hints on all: the zone still counts.
    let zoned = hinted(remote("10.0.0.2"), &["z2"], &[]);
    assert_eq!(
        set(&only(&service(), vec![here, zoned]), |e| e.cluster),
        ["10.0.0.1"]
    );
}

#[test]
fn c6_c8_an_unknown_zone_disables_zone_hints_but_not_node_hints() {
    let service = service();
    let zoned = slice(
        "a",
        vec![
            hinted(remote("10.0.0.1"), &[""], &[]),
            hinted(remote("10.0.0.2"), &["z2"], &[]),
        ],
    );
    let noded = slice(
        "a",
        vec![
            hinted(remote("10.0.0.1"), &[], &[NODE]),
            hinted(remote("10.0.0.2"), &[], &["n2"]),
        ],
    );
    for zone in [None, Some("".into())] {
        let node = NodeView { zone, ..node() };
        let all = service_ports(&service, &[&zoned], &node, &Options::default());
        assert_eq!(set(&all[0], |e| e.cluster), ["10.0.0.1", "10.0.0.2"]);
        let one = service_ports(&service, &[&noded], &node, &Options::default());
        assert_eq!(set(&one[0], |e| e.cluster), ["10.0.0.1"]);
    }
}

#[test]
fn c7_the_terminating_fallback_knows_no_topology() {
    let here = hinted(ts(remote("10.0.0.1")), &["z1"], &[NODE]);
    let far = hinted(ts(remote("10.0.0.2")), &["z2"], &["n2"]);
    assert_eq!(
        set(&only(&service(), vec![here, far]), |e| e.cluster),
        ["10.0.0.1", "10.0.0.2"]
    );
}

#[test]
fn c9_hints_of_endpoints_that_are_not_ready_are_not_examined() {
    let here = hinted(remote("10.0.0.1"), &["z1"], &[]);
    let far = hinted(remote("10.0.0.2"), &["z2"], &[]);
    assert_eq!(
        set(
            &only(&service(), vec![here, far, ts(remote("10.0.0.3"))]),
            |e| e.cluster
        ),
        ["10.0.0.1"]
    );
}

#[test]
fn c5_s5_hints_never_apply_to_the_local_set() {
    let here = hinted(local("10.0.0.1"), &["z2"], &["n2"]);
    let near = hinted(remote("10.0.0.2"), &["z1"], &[NODE]);
    assert_eq!(
        sets(&only(&balanced_local(), vec![here, near])),
        expect(&["10.0.0.2"], &["10.0.0.1"], true)
    );
}
