//! Spec §1.H: health-check node ports.

use super::*;

#[test]
fn h10_counts_distinct_addresses_of_local_ready_endpoints() {
    let mut checked = Service {
        health_check_port: Some(32000),
        ..balanced_local()
    };
    checked
        .ports
        .push(named_port("https", Protocol::Tcp, 443, 0));
    let mut pods = slice(
        "a",
        vec![
            local("10.0.0.1"),
            local("10.0.0.2"),
            ts(local("10.0.0.3")),
            remote("10.0.0.4"),
        ],
    );
    pods.ports.push(SlicePort {
        name: "https".into(),
        protocol: Protocol::Tcp,
        port: 8443,
    });
    let got = health_checks(&checked, &[&pods], &node());
    let check = HealthCheck {
        service: object("web"),
        family: Family::V4,
        port: 32000,
        local_endpoints: 2,
    };
    assert_eq!(got, [check]);
}

#[test]
fn h10_failing_and_terminating_endpoints_count_zero() {
    let checked = Service {
        health_check_port: Some(32000),
        ..balanced_local()
    };
    let failing = SliceEndpoint {
        ready: false,
        ..local("10.0.0.1")
    };
    let got = health_checks(
        &checked,
        &[&slice("a", vec![failing, ts(local("10.0.0.2"))])],
        &node(),
    );
    assert_eq!(got[0].local_endpoints, 0);
}

/// kube-proxy counts what slices name, whether the Service has such a port or not.
#[test]
fn h10_endpoints_of_ports_that_the_service_has_not_count() {
    let checked = Service {
        health_check_port: Some(32000),
        ..balanced_local()
    };
    let mut other = slice("a", vec![local("10.0.0.1")]);
    other.ports[0].name = "other".into();
    let mut portless = slice("b", vec![local("10.0.0.2")]);
    portless.ports.clear();
    let got = health_checks(&checked, &[&other, &portless], &node());
    assert_eq!(got[0].local_endpoints, 1);
}

#[test]
fn h15_each_family_has_its_own_count() {
    let mut dual = Service {
        health_check_port: Some(32000),
        ..balanced_local()
    };
    dual.cluster_ips.push(ip("fd00::1"));
    let v4 = slice("a", vec![local("10.0.0.1"), local("10.0.0.2")]);
    let v6 = slice("b", vec![local("fd00:10::1")]);
    let got = health_checks(&dual, &[&v4, &v6], &node());
    let counts: Vec<_> = got.iter().map(|c| (c.family, c.local_endpoints)).collect();
    assert_eq!(counts, [(Family::V4, 2), (Family::V6, 1)]);
}

#[test]
fn a23_without_a_port_there_is_no_check() {
    assert_eq!(health_checks(&balanced_local(), &[], &node()), []);
}
