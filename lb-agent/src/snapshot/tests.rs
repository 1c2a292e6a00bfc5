use super::*;

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn service(name: &str, port: u16) -> Event {
    Event::Service(Box::new(Service {
        name: object(name),
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: 0,
        }],
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_port: None,
    }))
}

fn slice(name: &str, service: &str, address: &str) -> Event {
    Event::Slice(Box::new(Slice {
        name: object(name),
        service: service.into(),
        family: Family::V4,
        ports: vec![],
        endpoints: vec![SliceEndpoint {
            address: address.parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        }],
        trigger_time: None,
    }))
}

fn node(zone: &str) -> Event {
    Event::Node(Box::new(Node {
        name: "a".into(),
        zone: Some(zone.into()),
        ..Node::default()
    }))
}

fn cidr(text: &str, length: u8) -> Cidr {
    Cidr {
        address: text.parse().unwrap(),
        length,
    }
}

/// Names of the dirty services.
fn dirty(snapshot: &mut Snapshot, event: Event) -> Vec<String> {
    snapshot
        .apply(event)
        .services
        .iter()
        .map(|name| name.name.to_string())
        .collect()
}

fn slice_names(snapshot: &Snapshot, service: &str) -> Vec<String> {
    snapshot
        .slices(&object(service))
        .map(|slice| slice.name.name.to_string())
        .collect()
}

#[test]
fn a_report_of_what_is_known_touches_nothing() {
    let mut snapshot = Snapshot::default();
    let cidrs = Event::ServiceCidr("a".into(), vec![]);
    for event in [
        service("web", 80),
        slice("web-1", "web", "10.0.0.1"),
        node("east"),
        cidrs,
    ] {
        assert!(!snapshot.apply(event.clone()).is_empty(), "{event:?}");
        assert!(snapshot.apply(event.clone()).is_empty(), "{event:?}");
    }
}

#[test]
fn b19_slices_may_come_before_their_service() {
    let mut snapshot = Snapshot::default();
    assert_eq!(
        dirty(&mut snapshot, slice("web-1", "web", "10.0.0.1")),
        [""; 0]
    );
    assert_eq!(dirty(&mut snapshot, service("web", 80)), ["web"]);
    assert_eq!(slice_names(&snapshot, "web"), ["web-1"]);

    // And outlive it: the Service may come back.
    assert_eq!(
        dirty(&mut snapshot, Event::ServiceGone(object("web"))),
        ["web"]
    );
    assert_eq!(slice_names(&snapshot, "web"), ["web-1"]);
}

#[test]
fn b13_the_last_slice_takes_its_tracker_along() {
    let mut snapshot = Snapshot::default();
    snapshot.apply(service("web", 80));
    snapshot.apply(slice("web-1", "web", "10.0.0.1"));
    snapshot.apply(slice("web-2", "web", "10.0.0.2"));
    assert_eq!(
        dirty(&mut snapshot, Event::SliceGone(object("web-1"))),
        ["web"]
    );
    assert_eq!(
        dirty(&mut snapshot, Event::SliceGone(object("web-2"))),
        ["web"]
    );
    assert_eq!(
        dirty(&mut snapshot, Event::SliceGone(object("web-2"))),
        [""; 0]
    );
    assert!(snapshot.slices.is_empty() && snapshot.slice_owners.is_empty());
}

#[test]
fn slices_of_a_service_are_ordered_by_name_whatever_order_they_come_in() {
    let mut snapshot = Snapshot::default();
    for name in ["c", "a", "b"] {
        snapshot.apply(slice(name, "web", "10.0.0.1"));
    }
    assert_eq!(slice_names(&snapshot, "web"), ["a", "b", "c"]);
}

#[test]
fn b2_a_slice_whose_label_changes_moves() {
    let mut snapshot = Snapshot::default();
    snapshot.apply(service("blue", 80));
    snapshot.apply(service("green", 80));
    snapshot.apply(slice("s", "blue", "10.0.0.1"));
    assert_eq!(
        dirty(&mut snapshot, slice("s", "green", "10.0.0.1")),
        ["blue", "green"]
    );
    assert_eq!(slice_names(&snapshot, "blue"), [""; 0]);
    assert_eq!(slice_names(&snapshot, "green"), ["s"]);
    // To a Service that is not there.
    assert_eq!(
        dirty(&mut snapshot, slice("s", "nobody", "10.0.0.1")),
        ["green"]
    );
    assert_eq!(dirty(&mut snapshot, Event::SliceGone(object("s"))), [""; 0]);
    assert!(snapshot.slices.is_empty());
}

#[test]
fn same_names_in_two_namespaces_are_two_services() {
    let mut snapshot = Snapshot::default();
    snapshot.apply(slice("s", "web", "10.0.0.1"));
    let other = ObjectName {
        namespace: "bank".into(),
        name: "web".into(),
    };
    assert_eq!(snapshot.slices(&other).len(), 0);
    assert!(
        snapshot
            .apply(Event::SliceGone(ObjectName {
                namespace: "bank".into(),
                name: "s".into()
            }))
            .is_empty()
    );
    assert_eq!(slice_names(&snapshot, "web"), ["s"]);
}

