use super::*;

fn names(text: &str) -> Vec<String> {
    let manifests = parse(text).unwrap_or_else(|broken| panic!("{broken}"));
    let name = |manifest: &Manifest| match manifest {
        Manifest::Service(object) => object.metadata.name.clone(),
        Manifest::Slice(object) => object.metadata.name.clone(),
        Manifest::Node(object) => object.metadata.name.clone(),
        Manifest::ServiceCidr(object) => object.metadata.name.clone(),
    };
    manifests.iter().filter_map(name).collect()
}

fn service(text: &str) -> Service {
    match parse(text).unwrap().pop() {
        Some(Manifest::Service(service)) => *service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_documents_of_all_kinds() {
    let text = "# a comment
---
apiVersion: v1
kind: Service
metadata: {name: a}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b}
addressType: IPv4
endpoints: []
--- # the node
apiVersion: v1
kind: Node
metadata: {name: c}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: d}
---
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: none of ours}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: neither}
";
    assert_eq!(names(text), ["a", "b", "c", "d"]);
    assert_eq!(names(&text.replace('\n', "\r\n")), ["a", "b", "c", "d"]);
    assert_eq!(names(""), [""; 0]);
    assert_eq!(
        names("\u{feff}apiVersion: v1\nkind: Node\nmetadata: {name: n}"),
        ["n"]
    );
}

#[test]
fn lists_and_json() {
    let text = "apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: b}, addressType: IPv4, endpoints: []}
";
    assert_eq!(names(text), ["a", "b"]);
    assert_eq!(
        names(
            r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]}"#
        ),
        ["a"]
    );
    assert_eq!(names("apiVersion: v1\nkind: List\n"), [""; 0]);
}

#[test]
fn a_broken_file_names_the_line_and_the_problem() {
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n";
    for (text, line, problem) in [
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: eighty\n",
            10,
            "Service web",
        ),
        ("apiVersion: v1\nkind: Service\n  metadata: x\n", 7, ""),
        ("kind: Service\n", 5, "apiVersion"),
        ("apiVersion: v1\nmetadata: {}\n", 5, "kind"),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
            5,
            "discovery.k8s.io/v1",
        ),
        ("just text\n", 5, "kind"),
    ] {
        let broken = parse(&format!("{good}{text}")).unwrap_err();
        assert_eq!(broken.line, line, "{text:?} {broken}");
        assert!(broken.problem.contains(problem), "{broken}");
    }
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let spec = |text: &str| {
        service(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {text}"
        ))
        .spec
        .unwrap()
    };
    for (text, families, addresses) in [
        ("{clusterIP: 10.96.0.1}", vec!["IPv4"], vec!["10.96.0.1"]),
        ("{clusterIP: 'fd00::1'}", vec!["IPv6"], vec!["fd00::1"]),
        (
            "{clusterIPs: ['fd00::1', 10.96.0.1]}",
            vec!["IPv6", "IPv4"],
            vec!["fd00::1", "10.96.0.1"],
        ),
    ] {
        let spec = spec(text);
        assert_eq!(spec.ip_families.unwrap(), families, "{text}");
        assert_eq!(spec.cluster_ips.unwrap(), addresses, "{text}");
        assert_eq!(spec.cluster_ip.unwrap(), addresses[0], "{text}");
    }
    assert_eq!(spec("{clusterIP: None}").ip_families, None);
    assert_eq!(
        service("apiVersion: v1\nkind: Service\nmetadata: {name: a}")
            .metadata
            .namespace
            .unwrap(),
        "default"
    );

    let text = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, endpoints: [], ports: [{port: 80}]}";
    let Some(Manifest::Slice(slice)) = parse(text).unwrap().pop() else {
        panic!("no slice")
    };
    assert_eq!(slice.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(slice.ports.unwrap()[0].name.as_deref(), Some(""));
}

#[test]
fn hostile_text_is_an_error_not_a_crash() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n".to_owned()
        + "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n"
        + "g: &g [*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g]\nkind: x\n";
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "\u{0}".into(),
        "- &a *a".into(),
        bomb,
    ] {
        assert!(parse(&text).is_err(), "{:.20}", text);
    }
}
