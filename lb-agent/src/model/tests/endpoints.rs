//! Spec §1.B and §8: from slices to endpoints.

use super::*;

#[test]
fn b2_slices_of_other_services_and_namespaces_are_passed_over() {
    let mut other = slice("a", vec![remote("10.0.0.1")]);
    other.service = "else".into();
    let mut elsewhere = slice("b", vec![remote("10.0.0.2")]);
    elsewhere.name.namespace = "other".into();
    assert_eq!(ports(&service(), &[other, elsewhere])[0].endpoints, []);
}

#[test]
fn b4_an_address_of_the_wrong_family_is_skipped() {
    assert_eq!(
        set(
            &only(&service(), vec![remote("10.0.0.1"), remote("fd00::1")]),
            |_| true
        ),
        ["10.0.0.1"]
    );
}

#[test]
fn b6_a_name_may_have_several_numbers() {
    let mut old = slice("a", vec![remote("10.0.0.1")]);
    let mut new = slice("b", vec![remote("10.0.0.1"), remote("10.0.0.2")]);
    new.ports[0].port = 9090;
    old.ports.push(SlicePort {
        name: "http".into(),
        protocol: Protocol::Udp,
        port: 1,
    });
    old.ports.push(SlicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 0,
    });
    let got: Vec<_> = ports(&service(), &[new, old])[0]
        .endpoints
        .iter()
        .map(|e| (e.address, e.port))
        .collect();
    assert_eq!(
        got,
        [
            (ip("10.0.0.1"), 8080),
            (ip("10.0.0.1"), 9090),
            (ip("10.0.0.2"), 9090)
        ]
    );
}

#[test]
fn b8_an_endpoint_without_node_is_never_local() {
    let stray = SliceEndpoint {
        node: None,
        ..local("10.0.0.1")
    };
    assert_eq!(
        sets(&only(&internal_local(), vec![stray])),
        expect(&[], &[], true)
    );
}

#[test]
fn b11_not_terminating_beats_terminating_then_local_beats_remote() {
    let dying = slice("a", vec![ts(local("10.0.0.1"))]);
    let alive = slice("b", vec![remote("10.0.0.1")]);
    let here = slice("c", vec![local("10.0.0.1")]);
    for order in [
        [&dying, &alive, &here],
        [&here, &alive, &dying],
        [&alive, &here, &dying],
    ] {
        let got = service_ports(&service(), &order, &node(), &Options::default());
        assert_eq!(sets(&got[0]), expect(&["10.0.0.1"], &[], true));
        assert!(got[0].endpoints[0].local && got[0].endpoints[0].serving);
    }
}

#[test]
fn b11_within_a_slice_a_later_duplicate_counts_unless_it_terminates() {
    let unready = || SliceEndpoint {
        ready: false,
        serving: false,
        ..local("10.0.0.1")
    };
    let serves = |endpoints: Vec<SliceEndpoint>| {
        let port = only(&service(), endpoints);
        assert_eq!(port.endpoints.len(), 1);
        (port.endpoints[0].local, port.endpoints[0].cluster)
    };
    assert_eq!(serves(vec![local("10.0.0.1"), unready()]), (true, false));
    assert_eq!(serves(vec![unready(), local("10.0.0.1")]), (true, true));
    assert_eq!(
        serves(vec![local("10.0.0.1"), remote("10.0.0.1")]),
        (false, true)
    );
    assert_eq!(
        serves(vec![remote("10.0.0.1"), ts(local("10.0.0.1"))]),
        (false, true)
    );
    assert_eq!(
        serves(vec![tn(local("10.0.0.1")), ts(remote("10.0.0.1"))]),
        (true, false)
    );
}

#[test]
fn b11_equal_duplicates_follow_the_slice_name() {
    let first = slice("a", vec![hinted(remote("10.0.0.1"), &["z1"], &[])]);
    let second = slice(
        "b",
        vec![
            hinted(remote("10.0.0.1"), &["z9"], &[]),
            hinted(remote("10.0.0.2"), &["z9"], &[]),
        ],
    );
    for order in [[&first, &second], [&second, &first]] {
        let got = service_ports(&service(), &order, &node(), &Options::default());
        assert_eq!(set(&got[0], |e| e.cluster), ["10.0.0.1"]);
    }
}

#[test]
fn b16_an_own_address_marks_a_host_network_endpoint() {
    let port = only(
        &service(),
        vec![remote("192.168.0.3"), local("192.168.0.2")],
    );
    let host: Vec<_> = port.endpoints.iter().map(|e| e.host).collect();
    assert_eq!(host, [true, false]);
}

#[test]
fn b19_a_service_without_slices_has_its_frontends_and_rejects() {
    let port = &ports(&service(), &[])[0];
    assert_eq!(leads(port, FrontendKind::ClusterIp), Err(Verdict::Reject));
}