#[test]
fn j1_synced_once_services_slices_and_node_are_complete() {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Services, Kind::Slices, Kind::Node] {
        assert!(!snapshot.synced(), "{kind:?}");
        snapshot.apply(Event::Begin(kind));
        snapshot.apply(Event::Complete(kind));
    }
    assert!(snapshot.synced());
    // A later list does not undo it.
    snapshot.apply(Event::Begin(Kind::Services));
    assert!(snapshot.synced());
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut snapshot = Snapshot::default();
    for event in [
        service("kept", 80),
        service("gone", 80),
        service("bare", 80),
        slice("kept-1", "kept", "10.0.0.1"),
        slice("bare-1", "bare", "10.0.0.2"),
        slice("bare-2", "bare", "10.0.0.3"),
        node("east"),
        Event::ServiceCidr("a".into(), vec![cidr("10.96.0.0", 16)]),
    ] {
        snapshot.apply(event);
    }

    snapshot.apply(Event::Begin(Kind::Services));
    assert_eq!(dirty(&mut snapshot, service("kept", 80)), [""; 0]);
    assert_eq!(dirty(&mut snapshot, service("bare", 80)), [""; 0]);
    assert_eq!(
        dirty(&mut snapshot, Event::Complete(Kind::Services)),
        ["gone"]
    );

    snapshot.apply(Event::Begin(Kind::Slices));
    snapshot.apply(slice("kept-1", "kept", "10.0.0.1"));
    assert_eq!(
        dirty(&mut snapshot, Event::Complete(Kind::Slices)),
        ["bare"],
        "named once for both slices"
    );
    assert_eq!(slice_names(&snapshot, "kept"), ["kept-1"]);

    snapshot.apply(Event::Begin(Kind::Node));
    let change = snapshot.apply(Event::Complete(Kind::Node));
    assert_eq!((change.node, snapshot.node()), (true, None));

    snapshot.apply(Event::Begin(Kind::ServiceCidrs));
    assert!(
        snapshot
            .apply(Event::Complete(Kind::ServiceCidrs))
            .service_cidrs
    );
    assert_eq!(snapshot.service_cidrs(), Some(vec![]));
}

#[test]
fn a_list_that_breaks_off_and_starts_over_removes_nothing_it_names() {
    let mut snapshot = Snapshot::default();
    snapshot.apply(service("a", 80));
    snapshot.apply(service("b", 80));
    snapshot.apply(Event::Begin(Kind::Services));
    snapshot.apply(service("a", 80));
    snapshot.apply(Event::Begin(Kind::Services));
    snapshot.apply(service("b", 80));
    assert_eq!(dirty(&mut snapshot, Event::Complete(Kind::Services)), ["a"]);
}

#[test]
fn c8_a_node_that_changes_is_told_and_one_that_does_not_is_not() {
    let mut snapshot = Snapshot::default();
    assert!(snapshot.apply(node("east")).node);
    assert!(!snapshot.apply(node("east")).node);
    assert!(snapshot.apply(node("west")).node);
    assert_eq!(
        snapshot.node().and_then(|node| node.zone.as_deref()),
        Some("west")
    );
    assert!(snapshot.apply(Event::NodeGone).node);
    assert!(!snapshot.apply(Event::NodeGone).node);
}

#[test]
fn d5_service_cidrs_are_the_union_of_the_objects() {
    let mut snapshot = Snapshot::default();
    let (small, large) = (cidr("10.96.0.0", 16), cidr("fd00::", 108));
    snapshot.apply(Event::ServiceCidr("b".into(), vec![large, small]));
    snapshot.apply(Event::ServiceCidr("a".into(), vec![small]));
    assert_eq!(snapshot.service_cidrs(), None, "there may be more");
    assert!(
        snapshot
            .apply(Event::Complete(Kind::ServiceCidrs))
            .service_cidrs
    );
    assert_eq!(snapshot.service_cidrs(), Some(vec![small, large]));
    assert!(
        snapshot
            .apply(Event::ServiceCidr("b".into(), vec![]))
            .service_cidrs
    );
    assert_eq!(snapshot.service_cidrs(), Some(vec![small]));
    assert!(
        snapshot
            .apply(Event::ServiceCidrGone("a".into()))
            .service_cidrs
    );
    assert_eq!(snapshot.service_cidrs(), Some(vec![]));
}

#[test]
fn d5_an_empty_first_list_of_service_cidrs_is_a_change_and_a_second_is_none() {
    let mut snapshot = Snapshot::default();
    let mut listed = || {
        snapshot.apply(Event::Begin(Kind::ServiceCidrs));
        snapshot
            .apply(Event::Complete(Kind::ServiceCidrs))
            .service_cidrs
    };
    assert_eq!([listed(), listed()], [true, false]);
}
