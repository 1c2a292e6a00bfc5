//! Spec §2, "consequences easy to get wrong", and the tables §5.7 and §5.8.

use super::*;

#[test]
fn b14_ready_wins_even_if_terminating() {
    let published = SliceEndpoint {
        terminating: true,
        ..local("10.0.0.1")
    };
    let got = sets(&only(
        &balanced_local(),
        vec![published, ts(local("10.0.0.2"))],
    ));
    assert_eq!(got, expect(&["10.0.0.1"], &["10.0.0.1"], true));
}

#[test]
fn not_ready_serving_not_terminating_is_never_selected() {
    let odd = SliceEndpoint {
        ready: false,
        ..local("10.0.0.1")
    };
    let port = only(&balanced_local(), vec![odd]);
    assert_eq!(sets(&port), expect(&[], &[], false));
    assert!(port.endpoints[0].serving, "UDP flows may stay on it (E13)");
}

#[test]
fn cluster_and_local_fall_back_independently() {
    let got = sets(&only(
        &balanced_local(),
        vec![ts(local("10.0.0.1")), remote("10.0.0.2")],
    ));
    assert_eq!(got, expect(&["10.0.0.2"], &["10.0.0.1"], true));
}

#[test]
fn remote_terminating_endpoints_turn_reject_into_drop() {
    let port = only(&internal_local(), vec![ts(remote("10.0.0.1"))]);
    assert_eq!(leads(&port, FrontendKind::ClusterIp), Err(Verdict::Drop));
    let port = only(&internal_local(), vec![tn(remote("10.0.0.1"))]);
    assert_eq!(leads(&port, FrontendKind::ClusterIp), Err(Verdict::Reject));
}

#[test]
fn s5_7_internal_traffic_policy() {
    use FrontendKind::ClusterIp;
    let (l, r) = (local, remote);
    let one = vec![l("10.0.1.1"), r("10.0.1.2"), r("10.0.1.3")];
    let two = vec![l("10.0.1.1"), l("10.0.1.2"), r("10.0.1.3")];
    let none = vec![r("10.0.1.1"), r("10.0.1.2"), r("10.0.1.3")];
    assert_eq!(
        leads(&only(&service(), one.clone()), ClusterIp),
        to(&["10.0.1.1", "10.0.1.2", "10.0.1.3"])
    );
    assert_eq!(
        leads(&only(&internal_local(), one), ClusterIp),
        to(&["10.0.1.1"])
    );
    assert_eq!(
        leads(&only(&internal_local(), two), ClusterIp),
        to(&["10.0.1.1", "10.0.1.2"])
    );
    assert_eq!(
        leads(&only(&internal_local(), none), ClusterIp),
        Err(Verdict::Drop)
    );
    assert_eq!(
        leads(&only(&service(), vec![]), ClusterIp),
        Err(Verdict::Reject)
    );
    assert_eq!(
        leads(&only(&internal_local(), vec![]), ClusterIp),
        Err(Verdict::Reject)
    );
}

#[test]
fn s5_8_terminating_endpoints() {
    let (l, r) = (local, remote);
    let (e1, e2, e3, e4, e5) = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5");
    let check = |external_local: bool, endpoints: Vec<SliceEndpoint>, internal, external| {
        let port = only(
            &Service {
                external_local,
                ..balanced_local()
            },
            endpoints,
        );
        assert_eq!(leads(&port, FrontendKind::ClusterIp), internal);
        assert_eq!(leads(&port, FrontendKind::LoadBalancer), external);
    };
    let (reject, drop) = (Err(Verdict::Reject), Err(Verdict::Drop));
    check(
        true,
        vec![l(e1), l(e2), ts(l(e3)), tn(l(e4)), r(e5)],
        to(&[e1, e2, e5]),
        to(&[e1, e2]),
    );
    check(
        true,
        vec![ts(l(e2)), ts(l(e3)), tn(l(e4)), r(e5)],
        to(&[e5]),
        to(&[e2, e3]),
    );
    check(true, vec![ts(r(e5))], to(&[e5]), drop);
    check(
        true,
        vec![tn(l(e5)), tn(r(e5))],
        reject.clone(),
        reject.clone(),
    );
    check(true, vec![], reject.clone(), reject.clone());
    check(
        false,
        vec![l(e1), l(e2), ts(r(e3)), tn(r(e4)), r(e5)],
        to(&[e1, e2, e5]),
        to(&[e1, e2, e5]),
    );
    check(
        false,
        vec![ts(l(e2)), ts(l(e3)), tn(r(e4)), ts(r(e5))],
        to(&[e2, e3, e5]),
        to(&[e2, e3, e5]),
    );
    check(false, vec![ts(r(e5))], to(&[e5]), to(&[e5]));
    check(
        false,
        vec![tn(l(e5)), tn(r(e5))],
        reject.clone(),
        reject.clone(),
    );
    check(false, vec![], reject.clone(), reject);
}
