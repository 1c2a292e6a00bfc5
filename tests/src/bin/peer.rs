//! A process in a pod, on a node or on the outside client: see `lb_tests::peer`.

fn main() -> anyhow::Result<()> {
    lb_tests::peer::run()
}
