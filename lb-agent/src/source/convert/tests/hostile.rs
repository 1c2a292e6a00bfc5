//! Objects that mean harm.

use super::*;

#[test]
fn names_that_are_none_refuse_the_object() {
    let long = "x".repeat(64);
    for (over, gone) in [
        (json!({"metadata": {"name": "a\nb"}}), false),
        (json!({"metadata": {"name": ""}}), false),
        (json!({"metadata": {"name": long}}), false),
        (json!({"metadata": {"name": "\u{202e}web"}}), false),
        (json!({"metadata": {"namespace": "\u{1b}[31m"}}), false),
        (json!({"metadata": {"namespace": null}}), false),
        // The object's own name is fine: what was there before goes.
        (
            json!({"spec": {"ports": [{"port": 80, "name": "a\u{0}b"}]}}),
            true,
        ),
        (
            json!({"spec": {"ports": [{"port": 80, "name": "x".repeat(64)}]}}),
            true,
        ),
    ] {
        let (mut converter, refused) = converter();
        let event = converter.service(&object(service_json(over.clone())));
        assert_eq!(
            matches!(event, Some(Event::ServiceGone(_))),
            gone,
            "{over} {event:?}"
        );
        assert!(gone || event.is_none());
        assert_eq!(refused.objects.load(Relaxed), 1, "{over}");
    }
    for over in [
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "a\nb"}}}),
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "a\rb"}]}),
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "\u{7}"}]}}]}),
        json!({"ports": [{"name": "\u{9b}", "port": 80}]}),
    ] {
        assert_eq!(read_slice(over.clone()), None, "{over}");
    }
    // Slices may have longer names than Services.
    let name = json!({"metadata": {"name": "s".repeat(253)}});
    assert!(matches!(
        converter().0.slice(&object(slice_json(name))),
        Some(Event::Slice(_))
    ));
}

#[test]
fn thousands_of_hostile_endpoints_are_counted_and_told_in_a_few_lines() {
    let endpoints: Vec<_> = (0..5000)
        .map(|n| json!({"addresses": [format!("127.0.{}.{}", n / 250, n % 250)]}))
        .collect();
    let slice = object(slice_json(json!({"endpoints": endpoints})));
    let (mut converter, refused) = converter();
    let log = logged(|| {
        for _ in 0..3 {
            let Some(Event::Slice(slice)) = converter.slice(&slice) else {
                panic!("no slice")
            };
            assert_eq!(slice.endpoints, []);
        }
    });
    assert_eq!(refused.addresses.load(Relaxed), 5000);
    assert_eq!(log.lines().count(), 9, "{log}");
    assert!(
        log.contains("EndpointSlice shop/web-1")
            && log.contains("127.0.0.0")
            && log.contains("loopback"),
        "{log}"
    );
}

#[test]
fn the_log_shows_no_control_characters() {
    let (mut converter, _) = converter();
    let log = logged(|| {
        converter.service(&object(service_json(
            json!({"metadata": {"name": "a\n\u{1b}[2Jb"}}),
        )));
        converter.service(&object(service_json(
            json!({"spec": {"externalIPs": ["1.2.3.4\n\u{1b}[2J"]}}),
        )));
        converter.service(&object(service_json(
            json!({"spec": {"ports": [{"port": 1, "protocol": "\u{8}"}]}}),
        )));
    });
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(
        log.chars()
            .all(|character| character == '\n' || !character.is_control()),
        "{log:?}"
    );
}

#[test]
fn a_deleted_object_may_be_told_about_again() {
    let value: core::Service = object(service_json(
        json!({"spec": {"externalIPs": ["127.0.0.1"]}}),
    ));
    let (mut converter, refused) = converter();
    converter.service(&value);
    let name = ObjectName {
        namespace: "shop".into(),
        name: "web".into(),
    };
    assert_eq!(
        converter.service_gone(&value.metadata),
        Some(Event::ServiceGone(name))
    );
    converter.service(&value);
    assert_eq!(refused.addresses.load(Relaxed), 2);
}
